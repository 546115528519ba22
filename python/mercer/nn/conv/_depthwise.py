"""Depthwise convolution with large kernels, "same" padding."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from mercer import _checks

__all__ = ["DepthwiseConv2d", "depthwise_conv2d"]


def depthwise_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Placeholder until the kernel is in."""
    k, l = weight.shape[-2:]
    return functional.conv2d(x, weight, bias, padding=(k // 2, l // 2), groups=weight.shape[0])


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise layer."""

    def __init__(self, channels: int, kernel_size: int, *, bias: bool = True) -> None:
        _checks.integer("kernel_size", kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return depthwise_conv2d(x, self.weight, self.bias)


class ResidualDepthwiseConv2d(DepthwiseConv2d):
    """x + depthwise convolution of x, with bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + super().forward(x)


def explain(*a):
    return ""
