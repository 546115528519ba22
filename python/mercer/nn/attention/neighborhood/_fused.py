"""The fused attention on tensors, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mercer import _checks
from mercer.nn import _dispatch
from mercer.nn._operator import Operator
from mercer.nn.attention.neighborhood._products import _real, _same
from mercer.ops import _windows

__all__ = ["flex_mask_mod", "merge_attentions", "na1d", "na2d", "na3d"]

Ints = int | Sequence[int]
Flags = bool | Sequence[bool]


def na1d(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: torch.Tensor | None = None,
    additional_values: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Neighborhood attention on a sequence: every token attends to its `kernel_size` nearest, exactly.

    Args:
        query: (B, X, H, D), heads last. float32 and float64; float16 and bfloat16 are computed in float32 on the
            CPU, accumulated in float32 on a GPU, and returned as they came.
        key: (B, X, Hk, D), value: (B, X, Hk, Dv), of the same dtype and device; H is a multiple of Hk, and query head
            h uses the heads h div (H/Hk) of keys and values.
        kernel_size: Keys that a query sees; even windows have one more on the left. At borders the window is shifted,
            not cut, unless it is causal.
        stride: Neighbouring queries that share a window; `stride == kernel_size` is attention in blocks.
        dilation: Step from one key to the next; `kernel_size` x `dilation` fits into the sequence.
        is_causal: Whether keys end at the query.
        scale: Times the products; default D^(-1/2).
        additional_keys, additional_values: (B, E, Hk, D) and (B, E, Hk, Dv), seen by every query in the same softmax.
        return_lse: Also give the logarithm of the sum of the exponentials of the scores; it is differentiable.

    Returns:
        (B, X, H, Dv), and with `return_lse` also (B, X, H), natural logarithms, in float32 or float64. Gradients may be
        taken once.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not agree; windows that do not fit.

    Cost: 4 B H X window D flops forward and 10 backward; memory of a few copies of the tensors, whatever the window.
    NaN in a key spreads to the queries that share a tile with those that see it. Hassani, Hwu and Shi 2024; the strides
    and even windows are those of arXiv 2504.16922.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import na1d
        >>> q, k, v = torch.randn(3, 1, 100, 4, 16, generator=torch.Generator().manual_seed(0))
        >>> na1d(q, k[:, :, :2], v[:, :, :2], kernel_size=9, is_causal=True).shape
        torch.Size([1, 100, 4, 16])
    """
    how = (kernel_size, stride, dilation, is_causal)
    return _attention(1, query, key, value, how, scale, (additional_keys, additional_values), return_lse)


def na2d(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: torch.Tensor | None = None,
    additional_values: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Neighborhood attention on an image: :func:`na1d` with tensors (B, X, Y, H, D), and one number for both
    axes or two.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import na2d
        >>> q, k, v = torch.randn(3, 1, 16, 20, 4, 16, generator=torch.Generator().manual_seed(0))
        >>> na2d(q, k, v, kernel_size=7, dilation=(2, 1)).shape
        torch.Size([1, 16, 20, 4, 16])
    """
    how = (kernel_size, stride, dilation, is_causal)
    return _attention(2, query, key, value, how, scale, (additional_keys, additional_values), return_lse)


def na3d(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: torch.Tensor | None = None,
    additional_values: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Neighborhood attention on a volume or a video: :func:`na1d` with tensors (B, X, Y, Z, H, D).

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import na3d
        >>> q, k, v = torch.randn(3, 1, 4, 8, 8, 2, 16, generator=torch.Generator().manual_seed(0))
        >>> na3d(q, k, v, kernel_size=(2, 5, 5), is_causal=(True, False, False)).shape
        torch.Size([1, 4, 8, 8, 2, 16])
    """
    how = (kernel_size, stride, dilation, is_causal)
    return _attention(3, query, key, value, how, scale, (additional_keys, additional_values), return_lse)


def merge_attentions(
    outputs: Sequence[torch.Tensor], lses: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One attention over the union of disjoint sets of keys, from the attentions over each.

    Args:
        outputs: Tensors of one shape (..., D).
        lses: For each, the logarithm of its sum of exponentials, (...); -inf for a query that saw no key there.

    Returns:
        The output and its log-sum-exp, differentiable in all. A query that saw no key at all gets 0 and -inf.

    Raises:
        ValueError: None at all, or shapes that do not agree.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import merge_attentions
        >>> out, lse = merge_attentions([torch.zeros(1, 2), torch.ones(1, 2)], [torch.zeros(1), torch.ones(1)])
        >>> out.round(decimals=4)
        tensor([[0.7311, 0.7311]])
    """
    if not outputs or len(outputs) != len(lses):
        raise ValueError(
            f"outputs and lses must be as many, at least one, got {len(outputs)} and {len(lses)}"
        )
    for o, x in zip(outputs, lses, strict=True):
        if o.shape != outputs[0].shape or x.shape != o.shape[:-1]:
            raise ValueError(
                f"outputs must have the shape {tuple(outputs[0].shape)} and lses all but its last, "
                f"got {tuple(o.shape)} and {tuple(x.shape)}"
            )
    stacked = torch.stack(list(lses))
    most = stacked.detach().amax(0)
    most = torch.where(torch.isneginf(most), 0.0, most)
    shares = (stacked - most).exp()
    total = shares.sum(0)
    shares = shares / torch.where(total > 0, total, 1.0)
    merged = (torch.stack(list(outputs)) * shares.unsqueeze(-1).to(outputs[0].dtype)).sum(0)
    return merged, total.log() + most


def flex_mask_mod(
    shape: Sequence[int], kernel_size: Ints, stride: Ints = 1, dilation: Ints = 1, is_causal: Flags = False
) -> Any:
    """The neighborhood as a `mask_mod` for :func:`torch.nn.attention.flex_attention.create_block_mask`.

    Arguments and errors as for :func:`mercer.ops.neighborhood_mask`; tokens are numbered row-major.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import flex_mask_mod
        >>> sees = flex_mask_mod((6, 6), 3)
        >>> int(sees(0, 0, torch.tensor(7), torch.arange(36)).sum())
        9
    """
    grid = _windows.axes(tuple(shape), kernel_size, stride, dilation, is_causal)

    def sees(b: Any, h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        allowed: Any = True
        for n, k, s, d, causal in reversed(grid):
            i, t = query % n, key % n
            query, key = query // n, key // n
            j, own = i // d, t // d
            m = (n - i % d + d - 1) // d
            if causal:
                leader = torch.minimum(j // s * s + s - 1, m - 1)
                there = (own >= leader - k + 1) & (own <= j)
            else:
                start = torch.minimum(
                    (torch.minimum(j // s * s + s // 2, m - 1) - k // 2).clamp(min=0), m - k
                )
                there = (own >= start) & (own < start + k)
            allowed = allowed & there & (i % d == t % d)
        return allowed

    return sees


def _attention(
    rank: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    how: tuple,
    scale: float | None,
    extra: tuple[torch.Tensor | None, torch.Tensor | None],
    return_lse: bool,
) -> Any:
    _real("query", query)
    for name, t in (("key", key), ("value", value)):
        _same(name, t, "query", query)
    grid, factor = _windows.of_attention(rank, query.shape, key.shape, value.shape, how, scale)
    _checks.flag("return_lse", return_lse)
    for name, more in zip(("additional_keys", "additional_values"), extra, strict=True):
        if more is not None:
            _same(name, more, "query", query)
    keys, values = extra
    _windows.check_additional(
        key.shape, value.shape, *[None if more is None else more.shape for more in extra]
    )
    dtype = query.dtype
    out, lse = _neighborhood_attention(query, key, value, _windows.flat(grid), factor)
    if keys is not None and values is not None:
        with torch.autocast(query.device.type, enabled=False):
            other = _additional(query.to(lse.dtype), keys.to(lse.dtype), values.to(lse.dtype), factor)
            out, lse = merge_attentions([out.to(lse.dtype), other[0]], [lse, other[1]])
    return (out.to(dtype), lse) if return_lse else out.to(dtype)


def _additional(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query to the same keys (B, E, Hk, D)."""
    b, _, heads, d = keys.shape
    grouped = query.reshape(b, -1, heads, query.shape[-2] // heads, d)
    scores = torch.einsum("bnhgd,behd->bnhge", grouped * scale, keys)
    lse = scores.logsumexp(-1)
    out = torch.einsum("bnhge,behd->bnhgd", (scores - lse.unsqueeze(-1)).exp(), values)
    return out.reshape(*query.shape[:-1], -1), lse.reshape(query.shape[:-1])


# ------------------------------------------------------------------------------------------- as torch knows it


_neighborhood_attention = Operator("mercer::neighborhood_attention", _dispatch.neighborhood_attention)
_gradients = Operator("mercer::neighborhood_attention_gradients", _dispatch.neighborhood_attention_gradients)


@_neighborhood_attention.register_fake
def _(query, key, value, axes, scale):  # type: ignore[no-untyped-def]
    lse = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(*query.shape[:-1], value.shape[-1]), query.new_empty(query.shape[:-1], dtype=lse)


@_gradients.register_fake
def _(query, key, value, out, lse, grad, grad_lse, axes, scale):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, value, ctx.axes, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output)


def _backward(ctx, grad, grad_lse):  # type: ignore[no-untyped-def]
    query, key, value, out, lse = ctx.saved_tensors
    if grad is None and grad_lse is None:
        return None, None, None, None, None
    grad = torch.zeros_like(out) if grad is None else grad
    return *_gradients(query, key, value, out, lse, grad, grad_lse, ctx.axes, ctx.scale), None, None


_neighborhood_attention.register_autograd(_backward, setup_context=_keep)
