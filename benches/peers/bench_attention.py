"""Neighborhood attention, forward and backward, float32 on two threads, H = 4 heads of D = 32 (queries need gradients,
as do keys and values): against the same in torch by tiles (64 queries, 8 x 8 or 4 x 4 x 4; their key box gathered, then
`scaled_dot_product_attention` with a mask), against dense `scaled_dot_product_attention` with the n x n mask, against
flex_attention and NATTEN (forward: on the CPU neither has a backward, NATTEN runs on flex_attention there), and against
a matrix product of torch of as many flops (14 n k D a head). Memory is the peak beyond q, k, v and the gradient of the
output, in copies of q, k and v, output and gradients included: of a process each, in place of times. Scatterbrain:
forward, against exact attention and against performer-pytorch. A time is that of a token and head.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from performer_pytorch import FastAttention

from harness import Row, Worker, compare
from mercer.nn.attention.neighborhood import flex_mask_mod, na1d, na2d, na3d
from mercer.nn.attention.scatterbrain import ScatterbrainAttention
from mercer.ops import neighborhood_mask
from mercer.ops._windows import axes, axis_positions

TITLE = "Attention"
THREADS, H, D = 2, 4, 32
#: shape, window, dilation, tile of the torch form
PROBLEMS = (
    ((4096,), (65,), 1, (64,)),
    ((64, 64), (7, 7), 1, (8, 8)),
    ((64, 64), (7, 7), 2, (8, 8)),
    ((16, 16, 16), (3, 5, 5), 1, (4, 4, 4)),
)
ATTEND = {1: na1d, 2: na2d, 3: na3d}


@functools.cache
def tiles(shape: tuple[int, ...], window: tuple[int, ...], dilation: int, tile: tuple[int, ...]):  # type: ignore[no-untyped-def]
    """Queries (tiles, a) and keys (tiles, b) of each tile, and the mask (tiles, a, b)."""
    per_axis = []
    for axis, size in zip(axes(shape, window, 1, dilation), tile, strict=True):
        n, k, _, d, _ = axis
        seen = torch.from_numpy(axis_positions(axis))
        own = []
        for g in range(d):
            group = torch.arange(g, n, d)
            m = len(group)
            box = min(size + k - 1, m)
            for first in range(0, m, size):
                at = torch.arange(first, first + size).clamp(max=m - 1)
                low = int(seen[group[at[0]], 0]) // d
                keys = group[min(low, m - box) + torch.arange(box)]
                mask = (keys[None, :, None] == seen[group[at]][:, None, :]).any(-1)
                own.append((group[at], keys, mask, torch.arange(first, first + size) < m))
        per_axis.append(own)
    queries, keys, masks, there = [], [], [], []
    for parts in itertools.product(*per_axis):
        q = k = torch.zeros(1, dtype=torch.long)
        mask, real = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
        for (a, b, m, r), n in zip(parts, shape, strict=True):
            q, k = (q[:, None] * n + a).flatten(), (k[:, None] * n + b).flatten()
            mask = (mask[:, None, :, None] & m[None, :, None, :]).flatten(2).flatten(0, 1)
            real = (real[:, None] & r).flatten()
        queries.append(q), keys.append(k), masks.append(mask), there.append(real)
    widest = max(map(len, keys))
    keys = [F.pad(k, (0, widest - len(k))) for k in keys]
    masks = [F.pad(m, (0, widest - m.shape[1])) for m in masks]
    return torch.stack(queries), torch.stack(keys), torch.stack(masks)[:, None], torch.stack(there)


def tiled(q, k, v, shape, window, dilation, tile):  # type: ignore[no-untyped-def]
    """The attention of (1, n, H, D), in plain torch."""
    queries, keys, mask, there = tiles(shape, window, dilation, tile)
    q, k, v = (x[0][at].transpose(1, 2) for x, at in ((q, queries), (k, keys), (v, keys)))  # (tiles, H, a, D)
    out = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    return torch.zeros(1, math.prod(shape), H, D).index_copy(1, queries[there], out[there][None])


def rows(quick: bool) -> Iterator[Row]:
    torch.set_num_threads(THREADS)
    for shape, window, dilation, tile in PROBLEMS[:2] if quick else PROBLEMS:
        yield from of_problem(shape, window, dilation, tile, quick)
    yield from of_natten(quick)
    yield from of_memory(quick)
    yield from of_length(quick)
    yield from of_scatterbrain(quick)


def of_problem(shape, window, dilation, tile, quick) -> Iterator[Row]:  # type: ignore[no-untyped-def]
    n, generator = math.prod(shape), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, *shape, H, D, generator=generator, requires_grad=True) for _ in range(3))
    flat = [x.detach().flatten(1, -3).requires_grad_() for x in (q, k, v)]
    grad = torch.randn(1, *shape, H, D, generator=generator)

    def ours() -> None:
        ATTEND[len(shape)](q, k, v, window, dilation=dilation).backward(grad)

    def forward() -> None:
        with torch.no_grad():
            ATTEND[len(shape)](q, k, v, window, dilation=dilation)

    def theirs() -> None:
        tiled(*flat, shape, window, dilation, tile).backward(grad.flatten(1, -3))

    apart = (
        (
            ATTEND[len(shape)](q, k, v, window, dilation=dilation).flatten(1, -3)
            - tiled(*flat, shape, window, dilation, tile)
        )
        .detach()
        .abs()
        .max()
    )
    what = f"{'x'.join(map(str, shape))}, window {'x'.join(map(str, window))}, dilation {dilation}"
    common = {"elements": n * H, "threads": THREADS, "rounds": 3 if quick else 7, "at_least": 0.0}
    yield compare(
        what, "torch, tiled", ours=ours, theirs=theirs, note=f"apart by {float(apart):.0e}", **common
    )
    flops = 14 * n * math.prod(window) * D * H
    side = 1024
    a, b = torch.randn(side, side, generator=generator), torch.randn(side, side, generator=generator)
    times = max(1, round(flops / (2 * side**3)))

    def product() -> None:
        for _ in range(times):
            a @ b

    share = f"ratio: of the product's rate, times {flops / (times * 2 * side**3):.2f}"
    yield compare(what, "a product", ours=ours, theirs=product, note=share, **common)

    if n <= 4096 and not quick:
        mask = torch.from_numpy(neighborhood_mask(shape, window, 1, dilation))
        first = [x.detach().transpose(1, 2).requires_grad_() for x in flat]

        def dense() -> None:
            F.scaled_dot_product_attention(*first, mask).backward(grad.flatten(1, -3).transpose(1, 2))

        common["rounds"] = 3
        yield compare(what, "torch, masked", ours=ours, theirs=dense, **common)
        if len(shape) == 1 and dilation == 1:
            yield from of_flex(what, shape, window, first, forward, common)


def of_flex(what, shape, window, first, forward, common) -> Iterator[Row]:  # type: ignore[no-untyped-def]
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        n = math.prod(shape)
        block = create_block_mask(flex_mask_mod(shape, window), None, None, n, n, device="cpu")
        compiled = torch.compile(flex_attention)
        q, k, v = (x.detach() for x in first)
        with torch.no_grad():
            compiled(q, k, v, block_mask=block)
    except Exception as reason:  # it compiles C++ here, or cannot
        print(f"  flex_attention does not run here: {reason}")
        return

    def flex() -> None:
        with torch.no_grad():
            compiled(q, k, v, block_mask=block)

    yield compare(f"{what}, forward", "flex, compiled", ours=forward, theirs=flex, **common)


def of_natten(quick: bool) -> Iterator[Row]:
    n = 256 if quick else 1024
    arrays = {name: torch.randn(1, n, H, D).numpy() for name in "qkv"}
    q, k, v = map(torch.from_numpy, arrays.values())
    try:
        with Worker("natten", "peer_natten.py", ["torch", "natten>=0.21"], **arrays) as peer:
            apart = abs(peer.result() - na1d(q, k, v, 65).numpy()).max()
            yield compare(
                f"{n}, window 65, dilation 1, forward", "NATTEN", ours=lambda: na1d(q, k, v, 65), theirs=peer,
                elements=n * H, threads=THREADS, rounds=3, at_least=0.0, note=f"apart by {apart:.0e}",
            )  # fmt: skip
    except (RuntimeError, OSError, subprocess.CalledProcessError) as reason:
        print(f"  NATTEN does not run here: {reason}")


_PEAK = """
import sys, torch
import bench_attention as bench
way, n = sys.argv[1], int(sys.argv[2])
def peak(what):
    for line in open("/proc/self/status"):
        if line.startswith(what): return int(line.split()[1])
def work(n):
    q, k, v = (torch.randn(1, n, bench.H, bench.D, requires_grad=True) for _ in range(3))
    grad = torch.randn(1, n, bench.H, bench.D)
    if way == "tiled": bench.tiles((n,), (65,), 1, (64,))
    open("/proc/self/clear_refs", "w").write("5")
    before = peak("VmRSS")
    out = bench.na1d(q, k, v, 65) if way == "ours" else bench.tiled(q, k, v, (n,), (65,), 1, (64,))
    out.backward(grad)
    return (peak("VmHWM") - before) * 1024 / (3 * q.numel() * 4)
work(512)
print(work(n))
"""


def of_memory(quick: bool) -> Iterator[Row]:
    n = 8192 if quick else 65_536

    def copies(way: str) -> float:
        command = [sys.executable, "-c", _PEAK, way, str(n)]
        here = Path(__file__).parent
        path = str(here.parents[1] / "python")  # where `make bench` finds us is relative to another folder
        return float(
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                cwd=here,
                env={**os.environ, "PYTHONPATH": path},
            ).stdout
        )

    try:
        ours, theirs = copies("ours"), copies("tiled")
    except (OSError, ValueError, subprocess.CalledProcessError) as reason:
        print(f"  the peak of memory was not read: {getattr(reason, 'stderr', reason)}")
        return
    ratio = theirs / ours
    note = f"memory: {ours:.2f} copies of q, k and v against {theirs:.2f}"
    yield Row(
        f"{n}, window 65, peak memory",
        "torch, tiled (memory)",
        math.nan,
        math.nan,
        ratio,
        ratio,
        ratio,
        THREADS,
        note,
    )


def of_length(quick: bool) -> Iterator[Row]:
    def work(n: int):  # type: ignore[no-untyped-def]
        q, k, v = (torch.randn(1, n, H, D, requires_grad=True) for _ in range(3))
        grad = torch.randn(1, n, H, D)
        return lambda: na1d(q, k, v, 65).backward(grad)

    long, short = (8192, 1024) if quick else (65_536, 8192)
    yield compare(
        f"{long} tokens, window 65", f"{short} tokens", ours=work(long), theirs=work(short), elements=long * H,
        threads=THREADS, rounds=9, at_least=0.0, note="both ours; linear: 0.125",
    )  # fmt: skip


def of_scatterbrain(quick: bool) -> Iterator[Row]:
    for n in (2048,) if quick else (2048, 8192, 16_384):
        q, k, v = (torch.randn(1, H, n, 64) for _ in range(3))
        layer = ScatterbrainAttention(64, 64, window=64)
        common = {"elements": n * H, "threads": THREADS, "rounds": 3, "at_least": 0.0}
        what = f"Scatterbrain, {n} tokens, 64 features and 64 keys, forward"
        yield compare(
            what, "torch, exact", ours=lambda q=q, k=k, v=v, layer=layer: layer(q, k, v),
            theirs=lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v), **common,
        )  # fmt: skip
        peer = FastAttention(64, nb_features=128)
        low = ScatterbrainAttention(64, 128, None)
        yield compare(
            f"features alone, {n} tokens, 128 features, forward", "performer-pytorch",
            ours=lambda q=q, k=k, v=v, low=low: low(q, k, v), theirs=lambda q=q, k=k, v=v, peer=peer: peer(q, k,
            v), **common,
        )  # fmt: skip
