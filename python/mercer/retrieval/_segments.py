"""What an index keeps on disk: files that are written once, and a manifest that names those that count.

    manifest.json            which segments there are, with sizes and checksums; replaced by a rename
    NNNNNNNN-encoder.npz     the state of the encoder, as of commit N
    NNNNNNNN-quantizer.npz   the centres, where the index quantises
    NNNNNNNN-I-tokens.npy …  segment I of commit N: tokens, offsets, ids, codes or encodings, graph, metadata
    NNNNNNNN-deleted.npy     the documents that are deleted as of commit N
    lock                     held by the one writer

A commit writes new files, forces them to disk, and then replaces the manifest: whoever is killed before that leaves
files that nobody names, which the next writer removes. Files that are named never change, so readers keep what they
opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mercer._atomic import replacing

__all__ = [
    "CorruptIndex",
    "IndexLocked",
    "Segment",
    "lock",
    "read_manifest",
    "verify",
    "write_file",
    "write_manifest",
]

FORMAT, VERSION = "mercer-multi-vector-index", 1
MANIFEST = "manifest.json"
#: Files up to this size have their checksum looked at when they are opened.
CHECKED = 1 << 20


class CorruptIndex(ValueError):
    """Not an index, one of another version, or one with files that are damaged, cut short or missing."""


class IndexLocked(RuntimeError):
    """Another process is writing to the index."""


class Segment:
    """Documents that were added together.

    Attributes
    ----------
    arrays : dict of str to array
        tokens (n_tokens, d), offsets (n + 1,), ids (n,) int64 or the UTF-8 of all with id_offsets (n + 1,), and
        encodings (n, D) float32 or codes (n, bytes) uint8.
    graph : usearch index or None
    """

    def __init__(
        self, arrays: dict[str, np.ndarray], metadata: list[Any] | None = None, graph: Any = None
    ) -> None:
        self.arrays = arrays
        self.graph = graph
        self._metadata = metadata
        self.files: dict[str, dict[str, Any]] | None = None
        self.folder: Path | None = None

    def __len__(self) -> int:
        return len(self.arrays["offsets"]) - 1

    def ids(self) -> list[Any]:
        """The ids as Python's integers or strings."""
        ids = self.arrays["ids"]
        if "id_offsets" not in self.arrays:
            return ids.tolist()
        ends = self.arrays["id_offsets"].tolist()
        text = ids.tobytes()
        return [text[a:b].decode() for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def id_of(self, i: int) -> Any:
        """The id of document `i` of the segment."""
        ids = self.arrays["ids"]
        if "id_offsets" not in self.arrays:
            return int(ids[i])
        a, b = self.arrays["id_offsets"][i : i + 2]
        return ids[a:b].tobytes().decode()

    @property
    def metadata(self) -> list[Any]:
        """One value a document, None where none was given."""
        if self._metadata is None:
            self._metadata = [None] * len(self)
            if self.files is not None and self.folder is not None and "metadata" in self.files:
                text = (self.folder / self.files["metadata"]["name"]).read_text(encoding="utf-8")
                self._metadata = [json.loads(line) for line in text.splitlines()]
        return self._metadata

    def write(self, folder: Path, name: str) -> dict[str, dict[str, Any]]:
        """Write the files; what the manifest says of them."""
        files = {kind: write_file(folder, f"{name}-{kind}.npy", array) for kind, array in self.arrays.items()}
        if self._metadata is not None and any(m is not None for m in self._metadata):
            text = "".join(json.dumps(m, allow_nan=False) + "\n" for m in self._metadata)
            files["metadata"] = write_file(folder, f"{name}-metadata.jsonl", text.encode())
        if self.graph is not None:
            files["graph"] = write_file(folder, f"{name}-graph.usearch", self.graph.save())
        self.files, self.folder = files, folder
        return files

    @classmethod
    def open(cls, folder: Path, files: Mapping[str, dict[str, Any]]) -> Segment:
        """Map the files of a segment into memory."""
        arrays = {}
        graph = None
        for name, entry in files.items():
            path = folder / str(entry["name"])
            _check(path, entry, full=int(entry["size"]) <= CHECKED)
            if name == "graph":
                from mercer.retrieval._graph import view

                graph = view(path)
            elif name != "metadata":
                arrays[name] = _map(path)
        made = cls(arrays, None, graph)
        made.files, made.folder = dict(files), folder
        try:
            n, offsets = len(made), arrays["offsets"]
            whole = len(arrays["tokens"]) == int(offsets[-1]) and all(
                len(arrays[name]) == n for name in ("codes", "encodings") if name in arrays
            )
            whole = whole and len(arrays.get("id_offsets", arrays["ids"])) == n + ("id_offsets" in arrays)
        except (KeyError, IndexError, TypeError) as error:
            raise CorruptIndex(f"{folder}: a segment lacks {error}") from None
        if not whole:
            raise CorruptIndex(f"{folder}: the arrays of a segment do not fit together")
        return made


def write_file(folder: Path, name: str, content: np.ndarray | bytes | Any) -> dict[str, Any]:
    """Write a new file and force it to disk: its name, size and SHA-256."""
    path = folder / name
    digest = hashlib.sha256()
    with path.open("wb") as file:

        class Tee:
            def write(self, data: Any) -> int:
                digest.update(data)
                return file.write(data)

        if isinstance(content, np.ndarray):
            np.lib.format.write_array(Tee(), np.ascontiguousarray(content), allow_pickle=False)
        else:
            Tee().write(memoryview(content))
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    return {"name": name, "size": size, "sha256": digest.hexdigest()}


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Make `content` what the index is, at once."""
    body = {"format": FORMAT, "version": VERSION, **content}
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    with replacing(folder / MANIFEST) as beside:
        beside.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename itself
    finally:
        os.close(handle)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the last commit wrote."""
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptIndex(f"{folder} is not an index: it has no {MANIFEST}") from None
    except (ValueError, OSError) as error:
        raise CorruptIndex(f"{path} is damaged: {error}") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CorruptIndex(f"{path} is not the manifest of an index of mercer's")
    if body.get("version") != VERSION:
        raise CorruptIndex(f"{path} is of version {body.get('version')}, this mercer reads version {VERSION}")
    digest = body.pop("sha256", None)
    if hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest() != digest:
        raise CorruptIndex(f"{path} is damaged or was changed: its checksum does not fit")
    return body


def load_deleted(folder: Path, entry: dict[str, Any] | None) -> np.ndarray:
    """The places of deleted documents."""
    if entry is None:
        return np.empty(0, np.int64)
    path = folder / str(entry["name"])
    _check(path, entry, full=True)
    return np.array(_map(path))


def verify(folder: Path) -> None:
    """Read every file that the manifest names and compare its checksum.

    Raises
    ------
    CorruptIndex
        One is damaged.
    """
    body = read_manifest(folder)
    entries = [entry for files in body["segments"] for entry in files.values()]
    entries += [body[name] for name in ("deleted", "encoder_file", "quantizer_file") if body.get(name)]
    for entry in entries:
        _check(folder / str(entry["name"]), entry, full=True)


def remove_unnamed(folder: Path, body: Mapping[str, Any]) -> None:
    """Take away the files of commits that did not come to their end, and of those that were replaced."""
    named = {entry["name"] for files in body["segments"] for entry in files.values()}
    named |= {body[name]["name"] for name in ("deleted", "encoder_file", "quantizer_file") if body.get(name)}
    for path in folder.iterdir():
        ours = path.name[:8].isdigit() or path.name.startswith((".manifest.", ".encoder", ".quantizer"))
        if ours and path.name not in named:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the one writer, or raise :class:`IndexLocked`; freed when the process ends, however it does."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        raise RuntimeError("writing to an index on disk needs a POSIX system") from None
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise IndexLocked(
                f"{folder} is being written to by another writer; try again when it is done"
            ) from None
        yield


def _check(path: Path, entry: Mapping[str, Any], *, full: bool) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise CorruptIndex(f"{path} is missing") from None
    if size != entry["size"]:
        raise CorruptIndex(f"{path} has {size} bytes, its manifest says {entry['size']}")
    if full:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise CorruptIndex(f"{path} is damaged or was changed: its checksum does not fit")


def _map(path: Path) -> np.ndarray:
    try:
        # A file without rows cannot be mapped.
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        try:
            mapped = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise CorruptIndex(f"{path} is damaged: {error}") from None
    return mapped.view(np.ndarray)
