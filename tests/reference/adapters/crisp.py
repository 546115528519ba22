"""CRISP: Lloyd's iterations from given centroids, Chamfer of what is left, and the loss with its gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapters import Arrays, Case, Check, table, worst
from mercer.retrieval import chamfer_batch, cluster_tokens, prune_spaced, prune_tail

BAR = 1e-10


@table("33-crisp", "reduction", "reduction_*")
def reduction(case: Case, arrays: Arrays) -> Iterator[Check]:
    import torch

    from mercer.nn.retrieval import ChamferContrastiveLoss, TokenClustering

    config = case["config"]
    clusters = {"q": config["k_query"], "d": config["k_doc"]}
    tokens = {side: arrays[f"{side}_tokens"] for side in "qd"}
    offsets = {side: np.concatenate([[0], np.cumsum(arrays[f"{side}_lengths"])]) for side in "qd"}
    found = {
        side: cluster_tokens(tokens[side], offsets[side], clusters[side], n_iter=config["iterations"])
        for side in "qd"
    }
    centroids = [part for side in "qd" for part in (found[side].tokens, found[side].offsets)]
    tail = [p for side in "qd" for p in prune_tail(tokens[side], offsets[side], clusters[side])]
    spaced = [p for side in "qd" for p in prune_spaced(tokens[side], offsets[side], 2)]
    scores = {
        "chamfer": chamfer_batch(tokens["q"], offsets["q"], tokens["d"], offsets["d"]),
        "chamfer_clustered": chamfer_batch(*centroids),
        "chamfer_clustered_weighted": chamfer_batch(found["q"].weighted(), *centroids[1:]),
        "chamfer_tail": chamfer_batch(*tail),
        "chamfer_spaced2": chamfer_batch(*spaced),
        "scores_normalized": chamfer_batch(*centroids) / np.diff(found["q"].offsets)[:, None],
    }

    # The same by the layers, padded, with gradients.
    def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.as_tensor(arrays[f"{side}_lengths"])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        x = torch.zeros(*mask.shape, config["d"], dtype=torch.float64)
        x[mask] = torch.as_tensor(tokens[side])
        return x.requires_grad_(), mask

    (q, q_mask), (d, d_mask) = padded("q"), padded("d")
    layers = {
        side: TokenClustering(clusters[side], init="spaced", n_iter=config["iterations"]) for side in "qd"
    }
    reduced = (*layers["q"](q, q_mask)[:2], *layers["d"](d, d_mask)[:2])
    loss = ChamferContrastiveLoss(config["temperature"], normalize_query=True)(*reduced)
    loss.backward()
    grads = {"q_grad": q.grad[q_mask].numpy(), "d_grad": d.grad[d_mask].numpy()}
    for name, true in arrays.items():
        side, _, part = name.partition("_")
        if part in ("tokens", "lengths"):
            continue  # what goes in
        if name in scores:
            got = scores[name]
        elif name == "loss":
            got = loss.detach().numpy()
        elif name in grads:
            got = grads[name]
        elif part in ("centroids", "assign", "counts", "inertia") and side in found:
            fields = {"centroids": "tokens", "assign": "assignments"}
            got = getattr(found[side], fields.get(part, part))
        else:
            yield Check(name, np.nan, 0.0, "this array is not known here")
            continue
        scale = BAR * np.maximum(1.0, np.abs(true))
        yield worst(name, got, np.asarray(true, np.float64), scale, f"{BAR:g} max(1, |t|)")
