"""Multi-vector retrieval on two threads, in parts: encoding, exact scores, and searches end to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from harness import Row, Worker, compare
from mercer.retrieval import FixedDimensionalEncoder, MultiVectorIndex, ProductQuantizer, chamfer_batch

TITLE = "Multi-vector retrieval"
THREADS, D = 2, 128
MUVERA, FASTEMBED = ["muvera-python==0.2.0"], ["fastembed==0.9.1"]
FAST_PLAID, LANCEDB = ["fast-plaid==1.7.0.2110", "torch==2.11.0"], ["lancedb==0.40.0", "pyarrow"]


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


def two_threads() -> None:
    import torch

    torch.set_num_threads(THREADS)


def encoding(quick: bool) -> Iterator[Row]:
    """Documents of 80 unit tokens of 128 coordinates, empty blocks filled. A: 20 repetitions of 32 blocks of 16
    coordinates; B: 40 of 64 of 128, sketched to 10240; an element is a document. `torch.mm` is the product of the
    tokens with planes and projections alone.

    muvera-python fills 70 % of the empty blocks at five planes with a token that is not the nearest (it inverts the
    Gray code wrongly), and FastEmbed reads the bits of a block from the last plane, so its blocks are numbered in
    another order.
    """
    import torch

    two_threads()
    n = 200 if quick else 1000
    fewer = {"A": n // 2, "B": n // 10}  # for peers that take milliseconds a document
    docs = unit(np.random.default_rng(0).standard_normal((n, 80, D)).astype(np.float32))
    flat, offsets = docs.reshape(-1, D), np.arange(n + 1) * 80
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

        few = fewer[name]
        tokens, matrix = torch.from_numpy(flat), torch.randn(D, columns)
        common: dict[str, Any] = {"threads": THREADS, "rounds": 5}
        yield compare(
            f"encode {name}", "torch.mm", ours=ours, theirs=lambda: torch.mm(tokens, matrix), elements=n,  # noqa: B023
            note="the product alone; ratio: of its rate", **common,
        )  # fmt: skip

        def muvera_python(few: int = few) -> Iterator[Row]:
            given = {"repetitions": R, "bits": k, "projected": p, "final": final}  # noqa: B023
            with Worker(
                "muvera-python", "peer_muvera_python.py", MUVERA, docs=docs[:few], **_arrays(given)
            ) as peer:
                yield compare(
                    f"encode {name}, {few} documents", "muvera-python", ours=lambda: ours(few), theirs=peer,  # noqa: B023
                    elements=few, note="fills with wrong tokens", **common,  # noqa: B023
                )  # fmt: skip

        def fastembed(few: int = few) -> Iterator[Row]:
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
    """One query of 32 tokens scored against all documents of 60 tokens of 128 coordinates; an element is the query."""
    two_threads()
    n = 2000 if quick else 10_000
    docs, queries = generated(n, 1)
    flat, offsets = docs.reshape(-1, D), np.arange(n + 1) * 60
    for name, theirs in torch_formulations(docs, queries[0]).items():
        yield compare(
            f"exact Chamfer of one query, {n} documents", name,
            ours=lambda: chamfer_batch(queries[0], None, flat, offsets, threads=THREADS), theirs=theirs,
            elements=1, threads=THREADS, rounds=5,
        )  # fmt: skip


def recall(found: list[Any], truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def indexed(docs: np.ndarray, encoder: FixedDimensionalEncoder, **options: Any) -> MultiVectorIndex:
    index = MultiVectorIndex(encoder, **options)
    index.add(range(len(docs)), docs.reshape(-1, D), np.arange(len(docs) + 1) * docs.shape[1])
    return index


def searching(
    index: MultiVectorIndex, queries: np.ndarray, candidates: int | None
) -> Callable[[], list[np.ndarray]]:
    """One query at a time, as peers are asked."""

    def search() -> list[np.ndarray]:
        hits = [index.search(q, k=100, candidates=candidates, threads=THREADS) for q in queries]
        return [np.array(h.ids) for h in hits]

    return search


def small(quick: bool, name: str, file: str, requirements: list[str]) -> Iterator[Row]:
    """Where scoring all documents is still possible: as `MultiVectorIndex` does by default, and in two stages."""
    n, m = (1000, 10) if quick else (5000, 20)
    docs, queries = generated(n, m)
    flat, offsets = docs.reshape(-1, D), np.arange(n + 1) * 60
    ends = np.arange(m + 1) * 32
    truth = np.argsort(-chamfer_batch(queries.reshape(-1, D), ends, flat, offsets), axis=1)[:, :100]
    encoder = FixedDimensionalEncoder(D, 3, 20, 16)
    ways = {
        "all scored": searching(indexed(docs, encoder, stage="chamfer"), queries, None),
        "PQ-256-8, 500 candidates": searching(indexed(docs, encoder, stage="pq"), queries, 500),
    }
    ours = {way: recall(search(), truth) for way, search in ways.items()}

    def both() -> Iterator[Row]:
        with Worker(name, file, requirements, docs=docs, queries=queries, k=np.array(100)) as peer:
            theirs = recall(list(peer.result()), truth)
            for way, search in ways.items():
                yield compare(
                    f"search {n} documents, {way}", name, ours=search, theirs=peer, elements=m, threads=THREADS,
                    rounds=5, at_least=0.0, note=f"recall@100 {ours[way]:.3f}, theirs {theirs:.3f}",
                )  # fmt: skip

    yield from worker(both, name)


def fast_plaid(quick: bool) -> Iterator[Row]:
    """Generated clouds of 60 tokens around topics and words, queries of 32 noisy tokens, one at a time; an element is a
    query; recall is that of the 100 best by exact Chamfer. `MultiVectorIndex` scores so few documents whole by default.
    """
    yield from small(quick, "fast-plaid", "peer_fast_plaid.py", FAST_PLAID)


def lancedb(quick: bool) -> Iterator[Row]:
    """The same against LanceDB's own multivector search, through its index."""
    yield from small(quick, "lancedb", "peer_lancedb.py", LANCEDB)


#: Encoder, and how candidates are found with it. Blocks of 8 coordinates are blocks of the encoding at `d_proj=8`, so a
#: query's empty ones, two thirds of them at six planes, are not looked at.
STAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PQ-256-8 of 1280 dimensions": (
        {"k_sim": 3, "repetitions": 10, "d_proj": 16}, {"stage": "pq", "block": 8}),
    "PQ-256-16 of 1280 dimensions": (
        {"k_sim": 3, "repetitions": 10, "d_proj": 16}, {"stage": "pq", "block": 16}),
    "sparse queries, PQ-256-8 of 5120 dimensions": (
        {"k_sim": 6, "repetitions": 10, "d_proj": 8}, {"stage": "pq", "block": 8}),
    "graph of 256 dimensions": (
        {"k_sim": 3, "repetitions": 10, "d_proj": 16, "final_dim": 256},
        {"stage": "hnsw", "connectivity": 16, "expansion": 64}),
}  # fmt: skip


def large(quick: bool, candidates: int = 3000) -> Iterator[Row]:
    """The same clouds, too many of them to score all; the peer is exact, in blocks. Some minutes and 11 GB, most of it
    for torch's float32.
    """
    two_threads()
    n = 20_000 if quick else 200_000
    m, timed = (5, 5) if quick else (10, 2)
    docs, queries = generated(n, m)
    flat, offsets, ends = docs.reshape(-1, D), np.arange(n + 1) * 60, np.arange(m + 1) * 32
    exact_scores = chamfer_batch(queries.reshape(-1, D), ends, flat, offsets)
    truth = np.argpartition(-exact_scores, 99, axis=1)[:, :100]
    blocked = [torch_formulations(docs, q)["torch, blocks"] for q in queries[:timed]]
    common: dict[str, Any] = {
        "theirs": lambda: [one() for one in blocked], "elements": timed, "threads": THREADS, "rounds": 3,
        "at_least": 0.0,
    }  # fmt: skip
    for name, (arguments, options) in STAGES.items():
        start = time.perf_counter()
        encoder = FixedDimensionalEncoder(D, **arguments)
        options = dict(options)
        if block := options.pop("block", None):
            options["quantizer"] = ProductQuantizer(encoder.n_features, block, n_iter=4, max_train=5000)
        index = indexed(docs, encoder, **options)
        built = time.perf_counter() - start
        got = recall(searching(index, queries, candidates)(), truth)
        yield compare(
            f"search {n} documents, {name}, {candidates} candidates", "torch, exact in blocks",
            ours=searching(index, queries[:timed], candidates), **common,
            note=f"recall@100 {got:.3f}, theirs 1; built in {built:.0f} s",
        )  # fmt: skip
        del index
    yield compare(
        f"search {n} documents, all scored", "torch, exact in blocks",
        ours=lambda: [chamfer_batch(q, None, flat, offsets, threads=THREADS) for q in queries[:timed]], **common,
        note="recall@100 1, theirs 1",
    )  # fmt: skip


PARTS = {"encoding": encoding, "exact": exact, "fast-plaid": fast_plaid, "lancedb": lancedb, "large": large}
