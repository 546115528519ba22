"""Inception depthwise convolution: three small groups of channels are convolved, the others pass."""

from __future__ import annotations

import torch
from torch import nn

from mercer import _checks

__all__ = ["InceptionDWConv2d"]


class InceptionDWConv2d(nn.Module):
    """Inception depthwise convolution (Yu et al. 2024, InceptionNeXt, section 3.2).

    Channels in order: C - 3g pass untouched, g through s x s, g through 1 x b (along the width), g through b x 1, with
    g = int(C branch_ratio); depthwise with bias, "same" zero padding. g (s² + 2b + 3) parameters.

    Args:
        in_channels: C of maps (B, C, H, W).
        square_kernel_size: s, odd.
        band_kernel_size: b, odd.
        branch_ratio: g / C.

    Raises:
        ValueError: Even kernels, g = 0 or 3g > C.

    Example:
        >>> mixer = InceptionDWConv2d(32)
        >>> x = torch.randn(1, 32, 9, 9)
        >>> torch.equal(mixer(x)[:, :20], x[:, :20])
        True
    """

    def __init__(
        self,
        in_channels: int,
        square_kernel_size: int = 3,
        band_kernel_size: int = 11,
        branch_ratio: float = 0.125,
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("square_kernel_size", square_kernel_size),
            ("band_kernel_size", band_kernel_size),
        ):
            if _checks.integer(name, size, 1) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {size}")
        g = int(in_channels * branch_ratio)
        if g < 1 or 3 * g > in_channels:
            raise ValueError(
                f"branch_ratio must leave 1 <= g and 3 g <= in_channels with g = int(in_channels * branch_ratio), "
                f"got {branch_ratio} of {in_channels} channels: g = {g}"
            )
        s, b, r = square_kernel_size, band_kernel_size, dilation
        made = {"groups": g, "device": device, "dtype": dtype}
        self.dwconv_hw = nn.Conv2d(g, g, s, padding=r * (s // 2), dilation=r, **made)
        self.dwconv_w = nn.Conv2d(g, g, (1, b), padding=(0, r * (b // 2)), dilation=(1, r), **made)
        self.dwconv_h = nn.Conv2d(g, g, (b, 1), padding=(r * (b // 2), 0), dilation=(r, 1), **made)
        self.split = (in_channels - 3 * g, g, g, g)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        same, square, wide, high = torch.split(x, self.split, dim=1)
        return torch.cat([same, self.dwconv_hw(square), self.dwconv_w(wide), self.dwconv_h(high)], dim=1)
