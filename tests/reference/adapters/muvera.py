"""MUVERA: encodings with the matrices of the case, exact Chamfer, ball carving."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapters import Arrays, Case, Check, table, worst
from mercer.retrieval import FixedDimensionalEncoder, ball_carve, chamfer_batch

DOUBLE, SINGLE = 1e-12, 1e-5  # relative to the largest magnitude


@table("57-muvera", "fde", "fde_*")
def fde(case: Case, arrays: Arrays) -> Iterator[Check]:
    config = case["config"]
    Q, docs = arrays["Q"], arrays["docs"]
    offsets = np.concatenate([[0], np.cumsum(arrays["doc_lengths"])])

    def encoder(projection: str, fill: bool, final: bool = False) -> FixedDimensionalEncoder:
        identity = projection == "identity"
        return FixedDimensionalEncoder(
            config["d"], config["k_sim"], config["R"], None if identity else config["d_proj"], projection,
            final_dim=config["d_final"] if final else None, fill_empty=fill, partitions=arrays["planes"],
            projections=None if identity else arrays[f"proj_{projection}"],
            final_projection=(arrays["count_sketch_index"], arrays["count_sketch_sign"]) if final else None,
        )  # fmt: skip

    tau = config["tau"]
    sums, labels = ball_carve(Q, tau, return_labels=True)
    for name, true in arrays.items():
        if (
            name in ("Q", "docs", "doc_lengths", "planes", "proj_sparse", "proj_dense")
            or "count_sketch" in name
        ):
            continue  # what goes in
        for dtype, bar in ((np.float64, DOUBLE), (np.float32, SINGLE)):
            q, d = Q.astype(dtype), docs.astype(dtype)
            if name == "partition_q":
                got = encoder("identity", True).partition(q).T
            elif name == "chamfer":
                got = chamfer_batch(q, None, d, offsets)[0]
            elif name == "ball_labels":
                got = labels
            elif name == "ball_centers":
                got = ball_carve(q, tau)
            elif name == "ball_chamfer":
                got = chamfer_batch(sums.astype(dtype), None, d, offsets)[0]
            elif name == "q_final":
                got = encoder("sparse", True, True).encode_queries(q)[0]
            elif name == "d_final":
                got = encoder("sparse", True, True).encode_documents(d, offsets)
            elif name.startswith("q_"):
                got = encoder(name.removeprefix("q_"), True).encode_queries(q)[0]
            elif name.startswith("d_"):
                _, projection, fill = name.split("_")
                got = encoder(projection, fill == "fill").encode_documents(d, offsets)
            else:
                yield Check(name, np.nan, 0.0, "this array is not known here")
                break
            scale = bar * max(np.abs(true).max(), 1e-300)
            yield worst(name, got, true, scale, f"{bar:g} max|t| in {np.dtype(dtype).name}")
