"""Documents in segments, in memory or in a folder: what `MultiVectorIndex` stands on.

A folder is mapped into memory, survives a kill at any moment with its last commit, and can be read while it is written:
see `_segments` for the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mercer import _checks
from mercer.retrieval import _segments
from mercer.retrieval._segments import CorruptIndex, Segment
from mercer.retrieval._tokens import packed
from mercer.retrieval.clustering import cluster_tokens
from mercer.retrieval.fde import FixedDimensionalEncoder
from mercer.retrieval.quantizer import ProductQuantizer

__all__ = ["Documents", "an_id"]


class Documents:
    """Sets of token vectors with ids and metadata; a place is a number among all that were ever added."""

    encoder: FixedDimensionalEncoder
    stage: str
    quantizer: ProductQuantizer | None
    dtype: str
    reducer: dict[str, Any] | None
    connectivity: int
    expansion: int

    def __init__(self) -> None:
        self.path: Path | None = None
        self.read_only = False
        #: What a model is known by that made the tokens; an index of another one is refused.
        self.model: str | None = None
        self._segments: list[Segment] = []
        self._deleted = np.empty(0, np.int64)
        self._places: dict[Any, int] | None = None
        self._version = 0

    def __len__(self) -> int:
        return self._total - len(self._deleted)

    def __contains__(self, id: Any) -> bool:
        return id in self._where()

    @property
    def ids(self) -> list[Any]:
        """The ids of all documents, in the order they were added."""
        return list(self._where())

    def delete(self, ids: Iterable[Any]) -> None:
        """Take documents out; ``KeyError`` for one that is not there. Their bytes go with `compact`."""
        none = np.empty((0, self.encoder.dim), np.float32)
        with self._writing():
            self._commit(list(ids), [], none, np.zeros(1, np.int64), None, None)

    def merge(self, other: Documents) -> None:
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

    def tokens(self, id: Any) -> np.ndarray:
        """The stored vectors of a document; ``KeyError`` where there is none."""
        segment, i = self._locate(self._place(id))
        a, b = segment.arrays["offsets"][i : i + 2]
        return segment.arrays["tokens"][a:b]

    def metadata(self, id: Any) -> Any:
        """What was given as metadata of a document."""
        segment, i = self._locate(self._place(id))
        return segment.metadata[i]

    # -------------------------------------------------------------------------------------------------- disk

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
        before = self.path, self._version, self.read_only
        with _segments.lock(folder):
            for segment in self._segments:
                segment.metadata  # noqa: B018 (read it from where it is before the segment moves)
            self.path, self._version, self.read_only = folder, 0, False
            try:
                self._write(self._segments, self._deleted, self._segments)
            except BaseException:
                self.path, self._version, self.read_only = before
                raise

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

    # ---------------------------------------------------------------------------------------------- changing

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the one writer, of the last commit."""
        if self.read_only:
            raise PermissionError("this index was opened with read_only=True")
        if self.path is None:
            yield
            return
        with _segments.lock(self.path):
            body = _segments.read_manifest(self.path)
            if body["commit"] != self._version:
                self._take(self.path, body)
            _segments.remove_unnamed(self.path, body)
            yield

    def _commit(
        self, gone: list[Any], ids: Any, tokens: Any, offsets: Any, metadata: Any, threads: int | None
    ) -> None:
        """Documents out and in, checked before anything is changed."""
        places = []
        for id in gone:
            places.append(self._place(id))
        if len(set(places)) != len(places):
            raise ValueError("ids must not repeat")
        ids = [an_id(id) for id in ids]
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
        """Add to new documents what the first stage of a search needs of them."""
        raise NotImplementedError

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
            segment.write(folder, f"{number:08d}-{i}")
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
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": path.name, "size": path.stat().st_size, "sha256": digest}

    def _take(self, folder: Path, body: dict[str, Any]) -> None:
        kept = {json.dumps(s.files, sort_keys=True): s for s in self._segments if s.files is not None}
        self._segments = [
            kept.get(json.dumps(files, sort_keys=True)) or Segment.open(folder, files)
            for files in body["segments"]
        ]
        for segment in self._segments:
            self._require_shapes(folder, segment)
        self._deleted = _segments.load_deleted(folder, body.get("deleted"))
        if body.get("quantizer_file") and (self.quantizer is None or self.quantizer.codebooks is None):
            self.quantizer = ProductQuantizer.load(folder / body["quantizer_file"]["name"])
        self.model = body.get("model")
        self.path, self._version, self._places = folder, int(body["commit"]), None

    def _require_shapes(self, folder: Path, segment: Segment) -> None:
        """Refuse arrays that another program wrote: searches trust these."""
        arrays, bytes_ = segment.arrays, self.quantizer.n_bytes if self.quantizer is not None else 0
        wanted = {
            "tokens": (self.dtype, self.encoder.dim), "offsets": ("int64", None),
            "encodings": ("float32", self.encoder.n_features), "codes": ("uint8", bytes_),
        }  # fmt: skip
        for name in wanted.keys() & arrays.keys():
            dtype, columns = wanted[name]
            rest = () if columns is None else (columns,)
            if arrays[name].dtype != dtype or arrays[name].shape[1:] != rest:
                raise CorruptIndex(
                    f"{folder}: {name} must be {dtype} of shape {('n', *rest)}, a segment has "
                    f"{arrays[name].dtype} of shape {arrays[name].shape}"
                )

    # ----------------------------------------------------------------------------------------------- finding

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
            return self._where()[an_id(id)]
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


def an_id(id: Any) -> Any:
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
