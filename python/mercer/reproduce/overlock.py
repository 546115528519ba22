"""overlock: Lou and Yu, "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels".

CVPR 2025. Claims: kernels that are made for each pixel from its affinity to the whole map are better than static ones
at equal size. The paper trains on ImageNet; here small networks, as many parameters once merged, tell for every cell of
a canvas of 32 x 32 which digit it is a part of. The first opponent is the very block with static kernels of the same
sizes in the place of those made for each pixel, its MLP wider by what making them costs.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from mercer.nn.conv import ContextMixing, ContMixBlock, DepthwiseConv2d, contmix
from mercer.reproduce import Evidence, Progress, Row
from mercer.reproduce._backbone_rows import merged, sizes, times
from mercer.reproduce._small_images import (
    Arm,
    accuracies,
    claim,
    draw_accuracies,
    draw_fields,
    matched,
    on_cifar,
    parameters,
    part_of,
    segmented,
)
from mercer.vision.backbones.overlock import RepConvBlock
from mercer.vision.figures import effective_receptive_field

__all__ = ["plot", "run"]

SEED = 3
#: variant: millions of parameters, 10^9 multiply-adds, side; of the merged form without auxiliary head
PUBLISHED = {"xt": (16, "2.6", 224), "t": (33, "5.5", 224), "s": (56, "9.7", 224), "b": (95, "16.7", 224)}
#: Of 1e-2, 2e-2, 4e-2, tried on digits of the training part, one other seed: no arm is a point better with another.
RATE = 2e-2


def _dynamic(dim: int) -> nn.Module:
    return ContMixBlock(dim, 7, mlp_ratio=2)


class _StaticKernels(ContMixBlock):
    """The block with depthwise kernels that are the same for every pixel and picture."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 7, mlp_ratio=130 / 16)  # as many parameters at 16 channels
        del self.rpb1, self.rpb2, self.weight_query, self.weight_key, self.weight_proj
        self.small = DepthwiseConv2d(dim // 2, self.smk_size, bias=False)
        self.large = DepthwiseConv2d(dim // 2, self.kernel_size, bias=False)

    def mix(self, queries: torch.Tensor, keys: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Of `value` alone."""
        near, far = value.chunk(2, dim=1)
        return torch.cat([self.small(near), self.large(far)], dim=1)


def _static(dim: int) -> nn.Module:
    return RepConvBlock(dim, 7, mlp_ratio=2)


DYNAMIC, SAME = "context mixing", "the same block, static kernels"
WIDE, DEEP = "static block of Base-Net, wider", "two static blocks of Base-Net"
FIRST = Arm(DYNAMIC, _dynamic, 16, 1)
ARMS = (
    FIRST,
    Arm(SAME, _StaticKernels, 16, 1),
    matched(Arm(WIDE, _static, 16, 1), FIRST, step=2),
    matched(Arm(DEEP, _static, 16, 2), FIRST, step=2),
)


def run(*, quick: bool, progress: Progress) -> Evidence:
    """Measure the claims: about a minute with `quick`, some minutes without."""
    torch.manual_seed(SEED)
    progress("sizes", 0.0)
    chosen = {"xt": PUBLISHED["xt"]} if quick else PUBLISHED
    rows = [*sizes("overlock", chosen, deploy=True)]
    rows += [_windows(), _sums()]
    progress("merged form", 0.1)
    rows += merged("mercer_overlock_xt")
    progress("times", 0.15)
    rows += _times(1, 2 if quick else 5)
    fields = _fields()
    rows += _beyond(fields)
    seeds, pictures = (1, 1600) if quick else (4, 7800)
    tasks = [segmented(pictures, 1000, seed) for seed in range(seeds)]
    found = accuracies(ARMS, tasks, 1, part_of(progress, 0.2, 0.6), RATE, batch=32)
    rows += _learning(found)
    if not quick:
        pairs = {f"context mixing above {name}": (DYNAMIC, name) for name in (SAME, WIDE)}
        rows += on_cifar(ARMS[:3], 3, 3, part_of(progress, 0.8, 0.2), pairs, RATE)
    return Evidence("overlock", rows, seed=SEED, figures={"learning": found, "fields": fields})


def _learning(found: dict[str, list[float]]) -> list[Row]:
    count = {arm.name: parameters(arm) for arm in ARMS}
    notes = {
        SAME: "",
        WIDE: "",
        DEEP: "at 16 channels what makes the kernels costs as much as a whole block, and two blocks see the digit",
    }
    return [
        claim(
            f"which digit a cell is of: context mixing ({count[DYNAMIC]} parameters) above {name} ({count[name]})",
            found[DYNAMIC], found[name], must_hold=False, unit="% mean IoU", note=note,
        )
        for name, note in notes.items()
    ]  # fmt: skip


def _windows() -> Row:
    """Every pixel's window by nested loops, float64."""
    generator = torch.Generator().manual_seed(0)
    k, height, width = 5, 7, 9
    attn = torch.rand(1, 2, height, width, k * k, generator=generator, dtype=torch.float64)
    value = torch.randn(1, 6, height, width, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(value)
    for c, i, j in itertools.product(range(6), range(height), range(width)):
        top, left = min(max(i - k // 2, 0), height - k), min(max(j - k // 2, 0), width - k)
        window = value[0, c, top : top + k, left : left + k]
        expected[0, c, i, j] = (attn[0, c // 3, i, j].view(k, k) * window).sum()
    apart = float((contmix(attn, value, k) - expected).abs().max())
    return Row(
        "dynamic convolution against nested loops over its windows, float64", "absolute", ours=apart, better="lower",
        holds=apart < 1e-12, must_hold=True, note="above 1e-12",
    )  # fmt: skip


def _sums() -> Row:
    torch.manual_seed(0)
    block = ContMixBlock(16, 7).eval()
    with torch.no_grad():
        constant = torch.full((1, 16, 14, 14), 2.5)
        apart = float(
            (block.mix(torch.randn(1, 16, 14, 14), torch.randn(1, 16, 14, 14), constant) - 2.5).abs().max()
        )
    return Row(
        "a constant map through kernels of every pixel stays that constant", "absolute", ours=apart, better="lower",
        holds=apart < 1e-5, must_hold=True, note="the kernels do not sum to one",
    )  # fmt: skip


def _times(batch: int, rounds: int) -> list[Row]:
    x = torch.randn(batch, 3, 224, 224)

    def inference(net: nn.Module) -> Any:
        return torch.no_grad()(lambda: net(x))

    train_form, small = (timm.create_model("mercer_overlock_xt").eval() for _ in range(2))
    small.reparameterize()
    return [
        times(
            f"inference of XT, batch {batch}, re-parameterised, against its train form", inference(small),
            inference(train_form), rounds,
        ),
        times(
            f"inference of XT (2.6 G, 82.7 %), batch {batch}, against timm's ConvNeXt-T (4.5 G, 82.1 %)",
            inference(small), inference(timm.create_model("convnext_tiny").eval()), rounds,
            note="fewer multiply-adds, but depthwise and per-pixel ones, which are slower each",
        ),
    ]  # fmt: skip


class _Mixing(nn.Module):
    """Context mixing of a map with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = ContextMixing(16, 16, 7, 5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 16, H, W) -> (B, 16, H, W)."""
        return self.mixing.mix(x, x, x)


def _fields() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    images = torch.randn(8, 16, 28, 28)
    return {
        name: effective_receptive_field(operator, images)
        for name, operator in (("static 7 x 7", DepthwiseConv2d(16, 7)), ("context mixing 7 x 7", _Mixing()))
    }


def _beyond(fields: dict[str, np.ndarray]) -> list[Row]:
    """Shares of the receptive field outside 7 x 7."""
    static, dynamic = (1 - float(field[11:18, 11:18].sum()) for field in fields.values())
    return [
        Row(
            "share of the receptive field outside 7 x 7: context mixing against a static kernel", "", baseline=static,
            ours=dynamic, paper="global against local", better="higher", holds=dynamic > 0.01 > 1e-9 > static,
            must_hold=True, note="the kernels do not see beyond their window",
        )
    ]  # fmt: skip


def plot(evidence: Evidence, figure: Any) -> None:
    """Accuracies by seed, and the receptive fields."""
    left, *right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    draw_accuracies(left, evidence.figures["learning"], "which digit a cell is of", "% mean IoU")
    draw_fields(right, evidence.figures["fields"])
