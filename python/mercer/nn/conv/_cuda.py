"""Runs cuda/depthwise.cu and cuda/contmix.cu on torch tensors; :mod:`mercer.nn._cuda` says how kernels are loaded."""

from __future__ import annotations

import torch

from mercer.nn._cuda import _module

__all__ = ["contmix", "depthwise", "depthwise_fits", "depthwise_weight"]

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
