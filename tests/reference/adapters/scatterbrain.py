"""scatterbrain: full, Performer and Scatterbrain attention with given projections and given clusters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

import golden
from adapters import Arrays, Case, Check, table, worst
from mercer.nn.attention.scatterbrain import estimated_matrix, scatterbrain_attention


@table("01-scatterbrain", "attention")
def attention(case: Case, arrays: Arrays) -> Iterator[Check]:
    config = case["config"]
    q, k, v = (
        torch.from_numpy(golden.make_input(spec["shape"], spec["seed"]) * np.float32(spec.get("scale", 1)))
        .double()
        .transpose(1, 2)
        for spec in (case["inputs"][name] for name in ("query", "key", "value"))
    )
    b, h, t, _ = q.shape
    mask = torch.ones(t, k.shape[2], dtype=torch.bool)
    common = {"temperature": config["softmax_temp"], "need_weights": True}

    def projected(name: str) -> dict:
        w = torch.from_numpy(arrays[f"{name}_projection"])
        cosh = name != "performer"
        return {
            "projection": w,
            "n_features": len(w) * (2 if cosh else 1),
            "features": "cosh" if cosh else "positive",
        }

    ways = {
        "full": {"n_features": 0, "support": mask},
        "sblocal": {"support": "local", "window": config.get("local_context", 1)},
        "sbsmyrf": {"support": "smyrf", "cluster_size": config.get("cluster_size", 1)},
        "performer": {"support": None},
    }
    if "sbsmyrf_q_positions" in arrays:
        orders = [torch.from_numpy(arrays[f"sbsmyrf_{side}_positions"]) for side in "qk"]
        ways["sbsmyrf"] |= {"clusters": tuple(orders), "n_hashes": len(orders[0])}
    for name, true in arrays.items():
        way, _, what = name.partition("_")
        if what.endswith("projection") or what.endswith("positions"):
            continue
        if way not in ways:
            yield Check(name, np.nan, 0.0, "this array is not known here")
            continue
        options = ways[way] | (projected(way) if way != "full" else {})
        out, weights = scatterbrain_attention(q, k, v, **options, **common)
        if what == "out":
            got = out.transpose(1, 2).numpy()
        elif what == "attn":
            got = weights.numpy()
        elif what == "support":
            exact = estimated_matrix(q, k, **{**options, "n_features": 0, "projection": None})
            got = (exact > 0).double().numpy()
        else:
            options = {n: x for n, x in options.items() if n not in ("support", "clusters", "cluster_size")}
            got = estimated_matrix(q, k, support=None, temperature=config["softmax_temp"], **options).numpy()
            yield worst(name, got, true.astype(float), 1e-4 * np.abs(true), "1e-4 |t|")
            continue
        yield worst(name, got, true.astype(float), 1e-4 * true.std(), "1e-4 std")
        single, _ = scatterbrain_attention(q.float(), k.float(), v.float(), **options, **common)
        yield worst(f"{name} (float32)", single.numpy(), out.numpy(), 1e-4 * float(out.std()), "1e-4 std")
