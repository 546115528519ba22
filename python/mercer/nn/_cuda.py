"""Loads the CUDA kernels and runs them on torch tensors.

The sources travel inside the extension and are compiled by NVRTC, through CuPy, when a kernel of their family is first
used on a device; CuPy keeps the machine code on disk for the next process. Tensors are handed over by address on
torch's current stream: nothing is copied and nothing waits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from mercer.nn import _dispatch
from mercer.ops import _windows

__all__ = [
    "OPTIONS",
    "chamfer",
    "fde",
    "log_bessel",
    "log_kernel_sums",
    "neighborhood",
    "neighborhood_attention",
    "neighborhood_attention_gradients",
    "scatterbrain_tiles",
]

#: No contraction of a*b + c: the error-free transformations in the kernels count on it.
OPTIONS = ("--std=c++17", "--fmad=false")
BLOCK = 128
#: Blocks in flight a multiprocessor; a kernel strides over what is left.
WAVES = 16
#: Of cuda/kernel_sum.cu: queries a block, bandwidths a launch.
KERNEL_SUM_QUERIES, KERNEL_SUM_GRID = 32, 32


def log_bessel(name: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The function of that name, elementwise, on the device of `x`; see :func:`mercer.nn._dispatch.log_bessel`."""
    kind = "f64" if x.dtype == torch.float64 else "f32"
    kernel = _module("log_bessel", x.device.index or 0).get_function(f"{name}_{kind}")
    _refuse_bad(name, v, x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    n = out.numel()
    if n:
        v, v_step = _flat(v)
        x, x_step = _flat(x)
        _launch(kernel, n, x.device, (v.data_ptr(), x.data_ptr(), out.data_ptr(), n, v_step, x_step))
    return out


def log_kernel_sums(
    X: torch.Tensor,
    Y: torch.Tensor,
    h: torch.Tensor,
    weights: torch.Tensor | None,
    kernel: str,
    leave_one_out: bool,
) -> torch.Tensor:
    """On the device of `X`; see :func:`mercer.nn._dispatch.log_kernel_sums`. Bad bandwidths give NaN or infinity."""
    import cupy

    device, (m, d), n = X.device, X.shape, len(Y)
    run = _module("kernel_sum", device.index or 0).get_function(
        "kernel_sums_f64" if X.dtype == torch.float64 else "kernel_sums_f32"
    )
    X, Y = X.contiguous(), Y.contiguous()
    w = X.new_ones(1) if weights is None else weights.to(X.dtype).contiguous()
    root = kernel == "exponential"
    blocks = -(-m // KERNEL_SUM_QUERIES)
    # Slices of the data until every multiprocessor has some blocks.
    wanted = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    slices = max(1, min(-(-wanted // max(blocks, 1)), -(-n // 1024), 65535))
    stream = torch.cuda.current_stream(device)
    out = []
    for part in h.split(KERNEL_SUM_GRID, dim=1):
        scales = (1 / part if root else 0.5 / part**2).to(X.dtype).contiguous()
        grid = scales.shape[1]
        least, sums = X.new_empty(slices, m, 1), X.new_empty(slices, m, grid)
        if m:
            step = grid if len(scales) > 1 else 0
            pointers = (t.data_ptr() for t in (X, Y, w, scales, least, sums))
            numbers = (m, n, d, grid, step, int(weights is not None), int(leave_one_out), int(root))
            with cupy.cuda.Device(device.index or 0):
                with cupy.cuda.ExternalStream(stream.cuda_stream, device.index or 0):
                    run((blocks, slices), (128,), (*pointers, *numbers))
        shift = torch.where(torch.isinf(least), 0.0, least) * scales
        out.append(torch.logsumexp(sums.log() - shift, 0))
    return torch.cat(out, 1)


def neighborhood(name: str, left: torch.Tensor, right: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """One of the unfused operators on the device of `left`, by gathers of torch; see `_dispatch.neighborhood`."""
    grid = _dispatch.grid_of(axes)
    at = torch.from_numpy(_windows.indices(grid)).to(left.device)  # (n, window)
    there, at = at >= 0, at.clamp(min=0)
    flat_left, flat_right = left.flatten(2, -2), right.flatten(2, -2)
    if name == "products":
        out = torch.stack([(flat_left * flat_right[:, :, s]).sum(-1) for s in at.T], -1) * there
        return out.view(*left.shape[:-1], -1)
    weights = flat_left * there
    out = torch.zeros_like(flat_right)
    for slot, s in enumerate(at.T):
        if name == "aggregate":
            out += weights[..., slot, None] * flat_right[:, :, s]
        else:
            out.index_add_(2, s, weights[..., slot, None] * flat_right)
    return out.view(right.shape)


def neighborhood_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, axes: Sequence[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """On the device of `query`; see `_dispatch.neighborhood_attention`. float64 runs on the CPU."""
    _check_columns(query, value)
    if query.dtype == torch.float64:
        out, lse = _dispatch.neighborhood_attention(query.cpu(), key.cpu(), value.cpu(), axes, scale)
        return out.to(query.device), lse.to(query.device)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    lse = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
    geometry = _geometry(query, key, value, axes)
    arguments = [t.data_ptr() for t in (query, key, value, out, lse, geometry)]
    _neighborhood_kernel("forward", query, _blocks(axes, 32), query.shape[-2], (*arguments, float(scale)))
    return out, lse


def neighborhood_attention_gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    grad_lse: torch.Tensor | None,
    axes: Sequence[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """On the device of `query`; see `_dispatch.neighborhood_attention_gradients`."""
    if query.dtype == torch.float64:
        q, k, v, o, log, g = (t.cpu() for t in (query, key, value, out, lse, grad))
        by_lse = None if grad_lse is None else grad_lse.cpu()
        by_q, by_k, by_v = _dispatch.neighborhood_attention_gradients(q, k, v, o, log, g, by_lse, axes, scale)
        return by_q.to(query.device), by_k.to(query.device), by_v.to(query.device)
    query, key, value, grad = (t.contiguous() for t in (query, key, value, grad))
    shift = (out.float() * grad.float()).sum(-1)
    if grad_lse is not None:
        shift = shift - grad_lse
    shift, lse = shift.contiguous(), lse.contiguous()
    by_query, by_key, by_value = (torch.empty_like(t) for t in (query, key, value))
    geometry = _geometry(query, key, value, axes)
    common = [t.data_ptr() for t in (query, key, value, grad, lse, shift)]
    blocks, last = _blocks(axes, 16), (geometry.data_ptr(), float(scale))
    _neighborhood_kernel("by_query", query, blocks, query.shape[-2], (*common, by_query.data_ptr(), *last))
    to = (by_key.data_ptr(), by_value.data_ptr())
    _neighborhood_kernel("by_key", query, blocks, key.shape[-2], (*common, *to, *last))
    return by_query, by_key, by_value


def scatterbrain_tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    features: tuple[torch.Tensor, torch.Tensor] | None,
    queries: torch.Tensor,
    keys: torch.Tensor,
    count: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the tiles of a support add to each of their queries, (N, tiles, a) and twice (N, tiles, a, D).

    The largest score, the sums of A v relative to its exponential, and those of phi·phi v; all float32. A pair whose
    count is 0 does not count.
    """
    n, (tiles, a, b) = len(q), count.shape[1:]
    m = 0 if features is None else features[0].shape[-1]
    top = q.new_empty(n, tiles, a)
    exact, low = q.new_empty(n, tiles, a, v.shape[-1]), q.new_zeros(n, tiles, a, v.shape[-1])
    fq, fk = (q, k) if features is None else (t.contiguous() for t in features)
    tensors = [
        t.contiguous() for t in (q, k, v, fq, fk, queries, keys, count.to(torch.int8), top, exact, low)
    ]
    shared = [int(len(t) == n and n > 1) for t in (queries, keys, count)]
    numbers = (q.shape[1], k.shape[1], q.shape[-1], v.shape[-1], m, tiles, a, b, *shared, float(temperature))
    pieces = -(-a // 32)
    kernel = _module("scatterbrain", q.device.index or 0).get_function("tiles")
    _run_problems(kernel, tiles * pieces, n, q.device, (*(t.data_ptr() for t in tensors), *numbers))
    return top, exact, low


def _check_columns(query: torch.Tensor, value: torch.Tensor) -> None:
    if max(query.shape[-1], value.shape[-1]) > 128:
        raise ValueError(f"query must have at most 128 columns a head on a GPU, got {query.shape[-1]}")


def _geometry(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, axes: Sequence[int]
) -> torch.Tensor:
    """The sizes, as cuda/neighborhood.cu wants them."""
    missing = [1, 1, 1, 1, 0] * (3 - len(axes) // 5)
    sizes = [len(query), query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1]]
    return torch.tensor([*sizes, *missing, *axes], dtype=torch.int64).to(query.device)


def _blocks(axes: Sequence[int], tile: int) -> int:
    lengths, last = axes[0::5], axes[-5:]
    lines = math.prod(lengths[:-1]) * last[3]
    longest = (last[0] + last[3] - 1) // last[3]
    return lines * ((longest + tile - 1) // tile)


def _neighborhood_kernel(name: str, like: torch.Tensor, blocks: int, heads: int, arguments: tuple) -> None:
    kinds = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    kernel = _module("neighborhood", like.device.index or 0).get_function(f"{name}_{kinds[like.dtype]}")
    _run_problems(kernel, blocks, len(like) * heads, like.device, arguments)


def _run_problems(kernel: Any, blocks: int, problems: int, device: torch.device, arguments: tuple) -> None:
    """So many blocks for each problem (batch x heads)."""
    if problems > 65535:
        raise ValueError(f"query must have at most 65535 problems (batch x heads) on a GPU, got {problems}")
    if blocks and problems:
        _run(kernel, (blocks, problems), device, arguments)


def chamfer(
    queries: torch.Tensor, query_offsets: torch.Tensor, documents: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """(queries, documents) Chamfer similarity of packed sets; see `mercer.nn.retrieval.chamfer_packed`."""
    device = queries.device
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    x, y = queries.to(dtype).contiguous(), documents.to(dtype).contiguous()
    ends = [o.to(device, torch.int64).contiguous() for o in (query_offsets, offsets)]
    out = x.new_empty(len(ends[1]) - 1, len(ends[0]) - 1)
    kernel = _module("chamfer", device.index or 0).get_function(_typed("chamfer", dtype))
    step = 65535  # queries a launch: the second side of a grid
    for first in range(0, out.shape[1] if len(out) else 0, step):
        part = x.new_empty(len(out), min(step, out.shape[1] - first))
        these = ends[0][first:]
        pointers = (x, these, y, ends[1], ends[1], part)
        _run(kernel, part.shape, device, (*(t.data_ptr() for t in pointers), x.shape[1], 0))
        out[:, first : first + step] = part
    return out.T


def fde(
    tokens: torch.Tensor,
    offsets: torch.Tensor,
    planes: torch.Tensor,
    projections: torch.Tensor | None,
    sketch: tuple[torch.Tensor, torch.Tensor] | None,
    n_features: int,
    *,
    queries: bool,
    fill: bool,
) -> torch.Tensor:
    """(sets, n_features) encodings; planes (R, bits, dim), projections (R, dim, p), all on the device of the tokens."""
    device = tokens.device
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    x, planes = tokens.to(dtype).contiguous(), planes.to(dtype).contiguous()
    ends = offsets.to(device, torch.int64).contiguous()
    (n, d), (R, bits) = x.shape, planes.shape[:2]
    strings = torch.empty(R, n, dtype=torch.int32, device=device)
    module = _module("fde", device.index or 0)
    pointers = tuple(t.data_ptr() for t in (x, planes, strings))
    blocks = WAVES * torch.cuda.get_device_properties(device).multi_processor_count
    partition = module.get_function(_typed("fde_partition", dtype))
    if n:
        _run(partition, (min(-(-n // 4), blocks),), device, (*pointers, n, d, R, bits))
    if projections is None:
        y, p, step = x, d, 0
    else:
        p = projections.shape[2]
        y, step = torch.einsum("nd,rdp->nrp", x, projections.to(dtype)).reshape(n, R * p).contiguous(), p
    place, sign = (ends, x) if sketch is None else (sketch[0].contiguous(), sketch[1].to(dtype).contiguous())
    sets = len(ends) - 1
    out = x.new_zeros(sets, n_features)
    kernel = module.get_function(_typed("fde_blocks", dtype))
    numbers = (
        n,
        sets,
        R,
        bits,
        p,
        y.shape[1],
        step,
        n_features,
        int(queries),
        int(fill),
        int(sketch is not None),
    )
    pointers = tuple(t.data_ptr() for t in (strings, y, ends, place, sign, out))
    if sets:
        _run(kernel, (min(-(-sets * R * 2**bits // 4), blocks),), device, (*pointers, *numbers))
    return out


def _typed(name: str, dtype: torch.dtype) -> str:
    return f"{name}_{'f64' if dtype == torch.float64 else 'f32'}"


def _run(kernel: Any, grid: Any, device: torch.device, arguments: tuple) -> None:
    """Blocks of 128 threads on torch's stream."""
    import cupy

    stream = torch.cuda.current_stream(device)
    with cupy.cuda.Device(device.index or 0), cupy.cuda.ExternalStream(stream.cuda_stream, device.index or 0):
        kernel(tuple(grid), (BLOCK,), arguments)


def _refuse_bad(name: str, v: torch.Tensor, x: torch.Tensor) -> None:
    if torch.cuda.is_current_stream_capturing():
        return  # A graph under capture cannot wait for an answer; the kernel writes NaN there.
    bad_v = v < 0
    if name.startswith("log_") and "ratio" not in name or name == "dlog_kv_dv":
        # K is even in its order, I in a whole one.
        bad_v = bad_v & (v != v.round()) if "iv" in name else torch.zeros_like(bad_v)
    bad = torch.stack([(x < 0).any(), bad_v.any()]).tolist()
    for argument, values, is_bad in (("x", x, x < 0), ("v", v, bad_v)):
        if bad[argument == "v"]:
            at = tuple(is_bad.nonzero()[0].tolist())
            allowed = ">= 0" if argument == "x" else ">= 0 or, for I and K themselves, whole"
            where = at[0] if len(at) == 1 else at
            raise ValueError(f"{argument} must be {allowed}, got {values[at].item()} at index {where}")


def _flat(t: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The tensor so that element i is at address + i * step: one element for all, or one each."""
    if all(stride == 0 or size == 1 for size, stride in zip(t.shape, t.stride(), strict=True)):
        return t, 0
    return t.contiguous(), 1


def _launch(kernel: Any, n: int, device: torch.device, arguments: tuple) -> None:
    """Enough blocks for n elements, or as many as the device works on at a time."""
    waves = WAVES * torch.cuda.get_device_properties(device).multi_processor_count
    _run(kernel, (min(-(-n // BLOCK), waves),), device, arguments)


@functools.cache
def _module(family: str, device: int) -> Any:
    try:
        import cupy
    except ImportError as error:
        major = (torch.version.cuda or "12").split(".")[0]
        raise ImportError(
            f"tensors on CUDA need CuPy to compile mercer's kernels: pip install cupy-cuda{major}x"
        ) from error
    with cupy.cuda.Device(device):
        return cupy.RawModule(code=_dispatch.cuda_source(family), options=OPTIONS)
