"""Small layers that several backbones share and timm has in another form.

Channel layer norm, drop path and pooling are timm's (`LayerNorm2d`, `DropPath`, `SelectAdaptivePool2d`).
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["BiasedLayerScale", "GlobalResponseNorm", "SqueezeExcite"]


class GlobalResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, ConvNeXt V2, section 3.3).

    G = L2 norm over the map, N = G / (mean over channels of G + 1e-6), y = (gamma N + 1) x + beta. The identity
    at its start (gamma = beta = 0).

    Args:
        channels: C.
        channels_last: Maps are (B, H, W, C) instead of (B, C, H, W).
        bias: Whether there is a beta.

    Example:
        >>> x = torch.randn(1, 8, 5, 5)
        >>> torch.equal(GlobalResponseNorm(8)(x), x)
        True
    """

    def __init__(self, channels: int, *, channels_last: bool = False, bias: bool = True) -> None:
        super().__init__()
        shape = (1, 1, 1, channels) if channels_last else (1, channels, 1, 1)
        self.over, self.channel = ((1, 2), -1) if channels_last else ((2, 3), 1)
        self.gamma = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map, normalised."""
        size = torch.linalg.vector_norm(x, dim=self.over, keepdim=True)
        relative = size / (size.mean(dim=self.channel, keepdim=True) + 1e-6)
        scale = self.gamma * relative + 1
        return x * scale if self.beta is None else torch.addcmul(self.beta, x, scale)


class SqueezeExcite(nn.Module):
    """Each channel scaled by a gate that sees the mean of all (Hu, Shen, Sun 2018).

    Args:
        channels: C of maps (B, C, H, W).
        hidden: Width between the two 1x1 convolutions.
        activation: Between them: ReLU in UniRepLKNet, GELU in OverLoCK.
    """

    def __init__(self, channels: int, hidden: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, hidden, 1)
        self.act = activation()
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map, gated."""
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(self.act(self.down(mean))))


class BiasedLayerScale(nn.Module):
    """y = weight x + bias a channel, as OverLoCK's depthwise 1x1 convolution stores it: weight (C, 1, 1, 1).

    Args:
        channels: C of maps (B, C, H, W).
        value: Of all weights at the start; the bias starts at 0.
    """

    def __init__(self, channels: int, value: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1, 1), float(value)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map, scaled and shifted."""
        return torch.addcmul(self.bias.view(1, -1, 1, 1), x, self.weight.view(1, -1, 1, 1))
