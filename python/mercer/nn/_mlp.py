"""Two layers over the channels with a GELU between them, the half of most blocks, quick on the CPU in eager mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from mercer._backend import is_reference
from mercer.nn import _dispatch
from mercer.nn._operator import gradients_of, is_plain

__all__ = ["gelu_mlp"]

#: Entries of the hidden layer that are worked on at a time.
PIECE = 1 << 20


def gelu_mlp(
    x: torch.Tensor, up: torch.Tensor, up_bias: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor
) -> torch.Tensor:
    """down GELU(up x + up_bias) + down_bias for the rows of `x`.

    In float32 on the CPU the rows pass in pieces that stay in the cache, GELU is mercer's, and the hidden layer lies in
    memory that is used again. Gradients of gradients, `torch.compile`, export and everything else are torch's.

    Args:
        x: (..., C), contiguous.
        up: (hidden, C).
        up_bias: (hidden,).
        down: (C', hidden).
        down_bias: (C',).

    Returns:
        (..., C').
    """
    inputs = (x, up, up_bias, down, down_bias)
    is_ours = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.numel() > 0 for t in inputs)
    if not is_ours or not is_plain(*inputs) or torch.is_autocast_enabled("cpu") or is_reference():
        return _by_torch(*inputs)
    return _GeluMlp.apply(x.reshape(-1, x.shape[-1]), *inputs[1:]).view(*x.shape[:-1], -1)


def _by_torch(
    x: torch.Tensor, up: torch.Tensor, up_bias: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor
) -> torch.Tensor:
    return functional.linear(functional.gelu(functional.linear(x, up, up_bias)), down, down_bias)


class _GeluMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        up, up_bias, down, down_bias = weights
        hidden, active, out = (_dispatch.empty(len(x), n) for n in (len(up), len(up), len(down)))
        for rows in _pieces(hidden):
            torch.addmm(up_bias, x[rows], up.t(), out=hidden[rows])
            _dispatch.gelu(hidden[rows], active[rows])
            torch.addmm(down_bias, active[rows], down.t(), out=out[rows])
        ctx.save_for_backward(x, *weights, hidden, active)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, hidden, active = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled() or not is_plain(grad):
            return tuple(gradients_of(_by_torch, inputs, grad))
        x, up, up_bias, down, down_bias = inputs
        by_x = _dispatch.empty(*x.shape) if needed[0] else None
        by_up, by_up_bias, by_down, by_down_bias = (
            torch.zeros_like(t) if is_needed else None
            for t, is_needed in zip(inputs[1:], needed[1:], strict=True)
        )
        for rows in _pieces(hidden):
            by_hidden = _dispatch.gelu_gradient(hidden[rows], torch.mm(grad[rows], down))
            if by_x is not None:
                torch.mm(by_hidden, up, out=by_x[rows])
            if by_up is not None:
                by_up.addmm_(by_hidden.t(), x[rows])
            if by_up_bias is not None:
                by_up_bias += by_hidden.sum(0)
            if by_down is not None:
                by_down.addmm_(grad[rows].t(), active[rows])
            if by_down_bias is not None:
                by_down_bias += grad[rows].sum(0)
        return by_x, by_up, by_up_bias, by_down, by_down_bias


def _pieces(hidden: torch.Tensor) -> Iterator[slice]:
    """Rows of about `PIECE` entries, which stay in the cache from one product to the next."""
    parts = max(1, round(hidden.numel() / PIECE))
    ends = [len(hidden) * i // parts for i in range(parts + 1)]
    return map(slice, ends[:-1], ends[1:])
