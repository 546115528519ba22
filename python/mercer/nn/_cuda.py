"""Loads the CUDA kernels and runs them on torch tensors.

The sources travel inside the extension and are compiled by NVRTC, through CuPy, when a kernel of their family is first
used on a device; CuPy keeps the machine code on disk for the next process. Tensors are handed over by address on
torch's current stream: nothing is copied and nothing waits.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from mercer.nn import _dispatch

__all__ = ["OPTIONS", "chamfer", "fde", "log_bessel", "log_kernel_sums"]

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
    import cupy

    blocks = min(-(-n // BLOCK), WAVES * torch.cuda.get_device_properties(device).multi_processor_count)
    stream = torch.cuda.current_stream(device)
    with cupy.cuda.Device(device.index or 0), cupy.cuda.ExternalStream(stream.cuda_stream, device.index or 0):
        kernel((blocks,), (BLOCK,), arguments)


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
