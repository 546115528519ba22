"""The file: one line that says what it is and how long, the statement as JSON a person can read, the numbers.

    mercer-private-release 1 <bytes of JSON> <bytes of numbers> <SHA-256 of both>
    {
     "statement": {...},
     ...
    }
    <little-endian arrays, one after another, as "arrays" lists them>

Everything is checked before anything is used; nothing is unpickled or evaluated. The checksum finds damage, not
forgery: whoever can write the file can write its checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["CorruptFile", "pack", "read", "unpack"]

VERSION = 1
RELEASE, PARTIAL = "mercer-private-release", "mercer-SECRET-partial"
_HEADER = re.compile(
    rb"(mercer-private-release|mercer-SECRET-partial) (\d{1,9}) (\d{1,15}) (\d{1,15}) ([0-9a-f]{64})"
)
_INTEGERS = {"<i1": 1, "<i2": 2, "<i4": 4, "<i8": 8, "|i1": 1}


class CorruptFile(ValueError):
    """Not a file of this kind, of another version, cut short, or changed."""


def pack(magic: str, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a file: whole numbers in the narrowest type that holds them all."""
    listed, chunks = [], []
    for name, array in arrays.items():
        narrow = _narrowed(array)
        listed.append([name, narrow.dtype.str, list(narrow.shape)])
        chunks.append(narrow.tobytes())
    text = json.dumps({**content, "arrays": listed}, indent=1, allow_nan=False).encode() + b"\n"
    numbers = b"".join(chunks)
    digest = hashlib.sha256(text + numbers).hexdigest()
    return f"{magic} {VERSION} {len(text)} {len(numbers)} {digest}\n".encode() + text + numbers


def unpack(magic: str, data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What :func:`pack` was given, or :class:`CorruptFile`."""
    line, _, rest = data[:256].partition(b"\n")
    header = _HEADER.fullmatch(line)
    if header is None or not rest:
        raise CorruptFile(f"not a {magic} file: it begins with {line[:40]!r}")
    kind, version, text_length, numbers_length, digest = (part.decode() for part in header.groups())
    if kind != magic:
        raise CorruptFile(f"this is a {kind} file, not a {magic} file")
    if int(version) != VERSION:
        raise CorruptFile(f"version {version} of the format, this mercer reads version {VERSION}")
    start, length = len(line) + 1, int(text_length)
    if len(data) != start + length + int(numbers_length):
        raise CorruptFile(f"{len(data)} bytes, its first line says {start + length + int(numbers_length)}")
    if hashlib.sha256(memoryview(data)[start:]).hexdigest() != digest:
        raise CorruptFile("the checksum does not fit: the file is damaged or was changed")
    try:
        content = json.loads(data[start : start + length], parse_constant=_refuse)
        listed = content.pop("arrays")
        arrays, at = {}, start + length
        for name, dtype, shape in listed:
            if dtype not in _INTEGERS or name in arrays or not all(type(s) is int and s >= 0 for s in shape):
                raise ValueError(f"array {name!r} of type {dtype!r} and shape {shape!r}")
            size = math.prod(shape)
            if at + size * _INTEGERS[dtype] > len(data):
                raise ValueError(f"array {name!r} is longer than the file")
            arrays[str(name)] = np.frombuffer(data, dtype, size, at).reshape(shape).astype(np.int64)
            at += size * _INTEGERS[dtype]
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes belong to no array")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"its content is not that of a {magic} file: {error}") from None
    return content, arrays


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file."""
    with open(path, "rb") as file:
        return file.read()


def _narrowed(array: np.ndarray) -> np.ndarray:
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    for dtype in ("<i1", "<i2", "<i4"):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return array.astype(dtype)
    return array.astype("<i8")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
