"""Neighborhood attention as a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mercer import _checks
from mercer.nn.attention.neighborhood._fused import na1d, na2d, na3d
from mercer.nn.attention.neighborhood._products import neighborhood_av, neighborhood_qk
from mercer.ops import _windows

__all__ = ["NeighborhoodAttention1d", "NeighborhoodAttention2d", "NeighborhoodAttention3d"]

Ints = int | Sequence[int]
Flags = bool | Sequence[bool]


class _NeighborhoodAttention(nn.Module):
    rank: int

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Flags = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        rel_pos_bias: bool = False,
    ) -> None:
        super().__init__()
        embed_dim = _checks.integer("embed_dim", embed_dim, 1)
        self.num_heads = _checks.integer("num_heads", num_heads, 1)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads = {num_heads}, got {embed_dim}")
        # Windows are refused here rather than at the first input: the smallest grid that holds them.
        reach = [
            k * d
            for k, d in zip(_each(kernel_size, self.rank), _each(dilation, self.rank), strict=False)
            if isinstance(k, int) and isinstance(d, int) and k * d > 0
        ]
        lengths = reach if len(reach) == self.rank else [1 << 30] * self.rank
        self.axes = _windows.axes(lengths, kernel_size, stride, dilation, is_causal)
        self.kernel_size = tuple([axis[1] for axis in self.axes])
        self.stride = tuple([axis[2] for axis in self.axes])
        self.dilation = tuple([axis[3] for axis in self.axes])
        self.is_causal = tuple([axis[4] for axis in self.axes])
        self.embed_dim, self.head_dim = embed_dim, embed_dim // num_heads
        self.scale = _windows.scale_of(qk_scale, self.head_dim)
        proj_drop = _checks.real("proj_drop", proj_drop, 0)
        if proj_drop > 1:
            raise ValueError(f"proj_drop must be in [0, 1], got {proj_drop}")
        if rel_pos_bias and any(self.is_causal):
            raise ValueError("rel_pos_bias must be False where an axis is causal, got True")
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.empty(num_heads, *[2 * k - 1 for k in self.kernel_size]))
            nn.init.trunc_normal_(self.rpb, std=0.02)
        else:
            self.register_parameter("rpb", None)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, X..., C) -> (B, X..., C)."""
        if x.dim() != self.rank + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must be (B, X..., {self.embed_dim}) with {self.rank} axes X, got shape {tuple(x.shape)}"
            )
        # (B, X..., 3, H, D) -> three of (B, X..., H, D)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        how = (self.kernel_size, self.stride, self.dilation, self.is_causal)
        if self.rpb is None:
            attend = (na1d, na2d, na3d)[self.rank - 1]
            out = attend(q, k, v, *how, scale=self.scale)
        else:
            q, k, v = (t.movedim(-2, 1) for t in (q, k, v))  # heads first
            weights = neighborhood_qk(q * self.scale, k, *how, rpb=self.rpb).softmax(-1)
            out = neighborhood_av(weights.to(v.dtype), v, *how).movedim(1, -2)
        return self.proj_drop(self.proj(out.flatten(-2)))

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, is_causal={self.is_causal}, "
            f"rel_pos_bias={self.rpb is not None}"
        )


class NeighborhoodAttention1d(_NeighborhoodAttention):
    """Self-attention of every token of a sequence over its nearest neighbours, with its projections.

    Args:
        embed_dim: Columns C of the input and the output.
        num_heads: Divides `embed_dim`.
        kernel_size, stride, dilation, is_causal: As for :func:`na1d`; one for all axes or one each.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        qk_scale: Default (embed_dim / num_heads)^(-1/2).
        proj_drop: Dropout after the output projection.
        rel_pos_bias: A learnt bias for each relative position, `rpb`: runs the unfused operators, as NAT's layers did.

    Shape: (B, X, C) -> (B, X, C).

    Raises:
        TypeError, ValueError: Sizes that do not fit, here; inputs smaller than `kernel_size` x `dilation`, when called.

    The parameters are named and laid out as NATTEN's: `qkv.weight` has its rows ordered (3, heads, columns), `proj`,
    `rpb`.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import NeighborhoodAttention1d
        >>> layer = NeighborhoodAttention1d(32, num_heads=4, kernel_size=7, is_causal=True)
        >>> layer(torch.zeros(2, 50, 32)).shape
        torch.Size([2, 50, 32])
    """

    rank = 1


class NeighborhoodAttention2d(_NeighborhoodAttention):
    """Self-attention of every pixel over its nearest neighbours; arguments as for :class:`NeighborhoodAttention1d`.

    Shape: (B, X, Y, C) -> (B, X, Y, C).

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import NeighborhoodAttention2d
        >>> NeighborhoodAttention2d(32, num_heads=4, kernel_size=7, dilation=2)(torch.zeros(1, 14, 15, 32)).shape
        torch.Size([1, 14, 15, 32])
    """

    rank = 2


class NeighborhoodAttention3d(_NeighborhoodAttention):
    """Self-attention in a volume or a video; arguments as for :class:`NeighborhoodAttention1d`.

    Shape: (B, X, Y, Z, C) -> (B, X, Y, Z, C).

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import NeighborhoodAttention3d
        >>> layer = NeighborhoodAttention3d(32, 4, kernel_size=(3, 5, 5), is_causal=(True, False, False))
        >>> layer(torch.zeros(1, 4, 8, 8, 32)).shape
        torch.Size([1, 4, 8, 8, 32])
    """

    rank = 3


def _each(value: Ints, rank: int) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * rank
