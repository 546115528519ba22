"""An index of sets of token vectors: encodings find candidates, exact Chamfer similarity orders them.

Source: Dhulipala et al. 2024, "MUVERA", section 3.2. In memory, or in a folder that is mapped into memory, survives a
kill at any moment with its last commit, and can be read while it is written: see `_segments` for the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from mercer import _checks
from mercer.retrieval import _graph, _segments
from mercer.retrieval._documents import Documents, an_id
from mercer.retrieval._segments import CorruptIndex, IndexLocked, Segment
from mercer.retrieval._tokens import packed, tokens_array
from mercer.retrieval.clustering import cluster_tokens
from mercer.retrieval.fde import FixedDimensionalEncoder
from mercer.retrieval.quantizer import ProductQuantizer
from mercer.retrieval.similarity import _largest, _scores, ball_carve

__all__ = ["CorruptIndex", "Hits", "IndexLocked", "MultiVectorIndex", "TokenMatch"]

#: Bytes of encodings that are made at a time.
CHUNK = 1 << 28
#: With `candidates=None`, collections of at most so many documents are scored whole.
WHOLE = 5000
STAGES = ("scan", "pq", "hnsw", "chamfer")

Ids = Iterable[Any]
Values = Sequence[Any] | None
Threads = int | None
Filter = Callable[[Any, Any], bool] | Mapping[str, Any] | Iterable[Any] | None


class Hits(NamedTuple):
    """The documents found for a query, best first."""

    ids: list[Any]
    scores: np.ndarray


class TokenMatch(NamedTuple):
    """A query token and the document token that is nearest to it."""

    query_token: int
    document_token: int
    score: float


class MultiVectorIndex(Documents):
    """Two-stage search over sets of token vectors.

    Parameters
    ----------
    encoder : FixedDimensionalEncoder
    stage : {"scan", "pq", "hnsw", "chamfer"}
        Where candidates come from: products with all encodings (4 · n_features bytes a document); with quantised ones
        (n_features / block bytes); an HNSW graph of usearch over float16 encodings; or no encodings at all, every
        document scored exactly, which is right for some thousand documents.
    quantizer : ProductQuantizer, optional
        For "pq": fitted, or fitted on the first documents added. Default: 8 coordinates a byte.
    dtype : {"float16", "float32"}
        Of stored tokens.
    reducer : optional
        Stores fewer vectors a document: a `mercer.nn.retrieval.TokenClustering` (its settings are used), or a mapping
        of arguments of `cluster_tokens` such as ``{"n_clusters": 32}``.
    connectivity, expansion : int
        Of the HNSW graph: neighbours a node, candidates while it is built.

    Notes
    -----
    `search` costs its first stage, one multiply-add a coordinate and document for "scan", one addition a byte for "pq",
    plus ``candidates`` exact scores. float16 tokens lose about 1e-3 of a score.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> docs = rng.standard_normal((300, 8)).astype(np.float32)
    >>> index = MultiVectorIndex(FixedDimensionalEncoder(8, 3, 10, projection="identity"))
    >>> index.add(range(30), docs, np.arange(31) * 10)
    >>> index.search(docs[40:44], k=2).ids[0]
    4
    >>> index.delete([4]); len(index)
    29
    """

    def __init__(
        self,
        encoder: FixedDimensionalEncoder,
        *,
        stage: str = "scan",
        quantizer: ProductQuantizer | None = None,
        dtype: str = "float16",
        reducer: Any = None,
        connectivity: int = 32,
        expansion: int = 128,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, FixedDimensionalEncoder):
            raise TypeError(f"encoder must be a FixedDimensionalEncoder, got {type(encoder).__name__}")
        self.encoder = encoder
        self.stage = _checks.choice("stage", stage, STAGES)
        self.dtype = _checks.choice("dtype", dtype, ("float16", "float32"))
        self.connectivity = _checks.integer("connectivity", connectivity, 2)
        self.expansion = _checks.integer("expansion", expansion, 1)
        self.reducer = _reducer(reducer)
        self.quantizer = quantizer
        if stage == "pq" and quantizer is None:
            self.quantizer = ProductQuantizer(
                encoder.n_features, min(8, encoder.n_features), max_train=10_000
            )
        if self.quantizer is not None and self.quantizer.dim != encoder.n_features:
            raise ValueError(f"quantizer must have dim {encoder.n_features}, got {self.quantizer.dim}")

    def add(
        self, ids: Ids, tokens: Any, offsets: Any = None, metadata: Values = None, *, threads: Threads = None
    ) -> None:
        """Add documents; on disk, they are there for good when this returns.

        Parameters
        ----------
        ids : n integers, or n strings
            None of them there yet.
        tokens, offsets
            Packed sets (n_tokens, dim) and (n + 1,), or a list of arrays.
        metadata : n values that JSON holds, optional
            For ``filter``.

        Raises
        ------
        ValueError
            An id that repeats, an empty document, another width, NaN or infinity.
        IndexLocked
            Another writer is at work.
        """
        with self._writing():
            self._commit([], ids, tokens, offsets, metadata, threads)

    def update(
        self, ids: Ids, tokens: Any, offsets: Any = None, metadata: Values = None, *, threads: Threads = None
    ) -> None:
        """Replace documents, or add those that are not there yet, in one commit."""
        ids = list(ids)
        with self._writing():
            there = [id for id in ids if id in self._where()]
            self._commit(there, ids, tokens, offsets, metadata, threads)

    # --------------------------------------------------------------------------------------------------- search

    def search(
        self,
        queries: Any,
        query_offsets: Any = None,
        *,
        k: int = 10,
        candidates: int | None = None,
        filter: Filter = None,
        carve: float | None = None,
        threads: int | None = None,
    ) -> Any:
        """The k documents of largest Chamfer similarity among the candidates.

        Parameters
        ----------
        queries : (n_tokens, dim) array, or a list of such
        query_offsets : (n + 1,) integers, optional
            None with one array: one query.
        k : int
        candidates : int, optional
            Documents that are scored exactly. None: all of up to 5000 documents, else max(50 k, 500).
        filter : optional
            A function of (id, metadata); a mapping of metadata keys to a value or a list of allowed ones; or ids.
        carve : float, optional
            Score with the query's balls (`ball_carve` with this tau, 0.7 in the paper) instead of its tokens: faster,
            and scores are lower bounds of Chamfer.

        Returns
        -------
        Hits, or a list of them for several queries
        """
        threads = _checks.threads("threads", threads)
        k = _checks.integer("k", k, 1)
        one = query_offsets is None and not (isinstance(queries, list | tuple) and np.ndim(queries[0]) == 2)
        rows, offsets = packed("queries", queries, query_offsets, self.encoder.dim)
        rows = np.ascontiguousarray(rows, np.float32)
        if not np.isfinite(rows).all():
            raise ValueError("queries must be finite, they contain NaN or infinity")
        if candidates is not None:
            candidates = _checks.integer("candidates", candidates, k)
        if carve is not None:
            carve = _checks.real("carve", carve, -np.inf)
        allowed = self._allowed(filter)
        found = []
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            places = self._candidates(rows[a:b], k, candidates, allowed, threads)
            query = rows[a:b] if carve is None else ball_carve(rows[a:b], carve)
            scores = self._exact(query, places, threads)
            best = _largest(scores[None], min(k, len(scores)))[0] if len(scores) else np.empty(0, np.int64)
            found.append(Hits([self._id(p) for p in places[best].tolist()], scores[best]))
        return found[0] if one else found

    def candidates(
        self, query: Any, count: int, *, filter: Filter = None, threads: int | None = None
    ) -> list[Any]:
        """The ids of the first stage alone, best first; for "chamfer", those of exact search."""
        query = np.ascontiguousarray(tokens_array("query", query, self.encoder.dim), np.float32)
        count = _checks.integer("count", count, 1)
        allowed = self._allowed(filter)
        if self.stage != "chamfer":
            places = self._first(query, count, allowed, threads)
        else:
            places = np.arange(self._total) if allowed is None else np.flatnonzero(allowed)
            places = places[np.argsort(-self._exact(query, places, threads), kind="stable")[:count]]
        return [self._id(p) for p in places.tolist()]

    def explain(self, query: Any, id: Any) -> list[TokenMatch]:
        """For each query token, the nearest token of the document: the scores add up to the Chamfer similarity."""
        query = tokens_array("query", query, self.encoder.dim).astype(np.float32)
        products = query @ self.tokens(id).astype(np.float32).T
        best = products.argmax(1)
        return [TokenMatch(i, int(j), float(products[i, j])) for i, j in enumerate(best.tolist())]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: FixedDimensionalEncoder | None = None,
        read_only: bool = False,
        verify: bool = False,
    ) -> Self:
        """Map an index into memory: a snapshot of its last commit.

        Parameters
        ----------
        path : folder
        encoder : optional
            Refused where it is not the one of the index.
        read_only : bool
            Refuse changes.
        verify : bool
            Compare the checksum of every byte; otherwise that of the manifest, of sizes, and of files below 1 MB.

        Raises
        ------
        CorruptIndex
            No index, another version, or damage.
        """
        folder = Path(path)
        for attempt in range(5):
            try:
                return cls._open(folder, encoder, read_only, verify)
            except CorruptIndex as error:
                # A writer may have replaced files between the manifest and them.
                if "is missing" not in str(error) or attempt == 4:
                    raise
                time.sleep(0.02 * (attempt + 1))
        raise AssertionError("not reached")

    @classmethod
    def _open(
        cls, folder: Path, encoder: FixedDimensionalEncoder | None, read_only: bool, verify: bool
    ) -> Self:
        body = _segments.read_manifest(folder)
        if verify:
            _segments.verify(folder)
        try:
            known = FixedDimensionalEncoder.load(folder / body["encoder_file"]["name"])
            known.require_same(body["fingerprint"])
            quantizer = None
            if body.get("quantizer_file"):
                quantizer = ProductQuantizer.load(folder / body["quantizer_file"]["name"])
            made = cls(
                known, stage=body["stage"], quantizer=quantizer, dtype=body["dtype"], reducer=body["reducer"],
                connectivity=body["connectivity"], expansion=body["expansion"],
            )  # fmt: skip
            made._take(folder, body)
        except FileNotFoundError as error:
            raise CorruptIndex(f"{error.filename} is missing") from None
        except CorruptIndex:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptIndex(f"{folder}: {error}") from None
        if encoder is not None:
            encoder.require_same(known.fingerprint)
        made.read_only = _checks.flag("read_only", read_only)
        return made

    # --------------------------------------------------------------------------------------------- first stage

    def _stage(self, segment: Segment, threads: int | None) -> None:
        """What the first stage needs of new documents: made in pieces, encodings are long."""
        if self.stage == "chamfer":
            return
        rows, offsets, n = segment.arrays["tokens"], segment.arrays["offsets"], len(segment)
        step = max(1, CHUNK // (4 * self.encoder.n_features))
        if self.stage == "pq":
            assert self.quantizer is not None
            if self.quantizer.codebooks is None:
                sample = np.linspace(0, n - 1, min(n, self.quantizer.max_train)).astype(np.int64)
                self.quantizer.fit(self._encode(rows, offsets, np.unique(sample), threads), threads=threads)
            out = np.empty((n, self.quantizer.n_bytes), np.uint8)
        elif self.stage == "scan":
            out = np.empty((n, self.encoder.n_features), np.float32)
        else:
            segment.graph = _graph.build(self.encoder.n_features, self.connectivity, self.expansion)
        for start in range(0, n, step):
            here = np.arange(start, min(n, start + step))
            made = self._encode(rows, offsets, here, threads)
            if self.stage == "pq":
                assert self.quantizer is not None
                out[here] = self.quantizer.encode(made, threads=threads)
            elif self.stage == "scan":
                out[here] = made
            else:
                segment.graph.add(here.astype(np.uint64), made.astype(np.float16), threads=threads or 0)
        if self.stage != "hnsw":
            segment.arrays["codes" if self.stage == "pq" else "encodings"] = out

    def _encode(
        self, rows: np.ndarray, offsets: np.ndarray, which: np.ndarray, threads: int | None
    ) -> np.ndarray:
        if len(which) and which[-1] - which[0] + 1 == len(which):
            part = offsets[which[0] : which[-1] + 2]
            return self.encoder.encode_documents(rows[part[0] : part[-1]], part - part[0], threads=threads)
        sets = [rows[offsets[i] : offsets[i + 1]] for i in which.tolist()]
        return self.encoder.encode_documents(sets, None, threads=threads)

    def _allowed(self, filter: Filter) -> np.ndarray | None:
        """Which documents may be found, or None for all of them."""
        if filter is None:
            return self._alive() if len(self._deleted) else None
        alive = self._alive()
        fits = _predicate(filter)
        for start, segment in self._starts():
            for i, (id, metadata) in enumerate(zip(segment.ids(), segment.metadata, strict=True)):
                if alive[start + i] and not fits(id, metadata):
                    alive[start + i] = False
        return alive

    def _candidates(
        self, query: np.ndarray, k: int, count: int | None, allowed: np.ndarray | None, threads: int | None
    ) -> np.ndarray:
        """Places to score exactly, in no order where they are all there are."""
        total = self._total if allowed is None else int(allowed.sum())
        everything = self.stage == "chamfer" or (count is None and total <= WHOLE)
        count = max(50 * k, 500) if count is None else count
        if everything or count >= total:
            return np.arange(self._total) if allowed is None else np.flatnonzero(allowed)
        return self._first(query, count, allowed, threads)

    def _first(
        self, query: np.ndarray, count: int, allowed: np.ndarray | None, threads: int | None
    ) -> np.ndarray:
        """The places of the largest estimates, largest first."""
        encoded = self.encoder.encode_queries(query, threads=threads)
        places, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for start, segment in self._starts():
            here = None if allowed is None else allowed[start : start + len(segment)]
            if self.stage == "hnsw":
                found, products = self._by_graph(segment, encoded[0], count, here)
            else:
                if self.stage == "pq":
                    assert self.quantizer is not None
                    products = self.quantizer.asymmetric_scores(
                        encoded, segment.arrays["codes"], threads=threads
                    )[0]
                else:
                    products = segment.arrays["encodings"] @ encoded[0]
                if here is not None:
                    products = np.where(here, products, -np.inf)
                found = _largest(products[None], min(count, len(products)))[0]
                products = products[found]
                found = found[products > -np.inf]
                products = products[products > -np.inf]
            places.append(start + found)
            scores.append(products)
        flat, order = np.concatenate(places), np.concatenate(scores)
        return flat[np.argsort(-order, kind="stable")[:count]]

    def _by_graph(
        self, segment: Segment, query: np.ndarray, count: int, here: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The graph knows no filter: ask for more until enough pass."""
        asked = count
        while True:
            asked = min(asked, len(segment))
            found, products = _graph.nearest(segment.graph, query, asked, self.expansion)
            if here is not None:
                keep = here[found]
                found, products = found[keep], products[keep]
            if len(found) >= count or asked == len(segment):
                return found[:count], products[:count]
            asked *= 4

    def _exact(self, query: np.ndarray, places: np.ndarray, threads: int | None) -> np.ndarray:
        scores = np.empty(len(places), np.float32)
        ends = np.array([0, len(query)], np.int64)
        for start, segment in self._starts():
            mine = np.flatnonzero((places >= start) & (places < start + len(segment)))
            if len(mine):
                which = np.ascontiguousarray(places[mine] - start)
                arrays = segment.arrays
                scores[mine] = _scores(query, ends, arrays["tokens"], arrays["offsets"], which, threads)[0]
        return scores


def _predicate(filter: Any) -> Callable[[Any, Any], bool]:
    if callable(filter):
        return filter
    if not isinstance(filter, Mapping):
        among = {an_id(id) for id in filter}
        return lambda id, metadata: id in among
    wanted = {
        key: set(value) if isinstance(value, list | tuple | set | frozenset) else {value}
        for key, value in filter.items()
    }
    return lambda id, metadata: (
        isinstance(metadata, Mapping)
        and all(key in metadata and metadata[key] in values for key, values in wanted.items())
    )


def _reducer(given: Any) -> dict[str, Any] | None:
    """The arguments of `cluster_tokens` that are kept with the index."""
    if given is None:
        return None
    names = ("n_clusters", "init", "n_iter", "normalize", "weighted")
    if isinstance(given, Mapping):
        if not set(given) <= {*names, "empty", "random_state"}:
            raise ValueError(f"reducer must hold arguments of cluster_tokens, got {sorted(given)}")
        found = dict(given)
    elif hasattr(given, "n_clusters"):
        found = {name: getattr(given, name) for name in names if hasattr(given, name)}
        found["random_state"] = getattr(given, "seed", 0)
    else:
        raise TypeError(f"reducer must be a TokenClustering or a mapping, got {type(given).__name__}")
    cluster_tokens(np.ones((2, 1)), None, **found)  # refuses what is out of range
    return found
