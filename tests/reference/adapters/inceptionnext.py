"""InceptionNeXt: the mixer, the block and the models, by the authors' names."""

from __future__ import annotations

import numpy as np

from adapters import Arrays, Case, model


def tensors(arrays: Arrays) -> dict:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def built(prefix: str, config: dict, **changes):
    """The model that a configuration names: a variant, or a class with arguments of its own."""
    import timm

    import mercer.vision  # noqa: F401

    config = {**config, **changes}
    variant = config.pop("variant")
    return timm.create_model(f"mercer_{prefix}_{variant}", **config)


@model("38-inceptionnext", "InceptionDWConv2d")
def mixer(case: Case, state: Arrays, inputs: Arrays):
    import torch

    from mercer.nn.conv import InceptionDWConv2d
    from mercer.vision.backbones import load_official

    made = load_official(InceptionDWConv2d(**case["config"]), tensors(state)).eval()
    with torch.no_grad():
        return {"out": made(tensors(inputs)["x"]).numpy()}, parameters(made)


@model("38-inceptionnext", "MetaNeXtBlock")
def block(case: Case, state: Arrays, inputs: Arrays):
    import torch

    from mercer.vision.backbones import load_official
    from mercer.vision.backbones.inceptionnext import MetaNeXtBlock

    made = load_official(MetaNeXtBlock(**case["config"]), tensors(state)).eval()
    with torch.no_grad():
        return {"out": made(tensors(inputs)["x"]).numpy()}, parameters(made)


@model("38-inceptionnext", "inceptionnext_*", "InceptionNeXt")
def network(case: Case, state: Arrays, inputs: Arrays):
    import torch

    from mercer.vision.backbones import InceptionNeXt

    config = dict(case["config"])
    made = built("inceptionnext", config) if "variant" in config else InceptionNeXt(**config)
    made.load_official(tensors(state)).eval()
    x = tensors(inputs)["x"]
    with torch.no_grad():
        if made.features_only:
            return {f"out{i}": y.numpy() for i, y in enumerate(made(x))}, parameters(made)
        last = made.forward_features(x)
        return {"logits": made.forward_head(last).numpy(), "features": last.numpy()}, parameters(made)
