"""InceptionNeXt (Yu, Zhou, Yan, Wang, CVPR 2024, arXiv 2303.16900).

ConvNeXt's 7 x 7 depthwise convolution costs memory traffic, not arithmetic. Here most channels pass untouched, and
three small groups get a 3 x 3, a 1 x 11 and an 11 x 1 kernel: x + gamma MLP(BN(mixer(x))).

The network is timm's `MetaNeXt`, the mixer is :class:`mercer.nn.conv.InceptionDWConv2d`; weights of timm's
`inception_next_*` and the authors' `inceptionnext_*` load as they are. Maps at strides 4, 8, 16, 32 whose sides are not
multiples of 32 lose what is left over on the right and at the bottom, as in the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models import inception_next as timm_inception_next
from timm.models.inception_next import MetaNeXt
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint_sequential

from mercer.nn._mlp import gelu_mlp
from mercer.nn._operator import is_bare
from mercer.nn.conv import InceptionDWConv2d, fold_norm
from mercer.vision.backbones._family import Backbone, Family, Stage, Variant, feature_info, register

__all__ = ["VARIANTS", "InceptionNeXt", "MetaNeXtBlock"]

SMALL = {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320), "band_kernel_size": 9, "branch_ratio": 0.25}

VARIANTS = {
    "atto": Variant(SMALL, 4_156_520, 0.507, 0.503, 75.3),
    "tiny": Variant({"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}, 28_055_680, 4.201, 4.189, 82.3),
    "small": Variant({"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)}, 49_374_016, 8.375, 8.356, 83.5),
    "base": Variant(
        {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)}, 86_672_136, 14.867, 14.841, 84.0
    ),
    "base_384": Variant(
        {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)}, 86_672_136, 43.68, 43.60, 85.2, 384, 1.0
    ),
}


class ChannelMlp(timm_inception_next.ConvMlp):
    """timm's MLP of 1x1 convolutions; on maps that are channels last, as matrix products, which are faster on a CPU."""

    def forward(self, x: torch.Tensor, gamma: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H, W), in the memory format of `x`, times `gamma` (C',)."""
        is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        if not is_last or not is_bare(self.fc1, self.act, self.drop, self.fc2):
            y = super().forward(x)
            return y if gamma is None else y * gamma.view(-1, 1, 1)
        x, up = x.permute(0, 2, 3, 1), self.fc1.weight.flatten(1)
        down, bias = self.fc2.weight.flatten(1), self.fc2.bias
        if gamma is not None and x.shape[:-1].numel() > len(up):  # fewer weights than pixels
            down, bias, gamma = down * gamma.view(-1, 1), bias * gamma, None
        if (
            type(self.act) is nn.GELU
            and self.act.approximate == "none"
            and not (self.training and self.drop.p)
        ):
            y = gelu_mlp(x, up, self.fc1.bias, down, bias)
        else:
            y = functional.linear(self.drop(self.act(functional.linear(x, up, self.fc1.bias))), down, bias)
        return (y if gamma is None else y * gamma).permute(0, 3, 1, 2)


class MetaNeXtBlock(timm_inception_next.MetaNeXtBlock):
    """timm's block with our mixer and MLP: x + gamma MLP(BN(mixer(x))).

    Args:
        dim: C of maps (B, C, H, W).
        token_mixer: What makes the mixer from C.
        **timm: Other arguments of timm's block.
    """

    def __init__(self, dim: int, token_mixer: Any = InceptionDWConv2d, **timm: Any) -> None:
        super().__init__(dim, token_mixer=token_mixer, mlp_layer=ChannelMlp, **timm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.drop_path(self.mlp(self.norm(self.token_mixer(x)), self.gamma)) + x


class InceptionNeXt(Backbone, MetaNeXt):
    """InceptionNeXt.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        band_kernel_size: Of the 1 x b and b x 1 kernels, odd.
        branch_ratio: Share of the channels that each kernel gets.
        mlp_ratios: Hidden width of the MLPs over the channels.
        num_classes: 0 for none.
        in_chans: Channels of the images.
        drop_path_rate: Of the last block; linear from 0.
        drop_rate: Dropout before the classifier.
        ls_init_value: Of the layer scale.
        global_pool: "avg", "max", ...: timm's.
        features_only: Return the list of the four maps; there is no head.
        out_indices: Which maps.
        deploy: Build the re-parameterised form.
        **timm: Other arguments of timm's `MetaNeXt` (`output_stride`, ...).

    Example:
        >>> model = InceptionNeXt(depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), num_classes=5).eval()
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 5])
    """

    family = "inceptionnext"

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        band_kernel_size: int = 11,
        branch_ratio: float = 0.125,
        mlp_ratios: int | Sequence[int] = (4, 4, 4, 3),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        ls_init_value: float = 1e-6,
        global_pool: str = "avg",
        features_only: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        deploy: bool = False,
        **timm: Any,
    ) -> None:
        mixer = partial(InceptionDWConv2d, band_kernel_size=band_kernel_size, branch_ratio=branch_ratio)
        super().__init__(
            in_chans=in_chans, num_classes=num_classes, global_pool=global_pool, depths=tuple(depths),
            dims=tuple(dims), token_mixers=mixer, mlp_ratios=mlp_ratios, drop_rate=drop_rate,
            drop_path_rate=drop_path_rate, ls_init_value=ls_init_value, **timm,
        )  # fmt: skip
        for stage in self.stages:
            for block in stage.blocks:
                # timm's network has no arguments for them; they differ in forward alone.
                block.__class__, block.mlp.__class__ = MetaNeXtBlock, ChannelMlp
        if features_only:
            del self.head
            self.num_classes, self.features_only, self.out_indices = 0, True, tuple(out_indices)
            self.feature_info = feature_info([Stage(**row) for row in self.feature_info], out_indices)
        if deploy:
            self.reparameterize()

    def stage_maps(self, x: torch.Tensor, stop: int | None = None) -> list[torch.Tensor]:
        """The maps of the stages, finest first, up to index `stop`."""
        self.check_input(x)
        x, maps = self.stem(x), []
        for stage in self.stages if stop is None else self.stages[: stop + 1]:
            x = stage.downsample(x)
            if self.grad_checkpointing and x.requires_grad:
                x = checkpoint_sequential(stage.blocks, len(stage.blocks), x, use_reentrant=False)
            else:
                x = stage.blocks(x)
            maps.append(x)
        return maps

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last map -> logits (B, num_classes), or with `pre_logits` what the classifier sees."""
        return self.head(x, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc2

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, reset_other: bool = False
    ) -> None:
        """A new last layer, for another number of classes."""
        MetaNeXt.reset_classifier(self, num_classes, global_pool, reset_other)

    def _merge(self) -> None:
        fold_norm(self.stem[0], self.stem[1])
        self.stem[1] = nn.Identity()
        for stage in self.stages:
            if isinstance(stage.downsample, nn.Sequential):
                _fold_norm_before(stage.downsample[0], stage.downsample[1])
                stage.downsample[0] = nn.Identity()
            for block in stage.blocks:
                _fold_norm_before(block.norm, block.mlp.fc1)
                block.norm = nn.Identity()
                if block.gamma is not None:
                    block.mlp.fc2.weight.mul_(block.gamma.view(-1, 1, 1, 1))
                    block.mlp.fc2.bias.mul_(block.gamma)
                    block.gamma = None


def _fold_norm_before(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    """Put the batch norm before an unpadded convolution into it, in place."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = conv.weight.double()
    conv.bias.copy_(conv.bias.double() + torch.einsum("oihw,i->o", weight, shift))
    conv.weight.copy_(weight * scale.view(1, -1, 1, 1))


register(
    Family(
        "inceptionnext", "InceptionNeXt", InceptionNeXt, VARIANTS,
        "https://github.com/sail-sg/inceptionnext/releases", "apache-2.0", "stem.0", "head.fc2",
    )
)  # fmt: skip
