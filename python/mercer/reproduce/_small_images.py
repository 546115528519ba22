"""Small image tasks, a small network around any block, and the loop that trains it: what the backbones' claims are
tried on.

The digits are scikit-learn's (1797 images of 8 x 8 pixels by 43 writers; the first 1300 are for training, the others
for testing). What is made is where a digit stands and how large it is.
"""

from __future__ import annotations

import os
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mercer.reproduce import Progress, Row

__all__ = [
    "Arm", "SmallNet", "Task", "accuracies", "cifar10", "claim", "draw_accuracies", "draw_fields", "left_one",
    "matched", "on_cifar", "parameters", "part_of", "segmented", "stretched",
]  # fmt: skip

SIDE, BATCH = 32, 64
OFF = 10  # the class of cells without ink
CIFAR = Path(os.environ.get("MERCER_DATA", "")) / "cifar10" / "cifar10_lossless_10k.npz"


@dataclass(frozen=True, slots=True)
class Task:
    """Images (N, C, 32, 32) float32 and labels (N,), or (N, 16, 16) where every cell has one; to train and to test."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def stretched(n: int, n_test: int, seed: int) -> Task:
    """A digit stretched to 20 to 32 pixels a side, anywhere on a canvas of 32 x 32, in noise of deviation 0.1."""
    return _placed(n, n_test, seed, digits=1, sides=(20, 32))


def left_one(n: int, n_test: int, seed: int) -> Task:
    """Two digits of 12 to 16 pixels a side, one in each half of a canvas of 32 x 32: the class is that of the left one.

    What is left of what is nowhere near: a pixel has to see the other digit or the border.
    """
    return _placed(n, n_test, seed, digits=2, sides=(12, 16))


def segmented(n: int, n_test: int, seed: int) -> Task:
    """The canvases of :func:`stretched` with a class for each cell of 2 x 2 pixels: the digit's, or 10 off its ink.

    A cell has to know the digit that it is a part of, which is larger than a kernel.
    """
    return _placed(n, n_test, seed, digits=1, sides=(20, 32), cells=True)


def _placed(
    n: int, n_test: int, seed: int, *, digits: int, sides: tuple[int, int], cells: bool = False
) -> Task:
    """Digits side by side, each somewhere in its strip of the canvas; the class is that of the first, or by `cells`."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the small tasks are made of scikit-learn's digits: pip install 'mercer-kernels[demo]'",
            name="sklearn",
        ) from None
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images.reshape(-1, 1, 1, 8, 8)).float() / 16
    rng, strip = np.random.default_rng(seed), SIDE // digits
    parts: list[torch.Tensor] = []
    for count, pool in ((n, np.arange(1300)), (n_test, np.arange(1300, len(labels)))):
        chosen = rng.choice(pool, (count, digits))
        x = torch.from_numpy(rng.normal(0, 0.1, (count, 1, SIDE, SIDE)).astype(np.float32))
        painted = torch.full((count, SIDE, SIDE), OFF)
        for i, place in np.ndindex(count, digits):
            height, width = map(int, rng.integers(sides[0], sides[1] + 1, 2))
            top = int(rng.integers(SIDE - height + 1))
            left = strip * place + int(rng.integers(strip - width + 1))
            large = F.interpolate(images[chosen[i, place]], (height, width), mode="bilinear")
            x[i, :, top : top + height, left : left + width] += large[0]
            ink = large[0, 0] > 0.4
            painted[i, top : top + height, left : left + width][ink] = int(labels[chosen[i, place]])
        of_cells = painted.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).amin((2, 4))
        parts += [x, of_cells if cells else torch.from_numpy(labels[chosen[:, 0]].astype(np.int64))]
    return Task(*parts)


def cifar10(n: int, n_test: int, seed: int) -> Task | None:
    """Some of CIFAR-10 where `MERCER_DATA` has it."""
    if not CIFAR.is_file():
        return None
    rng, parts = np.random.default_rng(seed), []
    with np.load(CIFAR, allow_pickle=False) as arrays:
        for part, count in (("train", n), ("test", n_test)):
            chosen = rng.permutation(len(arrays[f"y_{part}"]))[:count]
            x = torch.from_numpy(arrays[f"x_{part}"][chosen]).permute(0, 3, 1, 2).float() / 64 - 2
            parts += [x.contiguous(), torch.from_numpy(arrays[f"y_{part}"][chosen].astype(np.int64))]
    return Task(*parts)


class SmallNet(nn.Module):
    """Stem to maps of 16 x 16, blocks, mean over the map unless `cells`, classifier.

    Args:
        block: Makes a block (B, C, H, W) -> (B, C, H, W) from C.
        width: C.
        depth: Blocks.
        in_chans, classes: Of the task.
        cells: Classify every cell of the map.
    """

    def __init__(
        self,
        block: Callable[[int], nn.Module],
        width: int,
        depth: int = 2,
        in_chans: int = 1,
        classes: int = 10,
        cells: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.GELU()
        )
        self.blocks = nn.Sequential(*(block(width) for _ in range(depth)))
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
        last = (nn.Conv2d(width, classes, 1),) if cells else pooled
        self.head = nn.Sequential(nn.BatchNorm2d(width), *last)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, 32, 32) -> (B, C, 16, 16)."""
        return self.blocks(self.stem(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, 32, 32) -> logits (B, classes), or (B, classes, 16, 16)."""
        return self.head(self.forward_features(x))


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison: a block, and how many of it how wide."""

    name: str
    block: Callable[[int], nn.Module]
    width: int
    depth: int = 2

    def build(self, in_chans: int = 1, cells: bool = False) -> SmallNet:
        """The network."""
        return SmallNet(self.block, self.width, self.depth, in_chans, 10 + cells, cells)


def parameters(arm: Arm) -> int:
    """Trainable, with the branches of re-parameterised blocks merged."""
    net = arm.build()
    for block in net.modules():
        for name in ("reparameterize", "merge"):
            if hasattr(block, name):
                getattr(block.eval(), name)()
                break
    return sum(p.numel() for p in net.parameters())


def matched(arm: Arm, other: Arm, step: int = 1) -> Arm:
    """`arm` in the width, a multiple of `step`, whose parameters come nearest to those of `other`, and not below."""
    wanted, width = parameters(other), step
    while parameters(Arm(arm.name, arm.block, width, arm.depth)) < wanted:
        width += step
    return Arm(arm.name, arm.block, width, arm.depth)


def trained(
    net: nn.Module, task: Task, epochs: int, seed: int, rate: float = 3e-3, batch: int = BATCH
) -> nn.Module:
    """AdamW, a tenth of the steps to warm up, then down a cosine; no augmentation."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(task.y) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(task.y), generator=generator)
        for at in order[: len(order) // batch * batch].split(batch):
            loss = F.cross_entropy(net(task.x[at]), task.y[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, task: Task) -> float:
    """In percent, on the test part; of labels of cells the mean over the classes of intersection over union."""
    found, right = torch.cat([net(x).argmax(1) for x in task.x_test.split(256)]), task.y_test
    if right.dim() == 1:
        return 100 * float((found == right).double().mean())
    pairs = [(found == c, right == c) for c in right.unique()]
    return 100 * statistics.fmean(float((a & b).sum() / (a | b).sum()) for a, b in pairs)


def accuracies(
    arms: Sequence[Arm],
    tasks: Sequence[Task],
    epochs: int,
    say: Callable[[str, float], None],
    rate: float = 3e-3,
    batch: int = BATCH,
) -> dict[str, list[float]]:
    """Test accuracy of each arm on each task, the seed of the weights being the number of the task."""
    found: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for seed, task in enumerate(tasks):
        for i, arm in enumerate(arms):
            say(f"{arm.name}, seed {seed}", (seed * len(arms) + i) / len(arms) / len(tasks))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = arm.build(task.x.shape[1], task.y.dim() > 1)
                trained(net, task, epochs, seed, rate, batch)
            found[arm.name].append(accuracy(net, task))
    return found


def claim(
    quantity: str,
    better: Sequence[float],
    worse: Sequence[float],
    *,
    must_hold: bool,
    unit: str = "% right",
    paper: str | None = None,
    note: str = "",
) -> Row:
    """A row: over the seeds, one arm is ahead of the other by more than the standard error of their difference."""
    gains = [a - b for a, b in zip(better, worse, strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    ahead = statistics.fmean(gains)
    return Row(
        f"{quantity}, {len(gains)} seed{'s' * (len(gains) > 1)}", unit, baseline=statistics.fmean(worse),
        ours=statistics.fmean(better), paper=paper, better="higher", holds=ahead > error, must_hold=must_hold,
        spread=(min(better), max(better)),
        note=f"ahead by {ahead:.2f} points, standard error {error:.2f}{'; ' * bool(note)}{note}",
    )  # fmt: skip


def on_cifar(
    arms: Sequence[Arm],
    epochs: int,
    seeds: int,
    say: Callable[[str, float], None],
    pairs: Mapping[str, tuple[str, str]],
    rate: float = 3e-3,
) -> list[Row]:
    """The claims `pairs` (words: arm ahead, arm behind) on 2000 images of CIFAR-10, where it is."""
    tasks = [task for seed in range(seeds) if (task := cifar10(2000, 1000, seed)) is not None]
    if not tasks:
        return [
            Row(f"CIFAR-10: {words}", "% right", better="higher", holds="not-testable-here",
                note="no CIFAR-10 under MERCER_DATA")
            for words in pairs
        ]  # fmt: skip
    found = accuracies(arms, tasks, epochs, say, rate)
    return [
        claim(f"2000 images of CIFAR-10: {words}", found[a], found[b], must_hold=False,
              note="2000 images and a few epochs")
        for words, (a, b) in pairs.items()
    ]  # fmt: skip


def draw_accuracies(
    axes: Any, found: Mapping[str, Sequence[float]], title: str, unit: str = "% right"
) -> None:
    """A dot a seed and a line at the mean, an arm a column."""
    for i, values in enumerate(found.values()):
        axes.plot([i] * len(values), values, "o", color=f"C{i}")
        axes.plot([i - 0.2, i + 0.2], [statistics.fmean(values)] * 2, color=f"C{i}", linewidth=2)
    axes.set_xticks(range(len(found)), ["\n".join(textwrap.wrap(name, 18)) for name in found])
    axes.set(ylabel=unit, title=f"{title}, by seed", xlim=(-0.5, len(found) - 0.5))


def draw_fields(panels: Sequence[Any], fields: Mapping[str, Any]) -> None:
    """Receptive fields, to the fourth root of their largest value."""
    for axes, (name, field) in zip(panels, fields.items(), strict=True):
        field = np.asarray(field, dtype=float)
        axes.imshow((field / field.max()) ** 0.25, cmap="magma")
        axes.set(title=name, xticks=[], yticks=[])


def part_of(progress: Progress, start: float, share: float) -> Callable[[str, float], None]:
    """Progress of a part that begins at `start` and is `share` of the whole."""
    return lambda message, done: progress(message, start + share * done)
