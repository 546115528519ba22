"""neighborhood-attention: Hassani, Hwu and Shi, "Faster Neighborhood Attention".

NeurIPS 2024. Claims: neighborhood attention as products of tiles, and fused, is several times as fast as kernels that
gather each query's keys, in memory that does not grow with the window. The paper measures GPUs; here the same
comparison runs on the CPU: a gather, dense attention through a mask, and tiles in plain torch, each beside the
fused kernels of mercer. What every output must equal is the definition, by brute force in float64.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mercer.nn.attention.neighborhood import NAT_VARIANTS, na1d, na2d, na3d, nat
from mercer.ops import neighbor_indices, neighborhood_mask
from mercer.reproduce import Evidence, Progress, Row

__all__ = ["plot", "run"]

SEED, H, D = 28, 4, 32
ATTEND = {1: na1d, 2: na2d, 3: na3d}
#: shape, window, stride, dilation, causal
SEMANTICS = (
    ((50,), 7, 1, 3, False),
    ((50,), 8, 3, 2, True),
    ((9, 11), (4, 3), (2, 1), (1, 3), (False, True)),
    ((5, 6, 7), (2, 3, 5), 1, (1, 2, 1), (True, False, False)),
)
#: Sizes of the published table, in parameters.
PUBLISHED = {"nat_mini": 20e6, "nat_tiny": 28e6, "nat_small": 51e6, "nat_base": 90e6, "dinat_large": 200e6}


def run(*, quick: bool, progress: Progress) -> Evidence:
    """Measure the claims: some seconds with `quick`, some minutes without."""
    rows: list[Row] = []
    figures: dict[str, Any] = {}
    progress("what is computed", 0.0)
    _semantics(rows)
    sizes = (512, 1024) if quick else (1024, 2048, 4096, 8192)
    squares = (16, 32) if quick else (32, 48, 64)
    for name, shapes, window, tile in (
        ("1-D, window 65", [(n,) for n in sizes], (65,), (64,)),
        ("2-D, window 7 x 7", [(n, n) for n in squares], (7, 7), (8, 8)),
    ):
        times: dict[str, list[float]] = {"gather": [], "masked": [], "tiled": [], "mercer": []}
        for i, shape in enumerate(shapes):
            progress(f"times of {name}, {math.prod(shape)} tokens", 0.1 + 0.6 * i / len(shapes))
            _times(shape, window, tile, times, quick)
        figures[name] = {"tokens": [math.prod(s) for s in shapes], **times}
        _speed(name, figures[name], rows)
    progress("memory and growth", 0.8)
    _growth(quick, rows)
    progress("networks", 0.95)
    _networks(rows)
    for what, paper in (("1-D", 16.07), ("2-D", 5.81)):
        rows.append(Row(
            f"fused over naive kernels on an A100, half precision, {what}", "x faster, less 1", paper=paper,
            better="higher", holds="not-testable-here",
            note="no CUDA device here" if not torch.cuda.is_available() else "the naive kernels are not packaged",
        ))  # fmt: skip
    return Evidence("neighborhood-attention", rows, seed=SEED, figures=figures)


def _draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return [
        torch.randn(1, *shape, H, D, generator=generator, dtype=dtype, requires_grad=True) for _ in range(3)
    ]


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """By the mask, on flattened tokens: (1, n, H, D)."""
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


def _semantics(rows: list[Row]) -> None:
    worst = 0.0
    for shape, *how in SEMANTICS:
        q, k, v = _draw(shape, torch.float64)
        mask = torch.from_numpy(neighborhood_mask(shape, *how))
        ours = ATTEND[len(shape)](q, k, v, *how).flatten(1, -3)
        true = _dense(q, k, v, mask)
        got = torch.autograd.grad(ours.square().sum(), (q, k, v))
        want = torch.autograd.grad(true.square().sum(), (q, k, v))
        pairs = zip((ours, *got), (true, *want), strict=True)
        worst = max(worst, *(float((a - b).detach().abs().max()) for a, b in pairs))
    rows.append(Row(
        "error of outputs and gradients against the definition, float64, "
        "even, strided, dilated, causal windows in 1-D to 3-D", "absolute", ours=worst, better="lower",
        holds=worst < 1e-11, must_hold=True, note="above 1e-11",
    ))  # fmt: skip


def _gather(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Every query's keys gathered: what a naive kernel reads."""
    q, k, v = (t.flatten(1, -3)[0] for t in (q, k, v))
    scores = torch.einsum("ihd,ithd->iht", q * D**-0.5, k[at])
    return torch.einsum("iht,ithd->ihd", scores.softmax(-1), v[at])[None]


def _tiles(
    shape: tuple[int, ...], window: tuple[int, ...], tile: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (tiles, a) and keys (tiles, b) of each tile, and the mask (tiles, 1, a, b)."""
    seen = torch.from_numpy(neighbor_indices(shape, window))
    grid = torch.arange(math.prod(shape)).view(shape)
    queries = grid
    for axis, size in enumerate(tile):
        queries = queries.unfold(axis, size, size)
    queries = queries.reshape(-1, math.prod(tile))
    keys = []
    for tokens in queries:
        box = grid
        corner = seen[tokens].amin()
        for axis, (n, size, k) in enumerate(zip(shape, tile, window, strict=True)):
            step = math.prod(shape[axis + 1 :])
            wide = min(size + k - 1, n)
            first = min(int(corner) // step % n, n - wide)
            box = box.narrow(axis, first, wide)
        keys.append(box.flatten())
    stacked = torch.stack(keys)
    mask = torch.zeros(*queries.shape, stacked.shape[1], dtype=torch.bool)
    for i in range(len(queries)):
        mask[i] = _member(seen[queries[i]], stacked[i])
    return queries, stacked, mask[:, None]


def _member(windows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Which keys (b,) are in each window (a, k): both rise."""
    place = torch.searchsorted(windows.contiguous(), keys.expand(len(windows), -1).contiguous())
    return windows.gather(1, place.clamp(max=windows.shape[1] - 1)) == keys


def _tiled(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tiles: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    queries, keys, mask = tiles
    q, k, v = (t.flatten(1, -3)[0] for t in (q, k, v))
    a, b, c = (t[at].transpose(1, 2) for t, at in ((q, queries), (k, keys), (v, keys)))
    out = F.scaled_dot_product_attention(a, b, c, mask).transpose(1, 2)
    return torch.zeros_like(q).index_copy(0, queries.flatten(), out.flatten(0, 1))[None]


def _times(
    shape: tuple[int, ...],
    window: tuple[int, ...],
    tile: tuple[int, ...],
    times: dict[str, list[float]],
    quick: bool,
) -> None:
    """Forward and backward, milliseconds, the median of some turns."""
    q, k, v = _draw(shape)
    n, generator = math.prod(shape), torch.Generator().manual_seed(1)
    grad = torch.randn(1, n, H, D, generator=generator)
    tiles = _tiles(shape, window, tile)
    at = torch.from_numpy(neighbor_indices(shape, window))
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "gather": lambda: _gather(q, k, v, at),
        "tiled": lambda: _tiled(q, k, v, tiles),
        "mercer": lambda: ATTEND[len(shape)](q, k, v, window).flatten(1, -3),
    }
    if n <= 4096:
        mask = torch.from_numpy(neighborhood_mask(shape, window))
        ways["masked"] = lambda: _dense(q, k, v, mask)
    outputs = {}
    for name in times:
        if name not in ways:
            times[name].append(math.nan)
            continue
        seconds = []
        for turn in range(1 + (2 if name in ("gather", "masked") or quick else 7)):
            start = time.perf_counter()
            out = ways[name]()
            out.backward(grad)
            if turn:
                seconds.append(time.perf_counter() - start)
        outputs[name] = out.detach()
        times[name].append(1e3 * statistics.median(seconds))
    for name, out in outputs.items():
        apart = float((out - outputs["mercer"]).abs().max())
        assert apart < 1e-4, f"{name} is another attention, apart by {apart}"


def _speed(name: str, times: dict[str, list[float]], rows: list[Row]) -> None:
    def ratios(over: str, under: str) -> list[float]:
        pairs = zip(times[over], times[under], strict=True)
        return [a / b for a, b in pairs if not math.isnan(a)]

    gathered, tiled, masked = (ratios(w, "mercer") for w in ("gather", "tiled", "masked"))
    last = times["tokens"][-1]
    rows.append(Row(
        f"{name}, {last} tokens, forward and backward: mercer against a gather", "ms", baseline=times["gather"][-1],
        ours=times["mercer"][-1], better="lower", holds=gathered[-1] >= 3, must_hold=True,
        note=f"{gathered[-1]:.2g} times as fast",
    ))  # fmt: skip
    rows.append(Row(
        f"{name}, {last} tokens, forward and backward: mercer against tiles in torch", "ms",
        baseline=times["tiled"][-1], ours=times["mercer"][-1], better="lower", holds=tiled[-1] >= 4,
        spread=(min(times["mercer"][-1], times["tiled"][-1]), max(times["mercer"][-1], times["tiled"][-1])),
        note=f"{tiled[-1]:.2g} times as fast, not 4",
    ))  # fmt: skip
    inside = ratios("gather", "tiled")
    rows.append(Row(
        f"{name}: tiles in torch against a gather, by tokens", "x faster", ours=", ".join(f"{r:.2g}" for r in inside),
        paper="3 and more", better="higher", holds=inside[-1] >= 3, note="not 3 times",
    ))  # fmt: skip
    rows.append(Row(
        f"{name}: mercer against dense attention through a mask, by tokens", "x faster",
        ours=", ".join(f"{r:.3g}" for r in masked), better="higher", holds=masked[-1] > masked[0] > 1,
        note="does not grow with the number of tokens",
    ))  # fmt: skip


_MEMORY = """
import math, sys, torch
from mercer.nn.attention.neighborhood import na1d
def peak(what):
    for line in open("/proc/self/status"):
        if line.startswith(what): return int(line.split()[1])
def work(n):
    q, k, v = (torch.randn(1, n, 4, 32, requires_grad=True) for _ in range(3))
    grad = torch.randn(1, n, 4, 32)
    open("/proc/self/clear_refs", "w").write("5")
    before = peak("VmRSS")
    na1d(q, k, v, 65).backward(grad)
    return (peak("VmHWM") - before) * 1024 / (3 * q.numel() * 4)
work(512)
print(work(int(sys.argv[1])))
"""


def _growth(quick: bool, rows: list[Row]) -> None:
    short, long = (1024, 8192) if quick else (8192, 65_536)
    seconds = {}
    for n in (short, long):
        q, k, v = _draw((n,))
        grad = torch.randn(1, n, H, D)
        turns = []
        for _ in range(4):
            start = time.perf_counter()
            na1d(q, k, v, 65).backward(grad)
            turns.append(time.perf_counter() - start)
        seconds[n] = statistics.median(turns[1:])
    ratio = seconds[long] / seconds[short]
    rows.append(Row(
        f"time of {long} tokens over that of {short}, window 65", "", ours=ratio, paper=8.0, better="lower",
        holds=ratio <= 9, note="grows faster than the sequence",
    ))  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(long)], capture_output=True, text=True, check=True
        )
        extra = float(done.stdout)
    except (subprocess.CalledProcessError, ValueError, OSError):
        rows.append(Row(
            "peak of memory", "", better="lower", holds="not-testable-here", note="needs Linux's /proc",
        ))  # fmt: skip
        return
    rows.append(Row(
        f"peak of memory beyond q, k and v, {long} tokens, output and gradients included", "of q, k and v", ours=extra,
        baseline=long / (3 * D), better="lower", holds=extra <= 3, must_hold=True,
        note="more than three copies (the baseline is one n x n matrix a head)",
    ))  # fmt: skip


def _networks(rows: list[Row]) -> None:
    sizes = {}
    with torch.device("meta"):
        for name in NAT_VARIANTS:
            sizes[name] = sum(p.numel() for p in nat(name).parameters())
    for name, paper in PUBLISHED.items():
        rows.append(Row(
            f"parameters of {name}", "", ours=sizes[name], paper=paper, better="equal",
            holds=round(sizes[name] / 1e6) in (round(paper / 1e6), round(paper / 1e6) + 1), must_hold=True,
            note="not the published size",
        ))  # fmt: skip


def plot(evidence: Evidence, figure: Any) -> None:
    """Times of each way by the number of tokens."""
    names = [name for name in evidence.figures if "window" in name]
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        times = evidence.figures[name]
        for way, label in (
            ("gather", "gather"),
            ("masked", "dense, masked"),
            ("tiled", "tiles in torch"),
            ("mercer", "mercer"),
        ):
            y = np.array([float(t) for t in times[way]])
            axes.loglog(times["tokens"], y, "o-", label=label, linewidth=2.5 if way == "mercer" else 1.2)
        axes.set(title=f"{name}, forward and backward", xlabel="tokens", ylabel="ms")
        axes.legend()
