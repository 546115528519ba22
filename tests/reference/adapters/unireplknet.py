"""UniRepLKNet: the re-parameterised block, the whole block and the models, by the authors' names."""

from __future__ import annotations

from adapters import Arrays, Case, model
from adapters.inceptionnext import built, parameters, tensors

#: Of the original's constructors: which implementation runs, where its authors' weights lie, switches of no effect.
NOT_OURS = ("attempt_use_lk_impl", "init_cfg", "use_sync_bn", "with_cp", "disable_iGEMM")


def arguments(config: dict) -> dict:
    return {name: value for name, value in config.items() if name not in NOT_OURS}


def network_of(config: dict, state: Arrays):
    from mercer.vision.backbones import UniRepLKNet

    config = arguments(config)
    if "norm0.weight" in state:
        config |= {"features_only": True}
        config.pop("num_classes", None)
    made = built("unireplknet", config) if "variant" in config else UniRepLKNet(**config)
    return made.load_official(tensors(state)).eval()


@model("19-unireplknet", "DilatedReparamBlock")
def reparam(case: Case, state: Arrays, inputs: Arrays):
    import torch

    from mercer.nn.conv import DilatedReparamBlock
    from mercer.vision.backbones import load_official

    made = load_official(DilatedReparamBlock(**arguments(case["config"])), tensors(state)).eval()
    return reparam_outputs(made, tensors(inputs)["x"], torch)


def reparam_outputs(made, x, torch):
    count = parameters(made)
    with torch.no_grad():
        train = made(x)
        merged = made.merge()(x)
        conv = made.lk_origin
        outputs = {"train": train, "merged": merged, "kernel": conv.weight, "bias": conv.bias}
        return {name: value.numpy() for name, value in outputs.items()}, count


@model("19-unireplknet", "UniRepLKNetBlock")
def block(case: Case, state: Arrays, inputs: Arrays):
    import torch

    from mercer.vision.backbones import load_official
    from mercer.vision.backbones.unireplknet import UniRepLKNetBlock

    made = load_official(UniRepLKNetBlock(**arguments(case["config"])), tensors(state)).eval()
    x, count = tensors(inputs)["x"], parameters(made)
    with torch.no_grad():
        train = made(x)
        deploy = made.reparameterize()(x)
        conv, last = getattr(made.dwconv, "lk_origin", made.dwconv), made.pwconv2[0]
        outputs = {"train": train, "deploy": deploy, "pw2_weight": last.weight, "pw2_bias": last.bias}
        if hasattr(conv, "weight"):
            outputs |= {"dw_kernel": conv.weight, "dw_bias": conv.bias}
        return {name: value.numpy() for name, value in outputs.items()}, count


@model("19-unireplknet", "unireplknet_*", "UniRepLKNet")
def network(case: Case, state: Arrays, inputs: Arrays):
    import torch

    made = network_of(case["config"], state)
    with torch.no_grad():
        out = made(tensors(inputs)["x"])
    if made.features_only:
        return {f"out{i}": y.numpy() for i, y in enumerate(out)}, parameters(made)
    return dict.fromkeys(case["outputs"], out.numpy()), parameters(made)
