"""Small states on disk: parameters as JSON and arrays, in one npz that is replaced whole or not at all.

Nothing is unpickled. The checksum finds damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mercer._atomic import replacing

__all__ = ["CorruptState", "fingerprint", "read", "write"]

VERSION = 1


class CorruptState(ValueError):
    """Not a state of this kind, of another version, cut short, or changed."""


def fingerprint(kind: str, parameters: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a state: equal where two objects do the same."""
    digest = hashlib.sha256(json.dumps([kind, parameters], sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\0{name} {array.dtype.str} {array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write(
    path: str | os.PathLike[str], kind: str, parameters: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write the state of an object of this kind."""
    header = {
        "kind": kind,
        "version": VERSION,
        "parameters": dict(parameters),
        "sha256": fingerprint(kind, parameters, arrays),
    }
    text = np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8)
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, __header__=text, **arrays)


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The parameters and arrays that `write` was given; `CorruptState` for anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(arrays.pop("__header__").tobytes())
        found, version, parameters = header["kind"], header["version"], header["parameters"]
        digest = header["sha256"]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptState(f"{os.fspath(path)} is not a state of {kind}: {error}") from None
    if found != kind:
        raise CorruptState(f"{os.fspath(path)} holds the state of {found}, not of {kind}")
    if version != VERSION:
        raise CorruptState(f"{os.fspath(path)} is of version {version}, this mercer reads version {VERSION}")
    if fingerprint(kind, parameters, arrays) != digest:
        raise CorruptState(f"{os.fspath(path)} is damaged or was changed: its checksum does not fit")
    return parameters, arrays
