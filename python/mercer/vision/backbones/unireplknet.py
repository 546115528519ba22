"""UniRepLKNet (Ding, Zhang, Ge, Zhao, Song, Yue, Shan, CVPR 2024, arXiv 2311.15599).

Large kernels see wide without going deep. A 13 x 13 depthwise kernel is trained beside small dilated ones and merged
with them; squeeze-and-excitation and an MLP with global response norm give the depth: per block
x + gamma BN(MLP(SE(BN(DRB(x))))).

The published parameter counts are those of the re-parameterised form. In stem and transitions sides are halved rounding
up, so any image of 32 pixels or more fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, SelectAdaptivePool2d, trunc_normal_
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from mercer import _checks
from mercer.nn.conv import DepthwiseConv2d, DilatedReparamBlock, fold_norm, warn_if_unseen
from mercer.nn.conv._reparam import outside_autograd
from mercer.nn.layers import GlobalResponseNorm, SqueezeExcite
from mercer.vision.backbones._family import Backbone, Family, Stage, Variant, feature_info, register

__all__ = ["VARIANTS", "UniRepLKNet", "UniRepLKNetBlock"]

N, T, S = (2, 2, 8, 2), (3, 3, 18, 3), (3, 3, 27, 3)
#: T and larger: every second or third block of stage 3 is large, those between are 3 x 3.
T_KERNELS = ((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3)
S_KERNELS = ((3,) * 3, (13,) * 3, (13, 3, 3) * 9, (13,) * 3)


def _variant(depths: Sequence[int], width: int, kernels: Any, *figures: Any, **more: Any) -> Variant:
    arguments = {"depths": depths, "dims": tuple(width * 2**i for i in range(4))}
    if kernels is not None:
        arguments["kernel_sizes"] = kernels
    parameters, deploy, gmacs, all_gmacs, top1 = figures
    return Variant(arguments, parameters, gmacs, all_gmacs, top1, deploy_parameters=deploy, **more)


LARGER = {"input_size": 384, "crop_pct": 1.0, "pretrained_on": "ImageNet-22K"}
VARIANTS = {
    "a": _variant((2, 2, 6, 2), 40, None, 4_649_060, 4_437_300, 0.644, 0.640, 77.0),
    "f": _variant((2, 2, 6, 2), 48, None, 6_489_328, 6_235_216, 0.910, 0.905, 78.6),
    "p": _variant((2, 2, 6, 2), 64, None, 11_080_520, 10_741_704, 1.580, 1.573, 80.2),
    "n": _variant(N, 80, None, 18_818_880, 18_318_560, 2.775, 2.767, 81.6),
    "t": _variant(T, 80, T_KERNELS, 31_693_420, 31_037_980, 4.914, 4.899, 83.2),
    "s": _variant(S, 96, S_KERNELS, 56_456_704, 55_645_984, 9.116, 9.094, 83.9),
    "b": _variant(S, 128, S_KERNELS, 99_089_416, 98_008_456, 47.26, 47.18, 87.4, **LARGER),
    "l": _variant(S, 192, S_KERNELS, 220_076_056, 218_454_616, 105.55, 105.42, 87.9, **LARGER),
    "xl": _variant(S, 256, S_KERNELS, 388_690_984, 386_529_064, 186.95, 186.77, 88.0, **LARGER),
}


class UniRepLKNetBlock(nn.Module):
    """Depthwise kernel, batch norm, squeeze-and-excitation, MLP with global response norm, batch norm, layer scale.

    Args:
        dim: C of maps (B, C, H, W).
        kernel_size: >= 7 a :class:`DilatedReparamBlock`, 3 or 5 one depthwise convolution, 0 none.
        drop_path: Rate.
        layer_scale_init_value: None or 0 for no layer scale.
        ffn_factor: Hidden width of the MLP over C.
        deploy: Build the re-parameterised form.

    State names are the authors'.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        ffn_factor: int = 4,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        _checks.integer("kernel_size", kernel_size, 0)
        if kernel_size not in (0, 3, 5) and (kernel_size < 7 or kernel_size % 2 == 0):
            raise ValueError(f"kernel_size must be 0, 3, 5 or odd and >= 7, got {kernel_size}")
        self.deploy = deploy
        if kernel_size >= 7:
            self.dwconv: nn.Module = DilatedReparamBlock(dim, kernel_size, deploy=deploy)
        elif kernel_size:
            self.dwconv = DepthwiseConv2d(dim, kernel_size, bias=deploy)
        else:
            self.dwconv = nn.Identity()
        self.norm = nn.Identity() if deploy or not kernel_size else nn.BatchNorm2d(dim)
        self.se = SqueezeExcite(dim, dim // 4)
        hidden = int(ffn_factor * dim)
        # Index 0 of each turns the layout in the original; the names count it.
        self.pwconv1 = nn.Sequential(nn.Identity(), nn.Linear(dim, hidden))
        self.act = nn.Sequential(nn.GELU(), GlobalResponseNorm(hidden, channels_last=True, bias=not deploy))
        self.pwconv2 = nn.Sequential(nn.Linear(hidden, dim, bias=deploy), nn.Identity())
        if not deploy:
            self.pwconv2.append(nn.BatchNorm2d(dim))
        scale = 0.0 if deploy else float(layer_scale_init_value or 0)
        self.gamma = nn.Parameter(torch.full((dim,), scale)) if scale else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = self.se(self.norm(self.dwconv(x)))
        y = self.act(self.pwconv1(y.permute(0, 2, 3, 1)))  # (B, H, W, 4C)
        y = self.pwconv2[0](y).permute(0, 3, 1, 2)  # (B, C, H, W)
        if not self.deploy:
            y = self.pwconv2[2](y)
            if self.gamma is not None:
                y = y * self.gamma.view(1, -1, 1, 1)
        return x + self.drop_path(y)

    @outside_autograd
    def reparameterize(self) -> UniRepLKNetBlock:
        """Merge branches and batch norms, layer scale and the response norm's beta, in place."""
        if self.deploy:
            return self
        warn_if_unseen(self)
        if isinstance(self.dwconv, DilatedReparamBlock):
            self.dwconv.merge()
            fold_norm(self.dwconv.lk_origin, self.norm)
        elif isinstance(self.dwconv, DepthwiseConv2d):
            self.dwconv = _with_bias(self.dwconv)
            fold_norm(self.dwconv, self.norm)
        self.norm = nn.Identity()
        norm, response, old = self.pwconv2[2], self.act[1], self.pwconv2[0]
        last = nn.Linear(old.in_features, old.out_features).to(old.weight)
        last.weight.copy_(old.weight)
        # beta of the response norm is a constant input of the last layer: summed in float64 with what follows.
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = old.weight.double() @ response.beta.double().flatten() - norm.running_mean.double()
        bias = norm.bias.double() + shift * scale
        gamma = torch.ones_like(scale) if self.gamma is None else self.gamma.double()
        last.weight.copy_(old.weight.double() * (scale * gamma)[:, None])
        last.bias.copy_(bias * gamma)
        self.pwconv2 = nn.Sequential(last, nn.Identity())
        response.beta = self.gamma = None
        self.deploy = True
        return self


class UniRepLKNet(Backbone):
    """UniRepLKNet.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        kernel_sizes: For each stage the kernel size of each block; by default 3 in the first stage, 13 in the others.
        num_classes: 0 or None for none.
        in_chans: Channels of the images; other modalities come in as maps of their own number.
        drop_path_rate: Of the last block; linear from 0.
        layer_scale_init_value: Of the layer scale.
        head_init_scale: Factor on the classifier's first weights: 1, for fine-tuning 0.001.
        global_pool: "avg", "max", ...: timm's.
        features_only: Return the list of the four maps, each through a norm of its own; there is no head.
        out_indices: Which maps.
        deploy: Build the re-parameterised form.

    Raises:
        ValueError: Kernel sizes that do not match `depths`, or that no block can have.

    Example:
        >>> model = UniRepLKNet(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=5).eval()
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 5])
    """

    family = "unireplknet"

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 27, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        num_classes: int | None = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        head_init_scale: float = 1.0,
        global_pool: str = "avg",
        features_only: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        deploy: bool = False,
    ) -> None:
        super().__init__()
        depths, dims = tuple(depths), tuple(dims)
        if kernel_sizes is None:
            kernel_sizes = [[3 if i == 0 else 13] * depth for i, depth in enumerate(depths)]
        if len(dims) != len(depths) or [len(row) for row in kernel_sizes] != list(depths):
            raise ValueError(
                f"dims and kernel_sizes must match depths {depths} stage by stage and block by block, got {dims} and "
                f"kernel_sizes of lengths {[len(row) for row in kernel_sizes]}"
            )
        self.in_chans, self.num_features, self.deploy = in_chans, dims[-1], deploy
        self.head_hidden_size = self.num_features
        self.num_classes = 0 if features_only or num_classes is None else num_classes
        first = dims[0] // 2
        stem = nn.Sequential(
            _halve(in_chans, first),
            LayerNorm2d(first),
            nn.GELU(),
            _halve(first, dims[0]),
            LayerNorm2d(dims[0]),
        )
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in zip(dims, dims[1:], strict=False):
            self.downsample_layers.append(nn.Sequential(_halve(before, after), LayerNorm2d(after)))
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        for dim, kernels in zip(dims, kernel_sizes, strict=True):
            here, rates = rates[: len(kernels)], rates[len(kernels) :]
            blocks = (
                UniRepLKNetBlock(dim, k, rate, layer_scale_init_value, deploy=deploy)
                for k, rate in zip(kernels, here, strict=True)
            )
            self.stages.append(nn.Sequential(*blocks))
        rows = [Stage(dim, 4 * 2**i, f"stages.{i}") for i, dim in enumerate(dims)]
        self.feature_info = feature_info(rows, out_indices if features_only else None)
        self.features_only, self.out_indices = features_only, tuple(out_indices)
        if features_only:
            for i, dim in enumerate(dims):
                self.add_module(f"norm{i}", LayerNorm2d(dim))
        else:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
            self.norm = nn.LayerNorm(self._pooled(), eps=1e-6)
            self.head = nn.Linear(self._pooled(), self.num_classes) if self.num_classes else nn.Identity()
        self.apply(_initialize)
        if self.num_classes:
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)
                self.head.bias.mul_(head_init_scale)
        if deploy:
            self.eval()

    def stage_maps(self, x: torch.Tensor, stop: int | None = None) -> list[torch.Tensor]:
        """The maps of the stages, finest first, up to index `stop`."""
        self.check_input(x)
        maps = []
        for down, stage in list(zip(self.downsample_layers, self.stages, strict=True))[
            : None if stop is None else stop + 1
        ]:
            x = down(x)
            if self.grad_checkpointing and x.requires_grad:
                x = checkpoint_sequential(stage, len(stage), x, use_reentrant=False)
            else:
                x = stage(x)
            maps.append(x)
        return maps

    def dense_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps, each through its norm."""
        return [getattr(self, f"norm{i}")(y) for i, y in enumerate(self.stage_maps(x))]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last map -> logits (B, num_classes), or with `pre_logits` what the classifier sees."""
        x = self.norm(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer, for another number of classes."""
        like = self.norm.weight
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
            if self._pooled() != like.numel():
                self.norm = nn.LayerNorm(self._pooled(), eps=1e-6).to(like)
        self.num_classes = num_classes
        self.head = nn.Linear(self._pooled(), num_classes).to(like) if num_classes else nn.Identity()
        self.head.apply(_initialize)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """The layers of layer-wise rates, by the name of a parameter: twelve between stem and head, as in fine-tuning.

        Stages 1, 2 and 4 are one each, the blocks of stage 3 up to nine; with `coarse` every stage is one.
        """
        blocks = len(self.stages[2])
        each = blocks if coarse else -(-blocks // 9)
        fine = -(-blocks // each)

        def layer(name: str) -> float:
            part, _, rest = name.partition(".")
            if part not in ("downsample_layers", "stages"):
                return math.inf
            stage, place = (int(number) if number.isdigit() else 0 for number in rest.split(".")[:2])
            if part == "downsample_layers":
                place = 0
                if stage == 0:
                    return 0
            return (1, 2, 3 + place // each, 3 + fine)[stage]

        return layer

    def _pooled(self) -> int:
        return self.num_features * self.global_pool.feat_mult()

    def _merge(self) -> None:
        warn_if_unseen(self)
        self.eval()
        for block in self.modules():
            if isinstance(block, UniRepLKNetBlock):
                block.reparameterize()


def _halve(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=2, padding=1)


def _with_bias(conv: DepthwiseConv2d) -> DepthwiseConv2d:
    """The same convolution with a bias of 0."""
    other = DepthwiseConv2d(conv.in_channels, conv.kernel_size[0], bias=True).to(conv.weight)
    other.weight.copy_(conv.weight)
    other.bias.zero_()
    return other


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


register(
    Family(
        "unireplknet", "UniRepLKNet", UniRepLKNet, VARIANTS,
        "https://huggingface.co/DingXiaoH/UniRepLKNet", "apache-2.0", "downsample_layers.0.0", "head",
    )
)  # fmt: skip
