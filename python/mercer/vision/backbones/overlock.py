"""OverLoCK (Lou and Yu, CVPR 2025, arXiv 2502.20087).

Overview first, look closely next. A Base-Net makes a map at stride 16; a light Overview-Net goes on to stride 32 at
once; a Focus-Net reads the stride-16 map again (and its continuation at stride 32) with what the overview saw injected
into features and into kernels, which are made for each pixel by context mixing (:mod:`mercer.nn.conv`).

Published parameter counts are those of the re-parameterised model without its auxiliary head, which serves training
only: in training mode a model with `aux_head` returns ``{"main": logits, "aux": logits}``, and the loss is
CE(main) + 0.4 CE(aux).
Sides are halved rounding up, so any image of 32 pixels or more fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, SelectAdaptivePool2d, trunc_normal_
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mercer import _checks
from mercer.nn.conv import ContextMixing, DilatedReparamBlock, ResidualDepthwiseConv2d
from mercer.nn.conv._contmix import OVERLOCK_BRANCHES, add_scaled, mixing_mlp
from mercer.nn.layers import BiasedLayerScale, GlobalResponseNorm, SqueezeExcite
from mercer.vision.backbones._family import Backbone, Family, Stage, Variant, feature_info, register

__all__ = ["VARIANTS", "DynamicConvBlock", "OverLoCK", "RepConvBlock"]


def _variant(depths: Any, focus: Any, dims: Any, heads: Any, *figures: Any) -> Variant:
    arguments = {"depth": depths, "sub_depth": focus, "embed_dim": dims, "sub_num_heads": heads}
    parameters, deploy, gmacs, all_gmacs, top1, crop = figures
    return Variant(arguments, parameters, gmacs, all_gmacs, top1, crop_pct=crop, deploy_parameters=deploy)


VARIANTS = {
    "xt": _variant(
        (2, 2, 3, 2), (6, 2), (56, 112, 256, 336), (4, 6), 17_307_272, 16_453_712, 2.622, 2.700, 82.7, 0.925
    ),
    "t": _variant(
        (4, 4, 6, 2), (12, 2), (64, 128, 256, 512), (4, 8), 34_990_472, 33_467_040, 5.481, 5.643, 84.2, 0.95
    ),
    "s": _variant(
        (6, 6, 8, 3), (16, 3), (64, 128, 320, 512), (8, 16), 58_309_772, 56_156_452, 9.634, 9.890, 84.8, 0.95
    ),
    "b": _variant(
        (8, 8, 10, 4),
        (20, 4),
        (80, 160, 384, 576),
        (6, 9),
        98_012_968,
        94_942_528,
        16.690,
        17.090,
        85.1,
        0.975,
    ),
}

#: From the authors' names of squeeze-and-excitation layers to ours.
NAMES = (
    (r"(proj\.3|se_layer)\.proj\.1\.", r"\1.down."),
    (r"(proj\.3|se_layer)\.proj\.3\.(?=weight|bias)", r"\1.up."),
)


class RepConvBlock(nn.Module):
    """The block of Base-Net and Overview-Net: x + depthwise 3 x 3, then a large static kernel and an MLP.

    Args:
        dim: C of maps (B, C, H, W).
        kernel_size: Of the :class:`DilatedReparamBlock`.
        mlp_ratio: Hidden width over C.
        ls_init_value: Of the layer scale; None for none.
        res_scale: The layer scale is on the shortcut.
        drop_path: Rate.
        deploy: Build the re-parameterised form.
    """

    official_names = NAMES

    def __init__(
        self,
        dim: int = 64,
        kernel_size: int = 7,
        mlp_ratio: float = 4,
        ls_init_value: float | None = None,
        res_scale: bool = False,
        drop_path: float = 0.0,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.res_scale = res_scale
        self.dwconv = ResidualDepthwiseConv2d(dim, 3)
        self.proj = nn.Sequential(
            LayerNorm2d(dim),
            _reparam(dim, kernel_size, deploy),
            nn.BatchNorm2d(dim),
            _squeeze(dim),
            nn.Conv2d(dim, hidden, 1),
            nn.GELU(),
            ResidualDepthwiseConv2d(hidden, 3),
            GlobalResponseNorm(hidden),
            nn.Conv2d(hidden, dim, 1),
        )
        self.ls = _scale(dim, ls_init_value)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.dwconv(x)
        return add_scaled(x, self.proj(x), self.ls, self.drop_path, self.res_scale)


class DynamicConvBlock(ContextMixing):
    """The block of Focus-Net: kernels of every pixel from the map and the context prior.

    Args:
        dim: C of the map x.
        ctx_dim: Four times the channels of the prior h.
        kernel_size, smk_size, num_heads: Of :class:`mercer.nn.conv.ContextMixing`.
        mlp_ratio: Hidden width over C.
        ls_init_value: Of the layer scale; None for none.
        res_scale: The layer scale is on the shortcut.
        drop_path: Rate.
        is_first: h is the prior itself: it is not mixed with it.
        is_last: Return x and h as one map.
        deploy: Build the re-parameterised form.
    """

    official_names = NAMES

    def __init__(
        self,
        dim: int = 64,
        ctx_dim: int = 32,
        kernel_size: int = 7,
        smk_size: int = 5,
        num_heads: int = 2,
        mlp_ratio: float = 4,
        ls_init_value: float | None = None,
        res_scale: bool = False,
        drop_path: float = 0.0,
        is_first: bool = False,
        is_last: bool = False,
        deploy: bool = False,
    ) -> None:
        prior = ctx_dim // 4
        super().__init__(dim, prior, kernel_size, smk_size, num_heads)
        out = dim + prior
        self.dims, self.is_first, self.is_last, self.res_scale = (dim, prior), is_first, is_last, res_scale
        if not is_first:
            self.x_scale = BiasedLayerScale(prior, 1.0)
            self.h_scale = BiasedLayerScale(prior, 1.0)
        self.dwconv1 = ResidualDepthwiseConv2d(out, 3)
        self.norm1 = LayerNorm2d(out)
        self.fusion = nn.Sequential(
            nn.Conv2d(out, out, 3, padding=1, groups=out),
            nn.BatchNorm2d(out),
            nn.GELU(),
            nn.Conv2d(out, dim, 1),
            GlobalResponseNorm(dim),
        )
        self.dyconv_proj = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.lepe = nn.Sequential(_reparam(dim, kernel_size, deploy), nn.BatchNorm2d(dim))
        self.se_layer = _squeeze(dim)
        self.gate = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.SiLU())
        self.proj = nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, out, 1))
        self.dwconv2 = ResidualDepthwiseConv2d(out, 3)
        self.norm2 = LayerNorm2d(out)
        self.mlp = mixing_mlp(out, int(dim * mlp_ratio), out)
        self.ls1 = _scale(out, ls_init_value)
        self.ls2 = _scale(out, ls_init_value)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, h_x: torch.Tensor, h_r: torch.Tensor) -> Any:
        """x (B, C, H, W), h_x and the prior h_r (B, ctx_dim / 4, H, W) -> (x, h), or both as one map from the last."""
        if not self.is_first:
            h_x = self.x_scale(h_x) + self.h_scale(h_r)
        shortcut = self.dwconv1(torch.cat([x, h_x], dim=1))
        f = self.norm1(shortcut)
        value = self.fusion(f)
        gate, lepe = self.gate(value), self.lepe(value)
        value, wide = self.enlarged(value, f)
        queries, keys = wide.split(self.dims, dim=1)
        y = self.mix(queries, keys, value)
        if wide is not f:
            y = functional.adaptive_avg_pool2d(y, f.shape[2:])
        y = gate * self.se_layer(self.dyconv_proj(y) + lepe)
        z = self.dwconv2(add_scaled(shortcut, self.proj(y), self.ls1, self.drop_path, self.res_scale))
        z = add_scaled(z, self.mlp(self.norm2(z)), self.ls2, self.drop_path, self.res_scale)
        return z if self.is_last else z.split(self.dims, dim=1)


class OverLoCK(Backbone):
    """OverLoCK.

    Args:
        depth: Blocks of Base-Net's three stages and of the Overview-Net.
        sub_depth: Blocks of the Focus-Net at strides 16 and 32.
        embed_dim: Channels of the four stages.
        kernel_size: Static kernels of the four stages.
        sub_kernel_size: Large dynamic windows at strides 16 and 32.
        smk_size: Small dynamic window.
        sub_num_heads: Half the groups of dynamic kernels at strides 16 and 32.
        mlp_ratio: Of Base-Net's stages and the Overview-Net.
        sub_mlp_ratio: Of the Focus-Net.
        ls_init_value: Layer scale of the four stages; the Focus-Net takes the last two.
        num_classes: 0 for none.
        in_chans: Channels of the images.
        projection: Width of the head.
        drop_path_rate: Of the last block; linear from 0 over Base, Overview, Focus.
        drop_rate: Dropout before the classifier.
        global_pool: "avg", "max", ...: timm's.
        aux_head: Whether there is a classifier on the overview, for training.
        features_only: Return the list of maps for dense prediction, each through a norm of its own; there is no head.
        context_map: With `features_only`, add the overview to the last map, as the authors do for detection.
        out_indices: Which maps.
        deploy: Build the re-parameterised form, which has no auxiliary head.

    Example:
        >>> model = OverLoCK((1, 1, 1, 1), (1, 1), (16, 16, 32, 32), (5, 5, 5, 5), (5, 5), 3, (2, 2), num_classes=5)
        >>> model.eval()(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 5])
    """

    family = "overlock"
    official_names = NAMES

    def __init__(
        self,
        depth: Sequence[int] = (2, 2, 2, 2),
        sub_depth: Sequence[int] = (4, 2),
        embed_dim: Sequence[int] = (64, 128, 256, 512),
        kernel_size: Sequence[int] = (17, 15, 13, 7),
        sub_kernel_size: Sequence[int] = (13, 7),
        smk_size: int = 5,
        sub_num_heads: Sequence[int] = (4, 8),
        mlp_ratio: Sequence[float] = (4, 4, 4, 4),
        sub_mlp_ratio: Sequence[float] = (3, 3),
        ls_init_value: Sequence[float | None] = (None, None, 1, 1),
        res_scale: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        projection: int = 1024,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        aux_head: bool = True,
        features_only: bool = False,
        context_map: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        deploy: bool = False,
    ) -> None:
        super().__init__()
        for name, row, n in (
            ("depth", depth, 4), ("sub_depth", sub_depth, 2), ("embed_dim", embed_dim, 4),
            ("kernel_size", kernel_size, 4), ("sub_kernel_size", sub_kernel_size, 2),
            ("sub_num_heads", sub_num_heads, 2), ("mlp_ratio", mlp_ratio, 4), ("sub_mlp_ratio", sub_mlp_ratio, 2),
            ("ls_init_value", ls_init_value, 4),
        ):  # fmt: skip
            if len(row) != n:
                raise ValueError(f"{name} must have {n} entries, got {tuple(row)}")
        d1, d2, d3, d4 = embed_dim
        prior = d4 // 4
        self.num_classes, self.in_chans, self.deploy = 0 if features_only else num_classes, in_chans, deploy
        self.num_features, self.head_hidden_size = d4 + prior, projection
        self.drop_rate = drop_rate
        self.patch_embed1 = _stem(in_chans, d1)
        self.patch_embed2 = _halve(d1, d2)
        self.patch_embed3 = _halve(d2, d3)
        self.patch_embed4 = _halve(d3, d4)
        self.high_level_proj = nn.Conv2d(d4, prior, 1)
        self.patch_embedx = nn.ModuleDict({"x_proj": _halve(d3, d4), "h_proj": _halve(prior, prior)})
        rates = torch.linspace(0, drop_path_rate, sum(depth) + sum(sub_depth), device="cpu").tolist()
        for i in range(4):
            here, rates = rates[: depth[i]], rates[depth[i] :]
            blocks = (
                RepConvBlock(
                    embed_dim[i], kernel_size[i], mlp_ratio[i], ls_init_value[i], res_scale, rate, deploy
                )
                for rate in here
            )
            self.add_module(f"blocks{i + 1}", nn.ModuleList(blocks))
        for i, dim in enumerate((d3, d4)):
            last = sub_depth[i] - 1
            blocks = (
                DynamicConvBlock(
                    dim, d4, sub_kernel_size[i], smk_size, sub_num_heads[i], sub_mlp_ratio[i], ls_init_value[2 + i],
                    res_scale, rates[j], is_first=i == j == 0, is_last=i == 1 and j == last, deploy=deploy,
                )
                for j in range(sub_depth[i])
            )  # fmt: skip
            self.add_module(f"sub_blocks{3 + i}", nn.ModuleList(list(blocks)))
            rates = rates[sub_depth[i] :]
        names = ("blocks1", "blocks2", "sub_blocks3", "sub_blocks4")
        widths = (d1, d2, d3 + prior, d4 + prior)
        rows = [Stage(c, 4 * 2**i, name) for i, (c, name) in enumerate(zip(widths, names, strict=True))]
        self.feature_info = feature_info(rows, out_indices if features_only else None)
        self.features_only, self.out_indices = features_only, tuple(out_indices)
        self.aux_head: nn.Sequential | None = None
        self.context_map = context_map and features_only
        if features_only:
            self.extra_norm = nn.ModuleList([LayerNorm2d(c) for c in (*widths, *[d4] * context_map)])
            if context_map:
                self.h_proj = nn.Sequential(nn.Conv2d(d4, d4 + prior, 1), BiasedLayerScale(d4 + prior, 1e-5))
        else:
            self.head = nn.Sequential(
                nn.Conv2d(d4 + prior, projection, 1, bias=False),
                nn.BatchNorm2d(projection),
                nn.SiLU(),
                SelectAdaptivePool2d(pool_type=global_pool),
                nn.Conv2d(projection, num_classes, 1) if num_classes else nn.Identity(),
            )
            if aux_head and num_classes and not deploy:
                self.aux_head = nn.Sequential(
                    nn.BatchNorm2d(d4), SelectAdaptivePool2d(pool_type="avg"), nn.Conv2d(d4, num_classes, 1)
                )
        self.apply(_initialize)
        if deploy:
            self.eval()

    # The three networks

    def forward_base(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps at strides 4, 8, 16.

        In the form for dense prediction the first two come out of their norms, and the third is made from the second
        as it comes out: so the authors' networks for segmentation and detection were trained.
        """
        self.check_input(x)
        maps: list[torch.Tensor] = []
        for i in (1, 2, 3):
            x = getattr(self, f"patch_embed{i}")(maps[-1] if self.features_only and i == 3 else x)
            x = self._run(f"blocks{i}", x)
            maps.append(self.extra_norm[i - 1](x) if self.features_only and i < 3 else x)
        return maps

    def forward_overview(self, x: torch.Tensor) -> torch.Tensor:
        """Stride 16 (B, d3, ...) -> the overview at stride 32 (B, d4, ...)."""
        return self._run("blocks4", self.patch_embed4(x))

    def forward_focus(self, x: torch.Tensor, ctx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stride 16 and the overview -> Focus-Net's maps at strides 16 (d3 + d4/4 channels) and 32 (d4 + d4/4)."""
        small = self.high_level_proj(ctx)
        prior = functional.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)
        h = prior
        for block in self.sub_blocks3:
            x, h = self._checkpointed(block, x, h, prior)
        fine = torch.cat([x, h], dim=1)
        x, h = self.patch_embedx["x_proj"](x), self.patch_embedx["h_proj"](h)
        for block in self.sub_blocks4[:-1]:
            x, h = self._checkpointed(block, x, h, small)
        return fine, self._checkpointed(self.sub_blocks4[-1], x, h, small)

    def _run(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for block in getattr(self, name):
            x = self._checkpointed(block, x)
        return x

    def _checkpointed(self, block: nn.Module, *maps: torch.Tensor) -> Any:
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return checkpoint(block, *maps, use_reentrant=False)
        return block(*maps)

    # timm's interface

    def stage_maps(self, x: torch.Tensor, stop: int | None = None) -> list[torch.Tensor]:
        """Base-Net at strides 4 and 8, Focus-Net at 16 and 32, up to index `stop`."""
        maps = self.forward_base(x)
        if stop is not None and stop < 2:
            return maps[: stop + 1]
        return [*maps[:2], *self.forward_focus(maps[2], self.forward_overview(maps[2]))]

    def dense_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps, each through its norm; with `context_map` the overview is added to the last."""
        base = self.forward_base(x)
        ctx = self.forward_overview(base[2])
        fine, coarse = self.forward_focus(base[2], ctx)
        maps = [*base[:2], self.extra_norm[2](fine), self.extra_norm[3](coarse)]
        if self.context_map:
            maps[3] = maps[3] + self.h_proj(self.extra_norm[4](ctx))
        return maps

    def forward(self, x: torch.Tensor) -> Any:
        """Logits (B, num_classes); in training with `aux_head` both heads'; with `features_only` the list of maps."""
        if not (self.training and self.aux_head is not None):
            return super().forward(x)
        stride16 = self.forward_base(x)[2]
        ctx = self.forward_overview(stride16)
        main = self.forward_head(self.forward_focus(stride16, ctx)[1])
        return {"main": main, "aux": self.aux_head(ctx).flatten(1)}

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last map -> logits (B, num_classes), or with `pre_logits` what the classifier sees."""
        x = self.head[:4](x)
        if self.drop_rate:
            x = functional.dropout(x, self.drop_rate, self.training)
        return (x if pre_logits else self.head[4](x)).flatten(1)

    def get_classifier(self) -> nn.Module:
        """The last 1x1 convolution."""
        return self.head[4]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New last layers, for another number of classes; without classes there is no auxiliary head."""
        like, width = self.head[0].weight, self.head_hidden_size
        if global_pool is not None:
            self.head[3] = SelectAdaptivePool2d(pool_type=global_pool)
            width *= self.head[3].feat_mult()
        self.num_classes = num_classes
        self.head[4] = nn.Conv2d(width, num_classes, 1).to(like) if num_classes else nn.Identity()
        self.head[4].apply(_initialize)
        if not num_classes:
            self.aux_head = None
        elif self.aux_head is not None:
            self.aux_head[2] = nn.Conv2d(self.aux_head[2].in_channels, num_classes, 1).to(like)
            self.aux_head[2].apply(_initialize)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers of layer-wise rates in the order of the networks: Base, Overview, Focus; stages with `coarse`."""
        order: dict[str, Any] = {"stem": r"^patch_embed1"}
        for entrance, blocks in (
            ("patch_embed1", "blocks1"), ("patch_embed2", "blocks2"), ("patch_embed3", "blocks3"),
            ("patch_embed4", "blocks4"), ("high_level_proj", "sub_blocks3"), ("patch_embedx", "sub_blocks4"),
        ):  # fmt: skip
            each = [(rf"^{entrance}\.", (0,)), (rf"^{blocks}\.(\d+)", None)]
            order[blocks] = rf"^(?:{entrance}|{blocks})\." if coarse else each
        return order

    def no_weight_decay(self) -> set[str]:
        """The relative tables, as in the authors' recipe."""
        return {name for name, _ in self.named_parameters() if "rpb" in name}

    def _merge(self) -> None:
        self.aux_head = None
        self.eval()
        for block in self.modules():
            if isinstance(block, DilatedReparamBlock):
                block.merge()


def _stem(before: int, after: int) -> nn.Sequential:
    half = after // 2
    return nn.Sequential(
        *_conv(before, half, 2), nn.GELU(),
        *_conv(half, half, 1), nn.GELU(),
        *_conv(half, after, 2), nn.GELU(),
        *_conv(after, after, 1),
    )  # fmt: skip


def _halve(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*_conv(before, after, 2))


def _conv(before: int, after: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after)


def _reparam(dim: int, kernel_size: int, deploy: bool) -> DilatedReparamBlock:
    return DilatedReparamBlock(
        dim, kernel_size, OVERLOCK_BRANCHES.get(_checks.integer("kernel_size", kernel_size, 5)), deploy=deploy
    )


def _squeeze(dim: int) -> SqueezeExcite:
    return SqueezeExcite(dim, max(16, dim // 8), nn.GELU)


def _scale(dim: int, value: float | None) -> nn.Module:
    return nn.Identity() if value is None else BiasedLayerScale(dim, value)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


register(
    Family(
        "overlock", "OverLoCK", OverLoCK, VARIANTS, "https://github.com/LMMMEng/OverLoCK/releases/tag/v1",
        "not stated", "patch_embed1.0", ("head.4", "aux_head.2"),
    )
)  # fmt: skip
