"""Multi-vector retrieval on two threads. Encoding: documents of 80 unit tokens of 128 coordinates, empty blocks filled,
A: 20 repetitions of 32 blocks of 16 coordinates; B: 40 of 64 of 128, sketched to 10240; an element is a document.
`torch.mm` is the product of the tokens with planes and projections alone. Search: generated clouds of 60 tokens around
topics and words, queries of 32 noisy tokens; an element is a query; recall is that of the 100 best by exact Chamfer.

muvera-python fills 70 % of the empty blocks at five planes with a token that is not the nearest (it inverts the Gray
code wrongly), and FastEmbed reads the bits of a block from the last plane, so its blocks are numbered in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from harness import Row, Worker, compare
from mercer.retrieval import FixedDimensionalEncoder, MultiVectorIndex, ProductQuantizer, chamfer_batch

TITLE = "Multi-vector retrieval"
THREADS, D = 2, 128
MUVERA, FASTEMBED = ["muvera-python==0.2.0"], ["fastembed==0.9.1"]
FAST_PLAID, LANCEDB = ["fast-plaid==1.7.0.2110", "torch==2.11.0"], ["lancedb==0.40.0", "pyarrow"]


def rows(quick: bool) -> Iterator[Row]:
    try:
        import torch
    except ImportError:
        print("  torch is not installed here")
        return
    torch.set_num_threads(THREADS)
    yield from encoding(quick)
    yield from exact(quick)
    yield from small(1000 if quick else 5000, quick)
    yield from large(20_000 if quick else 200_000, quick)


def unit(x: np.ndarray) -> np.ndarray:
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x


def generated(n: int, queries: int, *, tokens: int = 60, query_tokens: int = 32, seed: int = 0) -> tuple:
    """(n, tokens, D) documents around topics and words, and (queries, query_tokens, D) noisy copies of tokens."""
    rng = np.random.default_rng(seed)
    topics, words = rng.standard_normal((2, 4000, D), dtype=np.float32)
    docs = np.empty((n, tokens, D), np.float32)
    for first in range(0, n, 5000):
        here = docs[first : first + 5000]
        here[:] = rng.standard_normal(here.shape, dtype=np.float32)
        here *= 0.5
        here += words[rng.integers(0, 4000, here.shape[:2])]
        here += topics[rng.integers(0, 100, len(here))][:, None]
        unit(here)
    of = rng.choice(n, queries, replace=False)
    own = docs[of][:, rng.integers(0, tokens, query_tokens)]
    return docs, unit(own + rng.standard_normal(own.shape, dtype=np.float32) * np.float32(D**-0.5))


def worker(make: Callable[[], Iterator[Row]], name: str) -> Iterator[Row]:
    try:
        yield from make()
    except Exception as reason:  # it cannot be had, or does not run here
        print(f"  {name} does not run here: {reason}")


def encoding(quick: bool) -> Iterator[Row]:
    import torch

    n = 200 if quick else 1000
    docs = unit(np.random.default_rng(0).standard_normal((n, 80, D)).astype(np.float32))
    flat, offsets = docs.reshape(-1, D), np.arange(n + 1) * 80
    few = n // 10  # for peers that take milliseconds a document
    cases = {
        "A": (FixedDimensionalEncoder(D, 5, 20, 16, "sparse"), (20, 5, 16, 0), 20 * 21),
        "B": (
            FixedDimensionalEncoder(D, 6, 40, projection="identity", final_dim=10240),
            (40, 6, 0, 10240),
            240,
        ),
    }
    for name, (encoder, (R, k, p, final), columns) in cases.items():

        def ours(count: int = n, encoder: FixedDimensionalEncoder = encoder) -> np.ndarray:
            return encoder.encode_documents(flat[: 80 * count], offsets[: count + 1], threads=THREADS)

        tokens, matrix = torch.from_numpy(flat), torch.randn(D, columns)
        common: dict[str, Any] = {"threads": THREADS, "rounds": 5}
        yield compare(
            f"encode {name}", "torch.mm", ours=ours, theirs=lambda: torch.mm(tokens, matrix), elements=n,  # noqa: B023
            note="the product alone; ratio: of its rate", **common,
        )  # fmt: skip

        def muvera_python() -> Iterator[Row]:
            given = {"repetitions": R, "bits": k, "projected": p, "final": final}  # noqa: B023
            with Worker(
                "muvera-python", "peer_muvera_python.py", MUVERA, docs=docs[:few], **_arrays(given)
            ) as peer:
                yield compare(
                    f"encode {name}, {few} documents", "muvera-python", ours=lambda: ours(few), theirs=peer,  # noqa: B023
                    elements=few, note="fills with wrong tokens", **common,  # noqa: B023
                )  # fmt: skip

        def fastembed() -> Iterator[Row]:
            given = {"repetitions": R, "bits": k, "projected": p or D}  # noqa: B023
            with Worker(
                "fastembed", "peer_fastembed.py", FASTEMBED, docs=docs[:few], **_arrays(given)
            ) as peer:
                yield compare(
                    f"encode {name}, {few} documents", "fastembed", ours=lambda: ours(few), theirs=peer,  # noqa: B023
                    elements=few, note="numbers blocks otherwise" + (", no sketch" if final else ""), **common,  # noqa: B023
                )  # fmt: skip

        yield from worker(muvera_python, "muvera-python")
        yield from worker(fastembed, "fastembed")


def _arrays(given: dict[str, int]) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in given.items()}


def torch_formulations(docs: np.ndarray, query: np.ndarray) -> dict[str, Callable[[], Any]]:
    import torch

    n, tokens, d = docs.shape
    q, x = torch.from_numpy(query), torch.from_numpy(docs.reshape(-1, d))
    block = 250

    def blocked() -> Any:
        out = torch.empty(n)
        for i in range(0, n, block):
            here = x[i * tokens : (i + block) * tokens] @ q.T
            out[i : i + block] = here.view(-1, tokens, len(q)).amax(1).sum(1)
        return out

    return {
        "torch, blocks": blocked,
        "torch, padded": lambda: torch.matmul(x.view(n, tokens, d), q.T).amax(1).sum(1),
        "torch, one product": lambda: (q @ x.T).view(len(q), n, tokens).amax(2).sum(0),
    }


def exact(quick: bool) -> Iterator[Row]:
    n = 2000 if quick else 10_000
    docs, queries = generated(n, 1)
    flat, offsets = docs.reshape(-1, D), np.arange(n + 1) * 60
    for name, theirs in torch_formulations(docs, queries[0]).items():
        yield compare(
            f"exact Chamfer of one query, {n} documents", name,
            ours=lambda: chamfer_batch(queries[0], None, flat, offsets, threads=THREADS), theirs=theirs,
            elements=1, threads=THREADS, rounds=5,
        )  # fmt: skip


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def indexed(docs: np.ndarray, **options: Any) -> MultiVectorIndex:
    n = len(docs)
    encoder = options.pop("encoder", None) or FixedDimensionalEncoder(D, 5, 20, 16)
    index = MultiVectorIndex(encoder, **options)
    for first in range(0, n, 20_000):
        here = docs[first : first + 20_000]
        index.add(
            range(first, first + len(here)), here.reshape(-1, D), np.arange(len(here) + 1) * docs.shape[1]
        )
    return index


def small(n: int, quick: bool) -> Iterator[Row]:
    m = 10 if quick else 20
    docs, queries = generated(n, m)
    flat, offsets = docs.reshape(-1, D), np.arange(n + 1) * 60
    ends = np.arange(m + 1) * 32
    truth = np.argsort(-chamfer_batch(queries.reshape(-1, D), ends, flat, offsets), axis=1)[:, :100]
    index = indexed(docs, stage="chamfer")

    def search() -> np.ndarray:
        hits = index.search(queries.reshape(-1, D), ends, k=100, threads=THREADS)
        return np.array([h.ids for h in hits])

    ours = recall(search(), truth)
    for name, file, requirements in (
        ("fast-plaid", "peer_fast_plaid.py", FAST_PLAID), ("lancedb", "peer_lancedb.py", LANCEDB),
    ):  # fmt: skip

        def one(name: str = name, file: str = file, requirements: list[str] = requirements) -> Iterator[Row]:
            with Worker(name, file, requirements, docs=docs, queries=queries, k=np.array(100)) as peer:
                theirs = recall(peer.result(), truth)
                yield compare(
                    f"search {n} documents, exact scan", name, ours=search, theirs=peer, elements=m, threads=THREADS,
                    rounds=3, at_least=0.0, note=f"recall@100 {ours:.3f}, theirs {theirs:.3f}",
                )  # fmt: skip

        yield from worker(one, name)


def large(n: int, quick: bool) -> Iterator[Row]:
    m = 5 if quick else 10
    docs, queries = generated(n, m)
    flat, offsets, ends = docs.reshape(-1, D), np.arange(n + 1) * 60, np.arange(m + 1) * 32
    exact_scores = chamfer_batch(queries.reshape(-1, D), ends, flat, offsets)
    truth = np.argpartition(-exact_scores, 99, axis=1)[:, :100]
    blocked = torch_formulations(docs, queries[0])["torch, blocks"]
    encoder = FixedDimensionalEncoder(D, 5, 20, 16)
    sample = encoder.encode_documents(flat[: 60 * 5000], offsets[:5001])
    stages: dict[str, dict[str, Any]] = {
        f"PQ-256-{block}": {"stage": "pq", "encoder": encoder,
                            "quantizer": ProductQuantizer(10240, block, n_iter=4).fit(sample)}
        for block in (8, 16)
    }  # fmt: skip
    if not quick:
        small_encoder = FixedDimensionalEncoder(D, 4, 20, 16, final_dim=2048)
        stages["HNSW of 2048 dimensions"] = {"stage": "hnsw", "encoder": small_encoder}
    stages["scan of 2048 dimensions"] = {
        "stage": "scan", "encoder": FixedDimensionalEncoder(D, 5, 20, 16, final_dim=2048),
    }  # fmt: skip
    for name, options in stages.items():
        index = indexed(docs, **options)
        for candidates in (1000, 4000):

            def search(index: MultiVectorIndex = index, candidates: int = candidates) -> np.ndarray:
                hits = index.search(
                    queries.reshape(-1, D), ends, k=100, candidates=candidates, threads=THREADS
                )
                return np.array([h.ids for h in hits])

            got = recall(search(), truth)
            yield compare(
                f"search {n} documents, {name}, {candidates} candidates", "torch, exact in blocks",
                ours=search, theirs=lambda: [blocked() for _ in range(m)], elements=m, threads=THREADS, rounds=3,
                at_least=0.0, note=f"recall@100 {got:.3f}, theirs 1",
            )  # fmt: skip
        del index
    yield compare(
        f"search {n} documents, exact scan", "torch, exact in blocks",
        ours=lambda: chamfer_batch(queries.reshape(-1, D), ends, flat, offsets, threads=THREADS),
        theirs=lambda: [blocked() for _ in range(m)], elements=m, threads=THREADS, rounds=3, at_least=0.0,
        note="recall@100 1, theirs 1",
    )  # fmt: skip
