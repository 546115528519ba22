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

__all__ = ["OPTIONS", "contmix", "depthwise", "depthwise_weight", "log_bessel", "log_kernel_sums"]

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


#: Of cuda/depthwise.cu: the tile, threads a block, taps a thread, and the shared memory every device has.
TILE, DEPTHWISE_THREADS, DEPTHWISE_TAPS, SHARED = (32, 16), 256, 8, 48 << 10


def depthwise_fits(kh: int, kw: int, dilation: int, dtype: torch.dtype) -> bool:
    """Whether a tile with its border and the kernel fit into shared memory."""
    return _depthwise_room(kh, kw, dilation, dtype, TILE[0] * TILE[1]) <= SHARED and kh * kw <= 2048


def _depthwise_room(kh: int, kw: int, dilation: int, dtype: torch.dtype, beside: int) -> int:
    tile = (TILE[0] + (kw - 1) * dilation) * (TILE[1] + (kh - 1) * dilation)
    return (tile + max(beside, kh * kw)) * dtype.itemsize


def depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, turned: bool, dilation: int
) -> torch.Tensor:
    """On the device of `x`; see :func:`mercer.nn._dispatch.depthwise`."""
    like, x, weight = x, x.contiguous(), weight.contiguous()
    (batch, channels, height, width), (kh, kw) = x.shape, weight.shape[2:]
    out = torch.empty_like(x)
    b = x.new_zeros(1) if bias is None else bias.contiguous()
    tiles = -(-width // TILE[0]) * -(-height // TILE[1])
    sizes = (channels, height, width, kh, kw, dilation, int(turned), int(bias is not None))
    room = _depthwise_room(kh, kw, dilation, x.dtype, kh * kw)
    pointers = tuple(t.data_ptr() for t in (x, weight, b, out))
    _run("depthwise", "depthwise", x, (batch * channels, tiles), DEPTHWISE_THREADS, (*pointers, *sizes), room)
    return torch.empty_like(like).copy_(out) if out.stride() != torch.empty_like(like).stride() else out


def depthwise_weight(x: torch.Tensor, grad: torch.Tensor, kh: int, kw: int, dilation: int) -> torch.Tensor:
    """On the device of `x`; see :func:`mercer.nn._dispatch.depthwise_weight`."""
    x, grad = x.contiguous(), grad.contiguous()
    batch, channels, height, width = x.shape
    # Slices of the batch until every multiprocessor has some blocks.
    wanted = 4 * torch.cuda.get_device_properties(x.device).multi_processor_count
    slices = max(1, min(batch, -(-wanted // channels)))
    out = x.new_empty(slices, channels, 1, kh, kw)
    room = _depthwise_room(kh, kw, dilation, x.dtype, TILE[0] * TILE[1])
    arguments = (
        x.data_ptr(),
        grad.data_ptr(),
        out.data_ptr(),
        batch,
        channels,
        height,
        width,
        kh,
        kw,
        dilation,
    )
    _run("depthwise", "depthwise_weight", x, (channels, slices), DEPTHWISE_THREADS, arguments, room)
    return out.sum(0)


def contmix(logits: torch.Tensor, bias: torch.Tensor, value: torch.Tensor, k: int) -> torch.Tensor:
    """Softmax of logits (B, g, H, W, k k) + relative bias, applied to value (B, g, H, W, c); no gradient."""
    logits, bias, value = (t.contiguous() for t in (logits, bias, value))
    _, groups, height, width, channels = value.shape
    out, pixels = torch.empty_like(value), value.numel() // channels
    pointers = tuple(t.data_ptr() for t in (logits, bias, value, out))
    arguments = (*pointers, pixels, groups, height, width, k, channels)
    _run("contmix", "contmix", value, (-(-pixels // 4),), 128, arguments, 0)
    return out


def _run(
    family: str, name: str, like: torch.Tensor, grid: tuple, block: int, arguments: tuple, room: int
) -> None:
    """Launch a kernel for the dtype of `like` on its device and torch's current stream."""
    import cupy

    device = like.device.index or 0
    kernel = _module(family, device).get_function(f"{name}_{'f64' if like.dtype == torch.float64 else 'f32'}")
    stream = torch.cuda.current_stream(like.device)
    with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream.cuda_stream, device):
        kernel(grid, (block,), arguments, shared_mem=room)


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
