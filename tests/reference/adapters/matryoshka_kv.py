"""matryoshka-kv: one attention layer with a rank for each head, and Cayley's inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from adapters import Arrays, Case, model
from mercer.nn.attention.matryoshka import (
    KVProjection,
    MatryoshkaKV,
    cayley,
    cayley_inverse,
    project_attention,
)


def rotary(x: torch.Tensor, theta: float) -> torch.Tensor:
    """The rotate-half convention, positions 0, 1, ..."""
    n, d = x.shape[-2:]
    angles = torch.arange(n)[:, None] * theta ** (-torch.arange(0, d, 2) / d)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


@model("39-matryoshka-kv", "PcaLlamaAttention")
def attention(case: Case, state: Arrays, inputs: Arrays) -> tuple[dict[str, Any], int]:
    config = case["config"]
    weights = {name: torch.from_numpy(value) for name, value in state.items()}
    names = {name: f"model.layers.0.self_attn.{name}" for name in weights if "proj." not in name}
    official = {names[name]: weights[name] for name in names}
    projection: KVProjection = MatryoshkaKV.load_official(official).projections[0]
    x, heads = torch.from_numpy(inputs["hidden_states"]), config["num_heads"]
    q, k, v = (
        F.linear(x, weights[f"{n}_proj.weight"]).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv"
    )
    q, k = rotary(q, config["rope_theta"]), rotary(k, config["rope_theta"])

    def attend(key_ranks: Any, value_ranks: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, seen = project_attention(
            q, k, v, projection, key_ranks, value_ranks, is_causal=True, return_weights=True
        )
        return F.linear(out.transpose(1, 2).flatten(2), weights["o_proj.weight"]), seen

    out, seen = attend(config["key_ranks"], config["value_ranks"])
    U, V = projection.matrices()
    outputs = {
        "out": out, "attention": seen, "key_projection": U, "value_projection": V,
        "full_rank": attend(None, None)[0],
    }  # fmt: skip
    count = sum(p.numel() for p in projection.parameters()) + sum(
        value.size for name, value in state.items() if name.endswith("proj.weight")
    )
    return {name: value.detach().numpy() for name, value in outputs.items()}, count


@model("39-matryoshka-kv", "inverse_orthogonal")
def inverse(case: Case, state: Arrays, inputs: Arrays) -> tuple[dict[str, Any], None]:
    rotations = []
    for value in inputs.values():
        Q, R = np.linalg.qr(value)
        Q = Q * np.sign(np.diag(R))
        if np.linalg.det(Q) < 0:
            Q[:, 0] = -Q[:, 0]
        rotations.append(torch.from_numpy(Q))
    Q = torch.stack(rotations)
    X = cayley_inverse(Q)
    return {"rotation": Q.numpy(), "parameter": X.numpy(), "back": cayley(X).numpy()}, None
