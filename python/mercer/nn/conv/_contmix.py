"""Context-mixing dynamic convolution (Lou and Yu 2025, OverLoCK, section 3.3).

Every pixel gets depthwise kernels of its own, made from its affinity to 7 x 7 = 49 region centres of the map: what the
kernel knows is global, where it acts is local.
"""

from __future__ import annotations

import math

import torch
from timm.layers import DropPath, LayerNorm2d
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from mercer import _checks
from mercer.nn.attention.neighborhood import neighborhood_av
from mercer.nn.conv import _dispatch
from mercer.nn.conv._depthwise import ResidualDepthwiseConv2d, exporting
from mercer.nn.conv._reparam import DilatedReparamBlock
from mercer.nn.layers import BiasedLayerScale, GlobalResponseNorm, SqueezeExcite

__all__ = ["ContMixBlock", "ContextMixing", "contmix", "relative_bias"]

REGIONS = 7  # a side


@register_flop_formula(torch.ops.mercer.neighborhood_aggregate)
def _flops(weights, value, *rest, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * math.prod(weights) * value[-1]


#: OverLoCK's own table of dilated branches, larger than UniRepLKNet's; from its code.
OVERLOCK_BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def contmix(attn: torch.Tensor, value: torch.Tensor, k: int) -> torch.Tensor:
    """Depthwise convolution whose kernel is given for every pixel and group of channels.

    y at i is the sum over the k x k window of i of attn[i, j] value[j]. Windows are moved inside the map at its
    border (start = clip(i - k // 2, 0, H - k) on each axis), so there is no padding.

    Args:
        attn: (B, g, H, W, k k), the kernels, row by row; usually they sum to one.
        value: (B, g c, H, W).
        k: Window side, odd, at most H and W.

    Returns:
        Like `value`.

    Raises:
        ValueError: Shapes that do not fit, k even or larger than the map.

    Cost: O(B g c H W k²) time. Source: Lou and Yu 2025, eq. 3; windows as in neighborhood attention.

    Example:
        >>> kernels = torch.full((1, 2, 6, 6, 9), 1 / 9)
        >>> contmix(kernels, torch.ones(1, 4, 6, 6), 3).allclose(torch.ones(()))
        True
    """
    k = _checks.integer("k", k, 1)
    if attn.dim() != 5 or value.dim() != 4:
        raise ValueError(
            f"attn must be (B, g, H, W, k k) and value (B, g c, H, W), got {tuple(attn.shape)}, {tuple(value.shape)}"
        )
    batch, groups, height, width, window = attn.shape
    if window != k * k or k % 2 == 0:
        raise ValueError(f"k must be odd with attn's last axis k k, got k = {k} and {window}")
    if value.shape[0] != batch or value.shape[2:] != attn.shape[2:4] or value.shape[1] % groups:
        raise ValueError(
            f"value must be ({batch}, multiple of {groups}, {height}, {width}) to fit attn, got {tuple(value.shape)}"
        )
    if k > min(height, width):
        raise ValueError(f"k must be at most the sides of the map, got {k} for {height} x {width}")
    if exporting():
        return _unfolded(attn, value, k)
    v = value.unflatten(1, (groups, -1))  # (B, g, c, H, W)
    y = neighborhood_av(attn.contiguous(), v.permute(0, 1, 3, 4, 2).contiguous(), k)
    return y.permute(0, 1, 4, 2, 3).flatten(1, 2)


def _unfolded(attn: torch.Tensor, value: torch.Tensor, k: int) -> torch.Tensor:
    """The same in operators that every exporter knows: a copy of the windows, k² times the map, and a product."""
    groups, height, width = attn.shape[1:4]
    rows, columns = (
        (_starts(n, k, value.device)[:, None] + torch.arange(k, device=value.device)).flatten()
        for n in (height, width)
    )
    windows = value.index_select(2, rows).index_select(3, columns)  # (B, g c, H k, W k)
    windows = windows.reshape(value.shape[0], groups, -1, height, k, width, k).permute(0, 1, 3, 5, 2, 4, 6)
    y = windows.flatten(5) @ attn.unsqueeze(-1)  # (B, g, H, W, c, 1)
    return y.squeeze(-1).permute(0, 1, 4, 2, 3).flatten(1, 2)


def _starts(n: int, k: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(n, device=device) - k // 2).clamp(0, n - k)


def relative_bias(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The entries of a relative table (g, 2k - 1, 2k - 1) over each pixel's window, (g, H, W, k k).

    Pixel i and its neighbor j have the entry j - i + k - 1 on each axis.
    """
    k = (table.shape[-1] + 1) // 2
    rows, columns = (_offsets(n, k, table.device) for n in (height, width))
    picked = table[:, rows[:, None, :, None], columns[None, :, None, :]]  # (g, H, W, k, k)
    return picked.flatten(-2)


def _offsets(n: int, k: int, device: torch.device) -> torch.Tensor:
    """(n, k): index in the relative table of each neighbor of each pixel."""
    here = torch.arange(n, device=device)
    return (_starts(n, k, device) - here + k - 1)[:, None] + torch.arange(k, device=device)


class RegionsToKernels(nn.Conv2d):
    """A 1x1 convolution along the last axis, (..., in_channels) -> (..., out_channels)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x)
        return functional.linear(x, self.weight.flatten(1).to(x), bias)


class ContextMixing(nn.Module):
    """What makes and applies the dynamic kernels: two sizes, half of the channels each.

    Args:
        dim: C of the queries and values.
        key_dim: Channels of what the region centres are made from.
        kernel_size: k, the large window.
        smk_size: The small window.
        num_heads: Half the number of groups g.

    State: `rpb1`, `rpb2`, `weight_query`, `weight_key`, `weight_proj`, by the authors' names.
    """

    def __init__(self, dim: int, key_dim: int, kernel_size: int, smk_size: int, num_heads: int) -> None:
        super().__init__()
        for name, size in (("kernel_size", kernel_size), ("smk_size", smk_size)):
            if _checks.integer(name, size, 1) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {size}")
        self.groups = 2 * _checks.integer("num_heads", num_heads, 1)
        if dim % (2 * self.groups):
            raise ValueError(
                f"dim must be divisible by 4 num_heads = {2 * self.groups} (two halves of {self.groups} groups), "
                f"got {dim}"
            )
        self.kernel_size, self.smk_size, self.scale = kernel_size, smk_size, (dim // self.groups) ** -0.5
        self.rpb1 = nn.Parameter(torch.zeros(self.groups, 2 * smk_size - 1, 2 * smk_size - 1))
        self.rpb2 = nn.Parameter(torch.zeros(self.groups, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.weight_query = nn.Sequential(nn.Conv2d(dim, dim // 2, 1, bias=False), nn.BatchNorm2d(dim // 2))
        self.weight_key = nn.Sequential(
            nn.AdaptiveAvgPool2d(REGIONS),
            nn.Conv2d(key_dim, dim // 2, 1, bias=False),
            nn.BatchNorm2d(dim // 2),
        )
        self.weight_proj = RegionsToKernels(REGIONS**2, kernel_size**2 + smk_size**2, 1)

    def logits(self, queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the small and the large kernels of every pixel, (B, g, H, W, smk²) and (B, g, H, W, k²).

        Affinities are in float32 under autocast: in half precision they overflow.
        """
        q = self.weight_query(queries) * self.scale
        k = self.weight_key(keys)
        height, width = q.shape[2:]
        with torch.autocast(q.device.type, enabled=False):
            if q.dtype in (torch.float16, torch.bfloat16):
                q, k = q.float(), k.float()
            q = q.unflatten(1, (self.groups, -1)).flatten(3)  # (B, g, c, n)
            k = k.unflatten(1, (self.groups, -1)).flatten(3)  # (B, g, c, 49)
            affinity = q.transpose(2, 3) @ k  # (B, g, n, 49)
            found = self.weight_proj(affinity).unflatten(2, (height, width))
            small, large = found.split((self.smk_size**2, self.kernel_size**2), dim=-1)
        return small, large

    def kernels(self, queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The kernels of every pixel, summing to one."""
        small, large = self.logits(queries, keys)
        return self._softmax(small, self.rpb1), self._softmax(large, self.rpb2)

    def mix(self, queries: torch.Tensor, keys: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), (B, C', H, W), (B, C, H, W) -> (B, C, H, W)."""
        logits, tables = self.logits(queries, keys), (self.rpb1, self.rpb2)
        sizes, halves = (self.smk_size, self.kernel_size), value.chunk(2, dim=1)
        mixed = []
        for own, table, k, half in zip(logits, tables, sizes, halves, strict=True):
            by_group = half.unflatten(1, (self.groups, -1)).permute(0, 1, 3, 4, 2)
            fused = _dispatch.context_mixing(own, table, by_group, k)
            if fused is None:
                mixed.append(contmix(self._softmax(own, table).to(value.dtype), half, k))
            else:
                mixed.append(fused.permute(0, 1, 4, 2, 3).flatten(1, 2))
        return torch.cat(mixed, dim=1)

    @staticmethod
    def _softmax(logits: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return (logits + relative_bias(table, *logits.shape[2:4]).to(logits)).softmax(-1)

    def enlarged(self, *maps: torch.Tensor) -> list[torch.Tensor]:
        """Maps whose shorter side is below the window, resized so that it is the window; others as they are."""
        height, width = maps[0].shape[2:]
        k = max(self.kernel_size, self.smk_size)
        if min(height, width) >= k:
            return list(maps)
        size = (k, int(k / height * width)) if height < width else (int(k / width * height), k)
        return [functional.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps]


class ContMixBlock(ContextMixing):
    """A block with context-mixing kernels to put into any network (Lou and Yu 2025; the authors' `models/contmix.py`).

    Args:
        dim: C of maps (B, C, H, W), divisible by 4 num_heads.
        kernel_size: The large window.
        smk_size: The small window.
        num_heads: Half the number of groups.
        mlp_ratio: Hidden width of the MLP over C.
        res_scale: Scale the shortcut (True) or the branch (False) where there is a layer scale.
        ls_init_value: Of the layer scale; None leaves it out.
        drop_path: Rate.
        deploy: Build the re-parameterised form.

    Example:
        >>> ContMixBlock(32)(torch.randn(2, 32, 14, 14)).shape
        torch.Size([2, 32, 14, 14])
    """

    official_names = (
        (r"(^|\.)se_layer\.proj\.1\.", r"\1se_layer.down."),
        (r"(^|\.)se_layer\.proj\.3\.", r"\1se_layer.up."),
    )

    def __init__(
        self,
        dim: int = 64,
        kernel_size: int = 7,
        smk_size: int = 5,
        num_heads: int = 2,
        mlp_ratio: float = 4,
        res_scale: bool = False,
        ls_init_value: float | None = None,
        drop_path: float = 0.0,
        deploy: bool = False,
    ) -> None:
        super().__init__(dim, dim, kernel_size, smk_size, num_heads)
        hidden = int(dim * mlp_ratio)
        for table in (self.rpb1, self.rpb2):
            nn.init.trunc_normal_(table, std=0.02)
        self.res_scale = res_scale
        self.dwconv1 = ResidualDepthwiseConv2d(dim, 3)
        self.norm1 = LayerNorm2d(dim)
        self.weight_value = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.fusion_proj = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        branches = OVERLOCK_BRANCHES.get(kernel_size)
        self.lepe = nn.Sequential(
            DilatedReparamBlock(dim, kernel_size, branches, deploy=deploy), nn.BatchNorm2d(dim)
        )
        self.se_layer = SqueezeExcite(dim, max(16, dim // 8), nn.GELU)
        self.gate = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.SiLU())
        self.proj = nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, dim, 1))
        self.dwconv2 = ResidualDepthwiseConv2d(dim, 3)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = mixing_mlp(dim, hidden, dim)
        self.ls1 = nn.Identity() if ls_init_value is None else BiasedLayerScale(dim, ls_init_value)
        self.ls2 = nn.Identity() if ls_init_value is None else BiasedLayerScale(dim, ls_init_value)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        shortcut = self.dwconv1(x)
        f = self.norm1(shortcut)
        gate, lepe = self.gate(f), self.lepe(f)
        (wide,) = self.enlarged(f)
        y = self.mix(wide, wide, self.weight_value(wide))
        y = self.fusion_proj(y)
        if wide is not f:
            y = functional.adaptive_avg_pool2d(y, f.shape[2:])
        y = self.proj(gate * self.se_layer(y + lepe))
        x = self.dwconv2(add_scaled(shortcut, y, self.ls1, self.drop_path, self.res_scale))
        return add_scaled(x, self.mlp(self.norm2(x)), self.ls2, self.drop_path, self.res_scale)


def mixing_mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """1x1, GELU, x + depthwise 3x3, global response norm, 1x1."""
    return nn.Sequential(
        nn.Conv2d(dim, hidden, 1),
        nn.GELU(),
        ResidualDepthwiseConv2d(hidden, 3),
        GlobalResponseNorm(hidden),
        nn.Conv2d(hidden, out, 1),
    )


def add_scaled(
    x: torch.Tensor, branch: torch.Tensor, scale: nn.Module, drop_path: nn.Module, res_scale: bool
) -> torch.Tensor:
    """scale(x) + branch where the shortcut is what is scaled, else x + scale(branch)."""
    if res_scale:
        return scale(x) + drop_path(branch)
    return x + drop_path(scale(branch))
