"""OverLoCK: its blocks and models, by the authors' names."""

from __future__ import annotations

from adapters import Arrays, Case, model
from adapters.inceptionnext import built, parameters, tensors
from adapters.unireplknet import arguments as without_switches
from adapters.unireplknet import reparam_outputs


def arguments(config: dict) -> dict:
    return {name: value for name, value in without_switches(config).items() if name != "use_gemm"}


@model("03-overlock", "DilatedReparamBlock")
def reparam(case: Case, state: Arrays, inputs: Arrays):
    import torch

    from mercer.nn.conv import OVERLOCK_BRANCHES, DilatedReparamBlock
    from mercer.vision.backbones import load_official

    config = arguments(case["config"])
    made = DilatedReparamBlock(branches=OVERLOCK_BRANCHES[config["kernel_size"]], **config)
    return reparam_outputs(load_official(made, tensors(state)).eval(), tensors(inputs)["x"], torch)


@model("03-overlock", "RepConvBlock", "DynamicConvBlock", "ContMixBlock")
def block(case: Case, state: Arrays, inputs: Arrays):
    import torch

    from mercer.nn.conv import ContMixBlock
    from mercer.vision.backbones import load_official, overlock

    kind = ContMixBlock if case["entry"] == "ContMixBlock" else getattr(overlock, case["entry"])
    made = load_official(kind(**arguments(case["config"])), tensors(state)).eval()
    with torch.no_grad():
        out = made(**tensors(inputs)) if len(inputs) > 1 else made(tensors(inputs)["x"])
    names = list(case["outputs"])
    values = [out] if isinstance(out, torch.Tensor) else out
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}, parameters(made)


@model("03-overlock", "overlock_*", "OverLoCK")
def network(case: Case, state: Arrays, inputs: Arrays):
    import torch

    from mercer.vision.backbones import OverLoCK

    config = arguments(case["config"])
    if "extra_norm.0.weight" in state:
        config |= {"features_only": True, "context_map": "extra_norm.4.weight" in state}
    else:
        config |= {"aux_head": "aux_head.0.weight" in state}
    made = built("overlock", config) if "variant" in config else OverLoCK(**config)
    made.load_official(tensors(state)).eval()
    x = tensors(inputs)["x"]
    with torch.no_grad():
        if made.features_only:
            return {f"out{i}": y.numpy() for i, y in enumerate(made(x))}, parameters(made)
        base = made.forward_base(x)
        ctx = made.forward_overview(base[2])
        outputs = {"logits": made(x), "pre": base[1], "ctx": ctx}
        return {name: value.numpy() for name, value in outputs.items()}, parameters(made)
