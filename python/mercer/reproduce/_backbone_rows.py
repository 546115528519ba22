"""Rows that every family of backbones has: sizes, the merged form, time against timm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn

from mercer.reproduce import Row
from mercer.vision.backbones import macs

__all__ = ["merged", "shaken", "sizes", "times", "timing"]


def sizes(family: str, published: Mapping[str, tuple[float, str, int]], *, deploy: bool) -> list[Row]:
    """Parameters and multiply-adds of variants against what the authors print.

    Args:
        family: As in timm's names.
        published: variant: millions of parameters, 10^9 multiply-adds as printed, input side.
        deploy: Count the re-parameterised form.
    """
    rows = []
    for variant, (millions, printed, side) in published.items():
        with torch.device("meta"):
            net = timm.create_model(f"mercer_{family}_{variant}", deploy=deploy)
        count = sum(p.numel() for p in net.parameters()) / 1e6
        places = 1 if millions != round(millions) else 0
        rows.append(Row(
            f"parameters of {variant}", "M", ours=count, paper=millions, better="equal",
            holds=abs(count - millions) <= 10.0**-places, must_hold=True, note="not the published size",
        ))  # fmt: skip
        found = macs(net, (3, side, side)) / 1e9
        digit = 10.0 ** -len(printed.partition(".")[2])
        rows.append(Row(
            f"multiply-adds of {variant} at {side} px", "G", ours=found, paper=float(printed), better="equal",
            holds=abs(found - float(printed)) <= max(1.001 * digit, 0.01 * float(printed)), must_hold=True,
            note="more than 1 % and the last printed digit apart",
        ))  # fmt: skip
    return rows


def shaken(net: nn.Module) -> nn.Module:
    """Parameters and statistics far from their start, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * p.abs().mean() * torch.randn(p.shape, generator=generator))
            if p.dim() < 2 or p.numel() == max(p.shape):
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
                norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) * 3 + 0.2)
    return net.eval()


def merged(name: str, size: int = 64, **options: Any) -> list[Row]:
    """The re-parameterised model is the model, in float32 and float64, statistics far from their start."""
    rows = []
    for dtype, bar in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        torch.manual_seed(0)
        net = shaken(timm.create_model(name, **options).to(dtype))
        x = torch.randn(2, 3, size, size, dtype=dtype)
        with torch.no_grad():
            before = net(x)
            apart = float((net.reparameterize()(x) - before).abs().max() / before.abs().max())
        rows.append(Row(
            f"{name}, train form against re-parameterised, {str(dtype)[6:]}", "of the largest output", ours=apart,
            better="lower", holds=apart <= bar, must_hold=True, note=f"above {bar:g}",
        ))  # fmt: skip
    return rows


def timing(*calls: Callable[[], Any], rounds: int) -> list[list[float]]:
    """Milliseconds of each, turn by turn; the first turn warms up."""
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for seconds, call in zip(found, calls, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                seconds.append(1e3 * (time.perf_counter() - start))
    return found


def times(
    quantity: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    rounds: int,
    *,
    at_least: float = 1.0,
    paper: Any = None,
    note: str = "",
) -> Row:
    """Median milliseconds of both; the claim is that ours is so many times as fast."""
    mine, other = timing(ours, theirs, rounds=rounds)
    ratios: Sequence[float] = [b / a for a, b in zip(mine, other, strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        quantity, "ms", baseline=statistics.median(other), ours=statistics.median(mine), paper=paper, better="lower",
        holds=ratio >= at_least, spread=(min(mine), max(mine)),
        note=f"{ratio:.2f} times as fast, not {at_least:g}{'; ' * bool(note)}{note}",
    )  # fmt: skip
