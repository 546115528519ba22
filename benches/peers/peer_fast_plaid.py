"""fast-plaid searches generated documents, in an environment of its own with torch 2.11 (see `harness.Worker`)."""

import numpy as np

from peer_indexes import folder_of


def prepare(docs, queries, k):
    import torch
    from fast_plaid import search

    torch.set_num_threads(2)
    folder, there = folder_of("fast-plaid", docs)
    index = search.FastPlaid(index=str(folder), device="cpu")
    if not there:
        index.create([torch.from_numpy(d.astype(np.float32)) for d in docs])
        (folder / "whole").touch()
    each = [torch.from_numpy(q)[None] for q in queries]

    def work():
        found = [index.search(queries_embeddings=q, top_k=int(k), show_progress=False)[0] for q in each]
        rows = [[id for id, _ in hits] for hits in found]
        return np.array([row + [-1] * (int(k) - len(row)) for row in rows])

    return work
