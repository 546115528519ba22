"""What all families share: the table of variants, timm's registry, the parts of timm's interface that do not depend on
the network, and counting.

A family is one file with a table `VARIANTS`, a class made from :class:`Backbone`, and one call of :func:`register`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureInfo, feature_take_indices
from torch import nn

from mercer.nn.conv import DepthwiseConv2d
from mercer.nn.conv._contmix import RegionsToKernels
from mercer.nn.conv._reparam import leave_inference, outside_autograd
from mercer.vision.backbones._checkpoint import load_official

__all__ = ["FAMILIES", "Backbone", "Family", "Variant", "all_macs", "macs", "register", "variants"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One published variant: what it is made of, and what its authors say of it.

    Attributes:
        arguments: Of the family's class.
        parameters: Trainable, 1000 classes, as built.
        deploy_parameters: The same when re-parameterised, where that changes anything.
        gmacs: 10^9 multiply-adds at `input_size`, re-parameterised, by the rule of the published figures: :func:`macs`.
        all_gmacs: The same with every product: :func:`all_macs`.
        top1: Published ImageNet-1K accuracy in percent at `input_size`.
        input_size: Side of the images.
        crop_pct: Of the test crop.
        pretrained_on: What the published weights were trained on before ImageNet-1K.
    """

    arguments: Mapping[str, Any]
    parameters: int
    gmacs: float
    all_gmacs: float
    top1: float
    input_size: int = 224
    crop_pct: float = 0.875
    deploy_parameters: int | None = None
    pretrained_on: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """A family by its name in timm's registry, `mercer_<name>_<variant>`."""

    name: str
    title: str
    model: type[Backbone]
    variants: Mapping[str, Variant]
    weights: str
    licence: str
    first_conv: str | tuple[str, ...]
    classifier: str | tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {}


class Backbone(nn.Module):
    """The interface of timm that does not depend on the network, and re-parameterisation.

    A family gives `stage_maps` (all maps, finest first), `forward_head`, `_merge` (the whole model, in place) and sets
    `num_classes`, `in_chans`, `num_features`, `feature_info`, `deploy`.
    """

    family = ""
    variant_name = ""
    #: (pattern, replacement) from the authors' names of entries to ours.
    official_names: tuple[tuple[str, str], ...] = ()
    num_classes: int
    in_chans: int
    num_features: int
    feature_info: Any
    deploy: bool = False
    features_only: bool = False
    out_indices: tuple[int, ...] = (0, 1, 2, 3)
    grad_checkpointing: bool = False
    min_size = 32

    def stage_maps(self, x: torch.Tensor, stop: int | None = None) -> list[torch.Tensor]:
        """The maps of the stages, finest first, up to index `stop`."""
        raise NotImplementedError

    def check_input(self, x: torch.Tensor) -> None:
        """Refuse what is no batch of images of this model's channels, or too small for its strides."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"x must be (B, {self.in_chans}, H, W), got {tuple(x.shape)}")
        if min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f"x must be at least {self.min_size} pixels high and wide, got {tuple(x.shape[2:])}"
            )

    def dense_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps for dense prediction; a family that norms them does it here."""
        return self.stage_maps(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) -> the last map, (B, num_features, H/32, W/32)."""
        return self.stage_maps(x)[-1]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last map -> logits (B, num_classes), or with `pre_logits` what the classifier sees."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> Any:
        """Logits (B, num_classes); with `features_only` the list of maps."""
        if self.features_only:
            maps = self.dense_maps(x)
            return [maps[i] for i in self.out_indices]
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The last map and those of the stages `indices`, as timm's models give them."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        maps = self.stage_maps(x, last if stop_early else None)
        chosen = [maps[i] for i in sorted(take)]
        return chosen if intermediates_only else (maps[-1], chosen)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks in training and compute the rest again backward."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay beside those of one dimension."""
        return set()

    def load_official(self, source: Any, *, ignore: Sequence[str] = ()) -> Backbone:
        """:func:`mercer.vision.backbones.load_official` for this model."""
        load_official(self, source, ignore=ignore)
        return self

    @outside_autograd
    def reparameterize(self) -> Backbone:
        """Become the form for inference, in place: batch norms and branches folded into the convolutions.

        Outputs agree with those of the training form in evaluation mode to 1e-5 (float32) or 1e-10 (float64) of
        their scale. The model is left in evaluation mode and refuses to be trained; the second call does nothing.
        Under `torch.inference_mode` the parameters are ordinary ones all the same.
        """
        if not self.deploy:
            leave_inference(self)
            self._merge()
            self.deploy = True
        return self.eval()

    def _merge(self) -> None:
        raise NotImplementedError

    def train(self, mode: bool = True) -> Backbone:
        """As in torch; RuntimeError for a re-parameterised model, which has lost what training needs."""
        if mode and self.deploy:
            raise RuntimeError(
                "a re-parameterised model cannot be trained: its branches and batch norms are merged; "
                "train the model as built and call reparameterize() on a copy"
            )
        return super().train(mode)


def register(family: Family) -> None:
    """Enter the family and put each variant into timm's registry, its entry point into the module that calls."""
    FAMILIES[family.name] = family
    module = sys.modules[family.model.__module__]
    cfgs = {
        f"mercer_{family.name}_{name}": _cfg(family, variant) for name, variant in family.variants.items()
    }
    vars(module)["default_cfgs"] = generate_default_cfgs(cfgs)
    for name, variant in family.variants.items():
        entry = _entry(family, name, variant)
        entry.__module__ = module.__name__
        setattr(module, entry.__name__, register_model(entry))
        # The authors' own word for it, for those who import it from here.
        setattr(module, f"{family.name}_{name}", entry)


def _cfg(family: Family, variant: Variant) -> dict[str, Any]:
    size = variant.input_size
    return {
        "url": "", "num_classes": 1000, "input_size": (3, size, size), "pool_size": (-(-size // 32),) * 2,
        "crop_pct": variant.crop_pct, "interpolation": "bicubic", "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD, "first_conv": family.first_conv, "classifier": family.classifier,
        "license": family.licence, "origin_url": family.weights,
    }  # fmt: skip


def _entry(family: Family, name: str, variant: Variant) -> Any:
    full = f"mercer_{family.name}_{name}"

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise ValueError(
                f"pretrained must be False: nothing is downloaded. The authors' weights are at {family.weights}; "
                "load the file with model.load_official(path)"
            )
        dense = kwargs.pop("features_only", False)
        indices = tuple(kwargs.pop("out_indices", (0, 1, 2, 3)))
        model_class: Any = family.model
        if dense:
            model_class = functools.partial(family.model, features_only=True, out_indices=indices)
        model = build_model_with_cfg(model_class, full, False, **{**variant.arguments, **kwargs})
        model.variant_name = full
        return model

    entry.__name__ = entry.__qualname__ = full
    entry.__doc__ = f"{family.title} {name.upper()}: {variant.parameters / 1e6:.1f} M parameters."
    return entry


def variants() -> list[tuple[str, Family, Variant]]:
    """(name in timm, family, variant) of all, by family."""
    return [
        (f"mercer_{family.name}_{name}", family, variant)
        for family in FAMILIES.values()
        for name, variant in family.variants.items()
    ]


#: What the authors' counters see; by the exact type, so what is derived from a layer is not counted.
SEEN = (nn.Conv2d, nn.Linear, DepthwiseConv2d, RegionsToKernels)


def macs(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Multiply-adds of one forward pass in evaluation mode by the rule of the published figures.

    Authors count with tools that go through the layers by type (mmcv's `get_model_complexity_info`, ptflops):
    convolutions and linear layers with their biases. What is written as a function or derived from a layer is not
    seen: of OverLoCK the affinities, the sums with dynamic kernels, the residual depthwise 3 x 3 and the layer scales,
    2 to 3 % of the whole. :func:`all_macs` has every product. Batch norms, which those tools add (0.2 to 1 %), are left
    out here: they are factors of a neighbour.

    Args:
        model: Any module, on any device; its shapes alone are run, so nothing is computed.
        input_size: (C, H, W).

    Example:
        >>> macs(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10)), all_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10))
        (22400, 21600)
    """
    total = 0

    def count(layer: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        nonlocal total
        total += out.numel() * (layer.weight[0].numel() + (layer.bias is not None))

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if type(layer) in SEEN]
    try:
        _shapes_alone(model, input_size)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def all_macs(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Multiply-adds of every convolution, linear layer and matrix product of one forward pass, without biases.

    Arguments as for :func:`macs`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _shapes_alone(model, input_size)
    return counter.get_total_flops() // 2


def _shapes_alone(model: nn.Module, input_size: tuple[int, ...]) -> None:
    """One forward pass in evaluation mode of tensors without content."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.func import functional_call

    modes = {layer: layer.training for layer in model.modules()}
    model.train(False)
    try:
        with FakeTensorMode(), torch.no_grad():
            state = {
                name: torch.empty(t.shape, dtype=t.dtype)
                for name, t in (*model.named_parameters(), *model.named_buffers())
            }
            functional_call(model, state, torch.empty(1, *input_size))
    finally:
        for layer, training in modes.items():
            layer.training = training


class Stage(NamedTuple):
    """What timm's users read of a map."""

    num_chs: int
    reduction: int
    module: str


def feature_info(stages: Sequence[Stage], out_indices: Sequence[int] | None = None) -> Any:
    """timm's description of the maps: a list, or with `out_indices` a `FeatureInfo`."""
    rows = [stage._asdict() for stage in stages]
    return rows if out_indices is None else FeatureInfo(rows, tuple(out_indices))
