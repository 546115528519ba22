"""neighborhood-attention: the operators with their gradients, the layers, and whole networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from adapters import Arrays, Case, model
from mercer.nn.attention import neighborhood

WINDOWS = ("kernel_size", "stride", "dilation", "is_causal")


def _how(config: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}


@model("28-neighborhood-attention", "na1d", "na2d", "na3d")
def operator(case: Case, state: Arrays, inputs: Arrays) -> tuple[Arrays, None]:
    attend = getattr(neighborhood, case["entry"])
    t = {name: torch.from_numpy(a).requires_grad_("grad" not in name) for name, a in inputs.items()}
    extra = {name: t[name] for name in ("additional_keys", "additional_values") if name in t}
    out, lse = attend(t["query"], t["key"], t["value"], **_how(case["config"]), **extra, return_lse=True)
    total = (out * t["grad_output"]).sum() if "grad_output" in t else out.sum()
    if "grad_lse" in t:
        total = total + (lse * t["grad_lse"]).sum()
    total.backward()
    found = {"out": out, "lse": lse} | {f"grad_{n}": x.grad for n, x in t.items() if x.grad is not None}
    double = [torch.from_numpy(inputs[n]).double() for n in ("query", "key", "value")]
    more = {name: x.detach().double() for name, x in extra.items()}
    wide = attend(*double, **_how(case["config"]), **more)
    assert float((wide - out.detach().double()).abs().max()) < 1e-5, "float64 and float32 disagree"
    return {name: np.asarray(x.detach()) for name, x in found.items()}, None


@model("28-neighborhood-attention", "module", "NeighborhoodAttention*")
def module(case: Case, state: Arrays, inputs: Arrays) -> tuple[Arrays, int]:
    rank = inputs["x"].ndim - 2
    config = _how(case["config"])
    config.setdefault("rel_pos_bias", "rpb" in state)
    layer = getattr(neighborhood, f"NeighborhoodAttention{rank}d")(**config)
    layer.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()}, strict=True)
    out = layer.eval()(torch.from_numpy(inputs["x"]))
    return {"out": out.detach().numpy()}, sum(p.numel() for p in layer.parameters())


@model("28-neighborhood-attention", "NAT", "DiNAT", "nat_*", "dinat_*")
def network(case: Case, state: Arrays, inputs: Arrays) -> tuple[Arrays, int]:
    config = {name: v for name, v in case["config"].items() if v is not None}
    if case["entry"] in ("NAT", "DiNAT"):
        net = neighborhood.NAT(**config)
    else:
        net = neighborhood.nat(case["entry"], **config)
    net.load_official({name: torch.from_numpy(a) for name, a in state.items()})
    net.eval()
    with torch.no_grad():
        features = net.forward_features(torch.from_numpy(inputs["x"]))
        logits = net.head(features)
    found = {"features": features.numpy(), "logits": logits.numpy()}
    return found, sum(p.numel() for p in net.parameters())
