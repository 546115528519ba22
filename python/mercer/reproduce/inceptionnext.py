"""inceptionnext: Yu, Zhou, Yan, Wang, "InceptionNeXt: When Inception Meets ConvNeXt".

CVPR 2024. Claims: a 7 x 7 depthwise convolution costs memory traffic more than arithmetic; three small groups of
channels through 3 x 3, 1 x 11 and 11 x 1 do its work at a twelfth of the multiply-adds, so that a network trains 1.57
times as fast as ConvNeXt-T and is as accurate. The paper measures an A100 on ImageNet; here times are of this CPU,
and accuracies those of small networks on digits stretched to 20 to 32 pixels on a canvas of 32 x 32.
"""

from __future__ import annotations

import textwrap
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from mercer.nn.conv import DepthwiseConv2d, InceptionDWConv2d
from mercer.reproduce import Evidence, Progress, Row
from mercer.reproduce._backbone_rows import merged, sizes, times
from mercer.reproduce._small_images import (
    Arm,
    accuracies,
    claim,
    draw_accuracies,
    on_cifar,
    parameters,
    part_of,
    stretched,
)
from mercer.vision.backbones import all_macs
from mercer.vision.backbones.inceptionnext import MetaNeXtBlock

__all__ = ["plot", "run"]

SEED = 38
#: variant: millions of parameters, 10^9 multiply-adds, side
PUBLISHED = {
    "atto": (4.2, ".51", 224),
    "tiny": (28, "4.2", 224),
    "small": (49, "8.4", 224),
    "base": (87, "14.9", 224),
    "base_384": (87, "43.6", 384),
}
WIDTH, RATE = 32, 1e-2


class SomeChannels(nn.Module):
    """3 x 3 on an eighth of the channels, the others pass: the paper's study of ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.some = channels // 8
        self.conv = nn.Conv2d(self.some, self.some, 3, padding=1, groups=self.some)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return torch.cat([x[:, self.some :], self.conv(x[:, : self.some])], dim=1)


def _block(mixer: Any) -> Any:
    return partial(MetaNeXtBlock, token_mixer=lambda c, **_: mixer(c), ls_init_value=1.0, mlp_ratio=2)


MIXER, SEVEN, SOME = "Inception mixer", "7 x 7 on all channels", "3 x 3 on an eighth"
ARMS = (
    Arm(MIXER, _block(partial(InceptionDWConv2d, band_kernel_size=9, branch_ratio=0.25)), WIDTH),
    Arm(SEVEN, _block(partial(DepthwiseConv2d, kernel_size=7)), WIDTH),
    Arm(SOME, _block(SomeChannels), WIDTH),
)


def run(*, quick: bool, progress: Progress) -> Evidence:
    """Measure the claims: about a minute with `quick`, some minutes without."""
    torch.manual_seed(SEED)
    progress("sizes", 0.0)
    chosen = {"atto": PUBLISHED["atto"]} if quick else PUBLISHED
    rows = [*sizes("inceptionnext", chosen, deploy=False), _operator(), _arithmetic()]
    progress("merged form", 0.1)
    rows += merged("mercer_inceptionnext_atto")
    progress("times", 0.15)
    rows += [*_mixers(2 if quick else 8, 2 if quick else 5), *_networks(quick)]
    seeds, epochs = (1, 5) if quick else (3, 8)
    tasks = [stretched(1300, 1000, seed) for seed in range(seeds)]
    found = accuracies(ARMS, tasks, epochs, part_of(progress, 0.4, 0.4), RATE)
    rows += _learning(found)
    if not quick:
        pairs = {"the mixer above 3 x 3 on an eighth": (MIXER, SOME), "the mixer above 7 x 7": (MIXER, SEVEN)}
        rows += on_cifar(ARMS, 3, 3, part_of(progress, 0.8, 0.2), pairs, RATE)
    return Evidence("inceptionnext", rows, seed=SEED, figures={"learning": found})


def _operator() -> Row:
    """The mixer as one 11 x 11 depthwise convolution: a delta, the square, the row, the column in its middle."""
    mixer = InceptionDWConv2d(40).double()
    x = torch.randn(2, 40, 17, 13, dtype=torch.float64)
    g = mixer.split[1]
    kernel = torch.zeros(40, 1, 11, 11, dtype=torch.float64)
    kernel[: 40 - 3 * g, 0, 5, 5] = 1
    square, wide, high = (mixer.get_parameter(f"dwconv_{name}.weight").detach() for name in ("hw", "w", "h"))
    kernel[40 - 3 * g : 40 - 2 * g, :, 4:7, 4:7] = square
    kernel[40 - 2 * g : 40 - g, :, 5:6, :] = wide
    kernel[40 - g :, :, :, 5:6] = high
    bias = torch.zeros(40, dtype=torch.float64)
    bias[40 - 3 * g :] = torch.cat(
        [mixer.get_parameter(f"dwconv_{n}.bias").detach() for n in ("hw", "w", "h")]
    )
    with torch.no_grad():
        apart = float((mixer(x) - F.conv2d(x, kernel, bias, padding=5, groups=40)).abs().max())
    return Row(
        "the mixer against the 11 x 11 depthwise convolution that it is, float64", "absolute", ours=apart,
        better="lower", holds=apart < 1e-12, must_hold=True, note="above 1e-12",
    )  # fmt: skip


def _arithmetic() -> Row:
    mixer, seven = (
        all_macs(layer, (96, 56, 56)) / 56**2 for layer in (InceptionDWConv2d(96), DepthwiseConv2d(96, 7))
    )
    return Row(
        "multiply-adds a pixel of the mixer, 96 channels, against 7 x 7", "", baseline=seven, ours=mixer, paper=372,
        better="lower", holds=mixer == 372, must_hold=True, note="not the formula's (s² + 2b) g",
    )  # fmt: skip


def _mixers(batch: int, rounds: int) -> list[Row]:
    start = torch.randn(batch, 96, 56, 56)

    def both(layer: nn.Module) -> Any:
        x = start.clone().requires_grad_()
        return lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), start)

    rows = []
    for k in (7, 11):
        other = nn.Conv2d(96, 96, k, padding=k // 2, groups=96)
        rows.append(times(
            f"the mixer against torch's {k} x {k} depthwise, {batch} x 96 x 56 x 56, with gradients",
            both(InceptionDWConv2d(96)), both(other), rounds,
        ))  # fmt: skip
    return rows


def _networks(quick: bool) -> list[Row]:
    size, batch, rounds = ("atto", 2, 2) if quick else ("tiny", 4, 3)
    x, y = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))

    def step(name: str) -> Any:
        net = timm.create_model(name).train()

        def run() -> None:
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()

        return run

    def inference(net: nn.Module) -> Any:
        return torch.no_grad()(lambda: net(x))

    ours = timm.create_model(f"mercer_inceptionnext_{size}").reparameterize()
    theirs = timm.create_model(f"inception_next_{size}").eval()
    return [
        times(f"training step of {size}, batch {batch}, against ConvNeXt", step(f"mercer_inceptionnext_{size}"),
              step(f"convnext_{size}"), rounds, at_least=1.15,
              paper="1.57 times as fast (T, A100, batch 128)" if size == "tiny" else "3.19 times as fast (A100)"),
        times(f"inference of {size}, batch {batch}, re-parameterised, against timm's InceptionNeXt", inference(ours),
              inference(theirs), rounds),
    ]  # fmt: skip


def _learning(found: dict[str, list[float]]) -> list[Row]:
    count = {arm.name: parameters(arm) for arm in ARMS}
    mixer, seven = (sum(found[name]) / len(found[name]) for name in (MIXER, SEVEN))
    return [
        claim(
            "stretched digits: the mixer above 3 x 3 on an eighth of the channels", found[MIXER], found[SOME],
            must_hold=True, paper="82.3 against 80.8 (ImageNet, T)",
        ),
        claim(
            "stretched digits: 7 x 7 above 3 x 3 on an eighth of the channels", found[SEVEN], found[SOME],
            must_hold=True, paper="82.1 against 80.8 (ImageNet, T)",
        ),
        Row(
            "stretched digits: the mixer at most 1 point below 7 x 7 on all channels", "% right", baseline=seven,
            ours=mixer, paper="82.3 against 82.1 (ImageNet, T)", better="higher", holds=mixer >= seven - 1,
            spread=(min(found[MIXER]), max(found[MIXER])),
            note=f"two blocks, {count[MIXER]} against {count[SEVEN]} parameters; bands of 9 on a quarter of the "
            "channels do not make up for 7 x 7 on all in so shallow a network",
        ),
    ]  # fmt: skip


def plot(evidence: Evidence, figure: Any) -> None:
    """Accuracies by seed, and the times that were compared."""
    left, right = figure.subplots(1, 2)
    draw_accuracies(left, evidence.figures["learning"], "stretched digits")
    timed = [row for row in evidence.rows if row.unit == "ms"]
    right.barh(
        range(len(timed)), [float(row.ours or 0) / float(row.baseline or 1) for row in timed], label="mercer"
    )
    right.axvline(1, color="black", linewidth=1, label="baseline")
    right.set_yticks(range(len(timed)), [textwrap.fill(row.quantity, 36) for row in timed], fontsize=7)
    right.set(xlabel="time over the baseline's", title="times here")
    right.legend()
