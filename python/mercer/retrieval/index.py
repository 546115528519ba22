"""An index of sets of token vectors: encodings find candidates, exact Chamfer similarity orders them.

Source: Dhulipala et al. 2024, "MUVERA", section 3.2. In memory, or in a folder that is mapped into memory, survives a
kill at any moment with its last commit, and can be read while it is written: see `_segments` for the files.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from mercer import _checks
from mercer.retrieval import _graph, _segments
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


class MultiVectorIndex:
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
        self.path: Path | None = None
        self.read_only = False
        #: What a model is known by that made the tokens; an index of another one is refused.
        self.model: str | None = None
        self._segments: list[Segment] = []
        self._deleted = np.empty(0, np.int64)
        self._places: dict[Any, int] | None = None
        self._version = 0

    # ------------------------------------------------------------------------------------------------ documents

    def __len__(self) -> int:
        return self._total - len(self._deleted)

    def __contains__(self, id: Any) -> bool:
        return id in self._where()

    @property
    def ids(self) -> list[Any]:
        """The ids of all documents, in the order they were added."""
        return list(self._where())

    def add(
        self,
        ids: Iterable[Any],
        tokens: Any,
        offsets: Any = None,
        metadata: Sequence[Any] | None = None,
        *,
        threads: int | None = None,
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
        self._change([], ids, tokens, offsets, metadata, threads)

    def delete(self, ids: Iterable[Any]) -> None:
        """Take documents out; ``KeyError`` for one that is not there. Their bytes go with `compact`."""
        self._change(
            list(ids), [], np.empty((0, self.encoder.dim), np.float32), np.zeros(1, np.int64), None, None
        )

    def update(
        self,
        ids: Iterable[Any],
        tokens: Any,
        offsets: Any = None,
        metadata: Sequence[Any] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Replace documents, or add those that are not there yet, in one commit."""
        ids = list(ids)
        with self._writing():
            there = [id for id in ids if id in self._where()]
            self._commit(there, ids, tokens, offsets, metadata, threads)

    def merge(self, other: MultiVectorIndex) -> None:
        """Add all documents of an index with the same encoder, stage and dtype: partitions that were made apart.

        Encodings, codes and graphs are taken over as they are. Raises ``ValueError`` for ids that both have.
        """
        self.encoder.require_same(other.encoder.fingerprint)
        if (other.stage, other.dtype) != (self.stage, self.dtype):
            raise ValueError(f"other must have stage {self.stage!r} and dtype {self.dtype!r}")
        mine, theirs = self.quantizer, other.quantizer
        if self.stage == "pq" and mine is not None and theirs is not None:
            if mine.codebooks is None:
                self.quantizer = theirs
            elif theirs.codebooks is not None and not np.array_equal(mine.codebooks, theirs.codebooks):
                raise ValueError("other must have the same quantizer: fit one and give it to every partition")
        with self._writing():
            both = self._where().keys() & other._where().keys()
            if both:
                raise ValueError(f"other must have ids of its own, {next(iter(both))!r} is in both")
            start = self._total
            moved = [start + p for p in other._deleted.tolist()]
            new = [Segment(s.arrays, s.metadata, s.graph) for s in other._segments]
            self._store(new, moved)

    def compact(self, *, threads: int | None = None) -> None:
        """Write all documents anew as one segment, without the deleted ones."""
        with self._writing():
            alive = self._alive()
            ids, rows, lengths, metadata, stage = [], [], [], [], []
            for start, segment in self._starts():
                keep = np.flatnonzero(alive[start : start + len(segment)])
                offsets, names = segment.arrays["offsets"], segment.ids()
                ids += [names[i] for i in keep.tolist()]
                metadata += [segment.metadata[i] for i in keep.tolist()]
                rows += [segment.arrays["tokens"][offsets[i] : offsets[i + 1]] for i in keep.tolist()]
                lengths.append(offsets[keep + 1] - offsets[keep])
                stage += [
                    segment.arrays[name][keep] for name in ("codes", "encodings") if name in segment.arrays
                ]
            if not ids:
                self._store([], [], replace=True)
                return
            offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
            arrays = {"tokens": np.concatenate(rows), "offsets": offsets, **_id_arrays(ids)}
            made = Segment(arrays, metadata)
            if stage:
                arrays["codes" if self.stage == "pq" else "encodings"] = np.concatenate(stage)
            else:
                self._stage(made, threads)
            self._store([made], [], replace=True)

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
        """The ids of the first stage alone, best first."""
        query = np.ascontiguousarray(tokens_array("query", query, self.encoder.dim), np.float32)
        count = _checks.integer("count", count, 1)
        places = self._candidates(query, count, count, self._allowed(filter), threads)
        return [self._id(p) for p in places.tolist()]

    def explain(self, query: Any, id: Any) -> list[TokenMatch]:
        """For each query token, the nearest token of the document: the scores add up to the Chamfer similarity."""
        query = tokens_array("query", query, self.encoder.dim).astype(np.float32)
        products = query @ self.tokens(id).astype(np.float32).T
        best = products.argmax(1)
        return [TokenMatch(i, int(j), float(products[i, j])) for i, j in enumerate(best.tolist())]

    def tokens(self, id: Any) -> np.ndarray:
        """The stored vectors of a document; ``KeyError`` where there is none."""
        segment, i = self._locate(self._place(id))
        a, b = segment.arrays["offsets"][i : i + 2]
        return segment.arrays["tokens"][a:b]

    def metadata(self, id: Any) -> Any:
        """What was given as metadata of a document."""
        segment, i = self._locate(self._place(id))
        return segment.metadata[i]

    # ----------------------------------------------------------------------------------------------------- disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an index that is in memory to a new folder; from then on it lives there.

        Raises
        ------
        FileExistsError
            There is an index already.
        """
        folder = Path(path)
        if (folder / _segments.MANIFEST).exists():
            raise FileExistsError(f"{folder} holds an index already; open it, or choose another folder")
        with _segments.lock(folder):
            for segment in self._segments:
                segment.metadata  # noqa: B018 (read it from where it is before the segment moves)
            self.path, self._version, self.read_only = folder, 0, False
            self._write(self._segments, self._deleted, self._segments)

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

    def refresh(self) -> None:
        """See what others have committed since this index was opened."""
        if self.path is not None:
            self._take(self.path, _segments.read_manifest(self.path))

    def verify(self) -> None:
        """Compare the checksum of every byte on disk; `CorruptIndex` for the first that does not fit."""
        if self.path is not None:
            _segments.verify(self.path)

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else f"at {self.path}"
        return f"<MultiVectorIndex of {len(self)} documents {where}, stage={self.stage!r}>"

    # ------------------------------------------------------------------------------------------------- changing

    def _writing(self) -> Any:
        import contextlib

        if self.read_only:
            raise PermissionError("this index was opened with read_only=True")
        if self.path is None:
            return contextlib.nullcontext()

        @contextlib.contextmanager
        def held() -> Any:
            assert self.path is not None
            with _segments.lock(self.path):
                body = _segments.read_manifest(self.path)
                if body["commit"] != self._version:
                    self._take(self.path, body)
                _segments.remove_unnamed(self.path, body)
                yield

        return held()

    def _change(
        self, gone: list[Any], ids: Any, tokens: Any, offsets: Any, metadata: Any, threads: Any
    ) -> None:
        with self._writing():
            self._commit(gone, ids, tokens, offsets, metadata, threads)

    def _commit(
        self, gone: list[Any], ids: Any, tokens: Any, offsets: Any, metadata: Any, threads: int | None
    ) -> None:
        """Documents out and in, checked before anything is changed."""
        places = []
        for id in gone:
            places.append(self._place(id))
        if len(set(places)) != len(places):
            raise ValueError("ids must not repeat")
        ids = [_id(id) for id in ids]
        rows, offsets = packed("tokens", tokens, offsets, self.encoder.dim)
        lengths = np.diff(offsets)
        if len(ids) != len(lengths):
            raise ValueError(f"ids must be as many as documents, {len(lengths)}, got {len(ids)}")
        if (lengths == 0).any():
            empty = ids[int((lengths == 0).argmax())]
            raise ValueError(f"offsets must leave no document empty: {empty!r} has no tokens")
        if metadata is not None and len(metadata) != len(ids):
            raise ValueError(f"metadata must be as many as documents, {len(ids)}, got {len(metadata)}")
        kinds = {type(id) for id in ids} | ({type(self._id(0))} if self._total else set())
        if len(kinds) > 1:
            raise TypeError("ids must be all integers or all strings")
        if len(set(ids)) != len(ids):
            again = next(id for id, times in Counter(ids).items() if times > 1)
            raise ValueError(f"ids must not repeat, {again!r} does")
        there, leaving = self._where(), set(gone)
        for id in ids:
            if id in there and id not in leaving:
                raise ValueError(f"ids must be new, {id!r} is there already; update replaces")
        if metadata is not None:
            metadata = json.loads(json.dumps(list(metadata), allow_nan=False))  # as it will come back
        new = []
        if ids:
            segment = self._segment(ids, rows, offsets, metadata, threads)
            new.append(segment)
        self._store(new, places)

    def _segment(
        self, ids: list[Any], rows: np.ndarray, offsets: np.ndarray, metadata: Any, threads: int | None
    ) -> Segment:
        if self.reducer is not None:
            found = cluster_tokens(rows, offsets, **self.reducer, threads=threads)
            rows, offsets = found.tokens, found.offsets
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(rows, self.dtype)
        for start in range(0, len(stored), 1 << 20):
            if not np.isfinite(stored[start : start + (1 << 20)]).all():
                bad = start + int((~np.isfinite(stored[start : start + (1 << 20)])).any(1).argmax())
                raise ValueError(f"tokens must be finite in {self.dtype}, row {bad} contains NaN or infinity")
        made = Segment({"tokens": stored, "offsets": offsets, **_id_arrays(ids)}, metadata)
        self._stage(made, threads)
        return made

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

    def _store(self, new: list[Segment], gone: list[int], *, replace: bool = False) -> None:
        old = [] if replace else self._segments
        kept = np.empty(0, np.int64) if replace else self._deleted
        deleted = np.unique(np.concatenate([kept, np.array(gone, np.int64)]))
        if self.path is not None:
            self._write(old + new, deleted, new)
        places = self._places
        self._segments, self._deleted = old + new, deleted
        if places is None or replace:
            self._places = None
            return
        # Keep the table of ids, where there is one.
        if gone:
            out = set(gone)
            for id in [id for id, place in places.items() if place in out]:
                del places[id]
        start = self._total - sum(map(len, new))
        skip = set(deleted[deleted >= start].tolist())
        for segment in new:
            for i, id in enumerate(segment.ids()):
                if start + i not in skip:
                    places[id] = start + i
            start += len(segment)

    def _write(self, segments: list[Segment], deleted: np.ndarray, new: list[Segment]) -> None:
        assert self.path is not None
        folder, number = self.path, self._version + 1
        body: dict[str, Any] = {
            "commit": number,
            "stage": self.stage,
            "dtype": self.dtype,
            "dim": self.encoder.dim,
            "reducer": self.reducer,
            "connectivity": self.connectivity,
            "expansion": self.expansion,
            "model": self.model,
            "fingerprint": self.encoder.fingerprint,
        }
        body["encoder_file"] = self._state_file("encoder", number, self.encoder)
        if self.quantizer is not None and self.quantizer.codebooks is not None:
            body["quantizer_file"] = self._state_file("quantizer", number, self.quantizer)
        for i, segment in enumerate(new):
            segment.write(folder, number * 1000 + i if len(new) > 1 else number)
        if len(deleted):
            body["deleted"] = _segments.write_file(folder, f"{number:08d}-deleted.npy", deleted)
        body["segments"] = [segment.files for segment in segments]
        _segments.write_manifest(folder, body)
        self._version = number
        for segment in new:  # from memory to the map
            segment.arrays = Segment.open(folder, segment.files or {}).arrays

    def _state_file(self, name: str, number: int, part: Any) -> dict[str, Any]:
        """Written once: what is there already is named again."""
        assert self.path is not None
        old: dict[str, Any] = {}
        if self._version:
            old = _segments.read_manifest(self.path).get(f"{name}_file") or {}
        if old:
            return old
        path = self.path / f"{number:08d}-{name}.npz"
        part.save(path)
        import hashlib

        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": path.name, "size": path.stat().st_size, "sha256": digest}

    def _take(self, folder: Path, body: dict[str, Any]) -> None:
        kept = {json.dumps(s.files, sort_keys=True): s for s in self._segments if s.files is not None}
        self._segments = [
            kept.get(json.dumps(files, sort_keys=True)) or Segment.open(folder, files)
            for files in body["segments"]
        ]
        self._deleted = _segments.load_deleted(folder, body.get("deleted"))
        if body.get("quantizer_file") and (self.quantizer is None or self.quantizer.codebooks is None):
            self.quantizer = ProductQuantizer.load(folder / body["quantizer_file"]["name"])
        self.model = body.get("model")
        self.path, self._version, self._places = folder, int(body["commit"]), None

    # ------------------------------------------------------------------------------------------------ searching

    @property
    def _total(self) -> int:
        return sum(map(len, self._segments))

    def _starts(self) -> Iterable[tuple[int, Segment]]:
        start = 0
        for segment in self._segments:
            yield start, segment
            start += len(segment)

    def _alive(self) -> np.ndarray:
        alive = np.ones(self._total, bool)
        alive[self._deleted] = False
        return alive

    def _where(self) -> dict[Any, int]:
        if self._places is None:
            alive = self._alive()
            self._places = {
                id: start + i
                for start, segment in self._starts()
                for i, id in enumerate(segment.ids())
                if alive[start + i]
            }
        return self._places

    def _place(self, id: Any) -> int:
        try:
            return self._where()[_id(id)]
        except KeyError:
            raise KeyError(f"no document has the id {id!r}") from None

    def _locate(self, place: int) -> tuple[Segment, int]:
        for start, segment in self._starts():
            if place < start + len(segment):
                return segment, place - start
        raise IndexError(place)

    def _id(self, place: int) -> Any:
        segment, i = self._locate(place)
        return segment.id_of(i)

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
        total = self._total if allowed is None else int(allowed.sum())
        everything = self.stage == "chamfer" or (count is None and total <= WHOLE)
        count = max(50 * k, 500) if count is None else count
        if everything or count >= total:
            return np.arange(self._total) if allowed is None else np.flatnonzero(allowed)
        encoded = self.encoder.encode_queries(query, threads=threads)
        places, scores = [], []
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
        among = {_id(id) for id in filter}
        return lambda id, metadata: id in among
    wanted = {
        key: set(value) if isinstance(value, list | tuple | set | frozenset) else {value}
        for key, value in filter.items()
    }
    return lambda id, metadata: (
        isinstance(metadata, Mapping)
        and all(key in metadata and metadata[key] in values for key, values in wanted.items())
    )


def _id(id: Any) -> Any:
    if isinstance(id, str):
        return str(id)
    if isinstance(id, int | np.integer) and not isinstance(id, bool | np.bool_):
        return _checks.integer("ids", id, -(1 << 63), high=(1 << 63) - 1)
    raise TypeError(f"ids must be integers or strings, got {id!r}")


def _id_arrays(ids: list[Any]) -> dict[str, np.ndarray]:
    if not ids or not isinstance(ids[0], str):
        return {"ids": np.array(ids, np.int64)}
    encoded = [id.encode() for id in ids]
    ends = np.concatenate([[0], np.cumsum([len(e) for e in encoded])]).astype(np.int64)
    return {"ids": np.frombuffer(b"".join(encoded), np.uint8), "id_offsets": ends}


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
