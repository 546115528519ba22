"""NAT and DiNAT, the image networks made of neighborhood attention.

Hassani, Walton, Li, Li and Shi, "Neighborhood Attention Transformer" (CVPR 2023); Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (arXiv 2209.15001). Names of parameters are those of the published checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mercer import _checks
from mercer.nn.attention.neighborhood._layers import NeighborhoodAttention2d

__all__ = ["NAT", "NAT_VARIANTS", "nat"]

_DEPTHS = (3, 4, 18, 5)
#: Dilations of DiNAT for 224 x 224 (maps of 56, 28, 14, 7).
_DILATED = ((1, 8, 1), (1, 4, 1, 4), (1, 2) * 9, (1,) * 5)

#: Every published variant. Accuracies and sizes: the tables of the authors' repository.
NAT_VARIANTS: dict[str, dict[str, Any]] = {
    "nat_mini": dict(
        depths=(3, 4, 6, 5), embed_dim=64, num_heads=(2, 4, 8, 16), mlp_ratio=3, drop_path_rate=0.2
    ),
    "nat_tiny": dict(depths=_DEPTHS, embed_dim=64, num_heads=(2, 4, 8, 16), mlp_ratio=3, drop_path_rate=0.2),
    "nat_small": dict(
        depths=_DEPTHS,
        embed_dim=96,
        num_heads=(3, 6, 12, 24),
        mlp_ratio=2,
        drop_path_rate=0.3,
        layer_scale=1e-5,
    ),
    "nat_base": dict(
        depths=_DEPTHS,
        embed_dim=128,
        num_heads=(4, 8, 16, 32),
        mlp_ratio=2,
        drop_path_rate=0.5,
        layer_scale=1e-5,
    ),
    "dinat_mini": dict(
        depths=(3, 4, 6, 5),
        embed_dim=64,
        num_heads=(2, 4, 8, 16),
        mlp_ratio=3,
        drop_path_rate=0.2,
        dilations=((1, 8, 1), (1, 4, 1, 4), (1, 2) * 3, (1,) * 5),
    ),
    "dinat_tiny": dict(
        depths=_DEPTHS,
        embed_dim=64,
        num_heads=(2, 4, 8, 16),
        mlp_ratio=3,
        drop_path_rate=0.2,
        dilations=_DILATED,
    ),
    "dinat_small": dict(
        depths=_DEPTHS,
        embed_dim=96,
        num_heads=(3, 6, 12, 24),
        mlp_ratio=2,
        drop_path_rate=0.3,
        dilations=_DILATED,
    ),
    "dinat_base": dict(
        depths=_DEPTHS,
        embed_dim=128,
        num_heads=(4, 8, 16, 32),
        mlp_ratio=2,
        drop_path_rate=0.5,
        layer_scale=1e-5,
        dilations=_DILATED,
    ),
    "dinat_large": dict(
        depths=_DEPTHS,
        embed_dim=192,
        num_heads=(6, 12, 24, 48),
        mlp_ratio=2,
        drop_path_rate=0.35,
        dilations=_DILATED,
    ),
    # For 384 x 384 (maps of 96, 48, 24, 12); dilations as far as they reach.
    "dinat_large_384": dict(
        depths=_DEPTHS,
        embed_dim=192,
        num_heads=(6, 12, 24, 48),
        mlp_ratio=2,
        drop_path_rate=0.35,
        dilations=((1, 13, 1), (1, 6, 1, 6), (1, 3) * 9, (1,) * 5),
    ),
    "dinat_large_11x11_384": dict(
        depths=_DEPTHS,
        embed_dim=192,
        num_heads=(6, 12, 24, 48),
        mlp_ratio=2,
        drop_path_rate=0.35,
        kernel_size=11,
        dilations=((1, 8, 1), (1, 4, 1, 4), (1, 2) * 9, (1,) * 5),
    ),
}


def nat(variant: str, **changes: Any) -> NAT:
    """One of the published networks, with fresh weights.

    Args:
        variant: A name in :data:`NAT_VARIANTS`.
        changes: Arguments of :class:`NAT` to change, such as `num_classes`.

    Raises:
        ValueError: Another name.

    Example:
        >>> from mercer.nn.attention.neighborhood import nat
        >>> sum(p.numel() for p in nat("nat_mini").parameters())
        19984174
    """
    if variant not in NAT_VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(map(repr, NAT_VARIANTS))}, got {variant!r}")
    return NAT(**{**NAT_VARIANTS[variant], **changes})


class NAT(nn.Module):
    """An image classifier of four stages of neighborhood attention.

    Args:
        embed_dim: Columns of the first stage; each later one has twice as many.
        depths, num_heads: Layers and heads of each stage.
        mlp_ratio: Hidden columns of the MLPs.
        kernel_size: Window, for both axes.
        dilations: Of each layer of each stage; all 1 by default (NAT).
        num_classes: 0 for none: the forward pass then gives the features.
        in_chans: Channels of the image.
        drop_rate, attn_drop_rate, drop_path_rate: Dropout after projections, unused (the fused and the official layers
            have none on weights), and stochastic depth, which grows linearly with depth.
        layer_scale: Initial value of the learnt scales of each residual, None for none.
        rel_pos_bias: Whether layers have a relative positional bias, as all published ones do.

    Shape: (B, in_chans, h, w) -> (B, num_classes); maps smaller than window x dilation are padded with zeros at
    the right and below.

    Raises:
        TypeError, ValueError: Sizes that do not fit.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import NAT
        >>> net = NAT(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), mlp_ratio=2, num_classes=10)
        >>> net(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float = 3.0,
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        layer_scale: float | None = None,
        rel_pos_bias: bool = True,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads) or (
            dilations is not None and [len(d) for d in dilations] != list(depths)
        ):
            raise ValueError(
                f"depths, num_heads and dilations must agree, got {depths}, {num_heads} and {dilations}"
            )
        if attn_drop_rate:
            raise ValueError(f"attn_drop_rate must be 0, got {attn_drop_rate}")
        self.num_classes = _checks.integer("num_classes", num_classes, 0)
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = _Tokenizer(in_chans, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = [drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        self.levels = nn.ModuleList()
        for stage, depth in enumerate(depths):
            before = sum(depths[:stage])
            layers = [
                _Layer(
                    embed_dim * 2**stage,
                    num_heads[stage],
                    kernel_size,
                    1 if dilations is None else dilations[stage][i],
                    mlp_ratio,
                    drop_rate,
                    rates[before + i],
                    layer_scale,
                    rel_pos_bias,
                )
                for i in range(depth)
            ]
            self.levels.append(_Stage(embed_dim * 2**stage, layers, last=stage == len(depths) - 1))
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(_initialise)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, h, w) -> (B, num_features): the mean over all tokens of the last stage."""
        if x.dim() != 4:
            raise ValueError(f"x must be (B, channels, h, w), got shape {tuple(x.shape)}")
        x = self.pos_drop(self.patch_embed(x))
        for level in self.levels:
            x = level(x)
        return self.norm(x).flatten(1, 2).mean(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, h, w) -> (B, num_classes)."""
        return self.head(self.forward_features(x))

    def no_weight_decay_keywords(self) -> set[str]:
        """Parameters that a training loop must not decay."""
        return {"rpb"}

    def load_official(self, path_or_state: str | os.PathLike[str] | Mapping[str, torch.Tensor]) -> NAT:
        """Load a published checkpoint, every name of it; a file is read without unpickling."""
        if isinstance(path_or_state, str | os.PathLike):
            path_or_state = torch.load(path_or_state, map_location="cpu", weights_only=True)
        state: Any = path_or_state
        for key in ("state_dict", "model"):
            state = state.get(key, state)
        self.load_state_dict({name.removeprefix("module."): t for name, t in state.items()}, strict=True)
        return self


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _Tokenizer(nn.Module):
    """Two convolutions of stride 2 with nothing between, and a norm: (B, c, h, w) -> (B, h/4, w/4, C)."""

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, embed_dim // 2, 3, 2, 1), nn.Conv2d(embed_dim // 2, embed_dim, 3, 2, 1)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class _Downsampler(nn.Module):
    """(B, h, w, C) -> (B, h/2, w/2, 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class _Stage(nn.Module):
    def __init__(self, dim: int, layers: list[nn.Module], *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)
        self.downsample = None if last else _Downsampler(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class _Layer(nn.Module):
    """x + gamma1 NA(LN x), then x + gamma2 MLP(LN x)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kernel_size: int,
        dilation: int,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
        layer_scale: float | None,
        rel_pos_bias: bool,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.reach = kernel_size * dilation
        self.norm1 = nn.LayerNorm(dim)
        self.attn = NeighborhoodAttention2d(
            dim, heads, kernel_size, dilation=dilation, proj_drop=drop, rel_pos_bias=rel_pos_bias
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio), drop)
        scaled = layer_scale is not None
        self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale or 0))) if scaled else None
        self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale or 0))) if scaled else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._attend(self.norm1(x))
        x = x + self._dropped(y if self.gamma1 is None else self.gamma1 * y)
        y = self.mlp(self.norm2(x))
        return x + self._dropped(y if self.gamma2 is None else self.gamma2 * y)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[1:3]
        if min(h, w) >= self.reach:
            return self.attn(x)
        padded = F.pad(x, (0, 0, 0, max(0, self.reach - w), 0, max(0, self.reach - h)))
        return self.attn(padded)[:, :h, :w].contiguous()

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        """Stochastic depth: whole samples are left out, the others scaled up."""
        if not self.training or self.drop_path == 0:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
        return x * kept.to(x.dtype) / (1 - self.drop_path)
