"""Argument checks: every message names the argument, what was given and what is allowed."""

from __future__ import annotations

import numbers
import operator
import secrets
from typing import Any

import numpy as np

__all__ = ["choice", "flag", "integer", "matrix", "random_seed", "real", "real_array", "threads", "weights"]


def integer(name: str, value: Any, low: int, *, high: int | None = None) -> int:
    """`value` as an int in [low, high]."""
    allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {allowed}, got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {allowed}, got {number}")
    return number


def real(name: str, value: Any, low: float, *, strict: bool = False) -> float:
    """`value` as a finite float >= low (> low where `strict`)."""
    allowed = f"a finite number {'>' if strict else '>='} {low:g}"
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    number = float(value)
    if not (low < number if strict else low <= number) or number == float("inf"):
        raise ValueError(f"{name} must be {allowed}, got {number}")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` as True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value`, one of `allowed`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def threads(name: str, value: Any) -> int | None:
    """Number of threads; None and -1 mean the default."""
    return None if value is None or value == -1 else integer(name, value, 1)


def random_seed(value: Any) -> int:
    """64 bits from what users pass as `random_state`: None, an int, a Generator, a RandomState, a
    SeedSequence.

    None asks the operating system; generators are advanced; the same int gives the same bits for ever.
    """
    if value is None:
        return secrets.randbits(64)
    if isinstance(value, np.random.Generator):
        return int(value.integers(0, 2**64, dtype=np.uint64))
    if isinstance(value, np.random.RandomState):
        return int(value.randint(0, 2**64, dtype=np.uint64))
    if isinstance(value, np.random.SeedSequence):
        return int(value.generate_state(1, np.uint64)[0])
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"random_state must be None, an int or a numpy Generator or RandomState, got {value!r}"
        )
    return integer("random_state", value, 0, high=2**64 - 1)


def real_array(name: str, value: Any) -> np.ndarray:
    """`value` as an array of float32 or float64, without a copy where it is one; NaN and infinity pass."""
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(
            f"{name} must be dense, got the sparse {type(value).__name__}; call its .toarray() first"
        )
    array = np.asarray(value)
    if array.dtype in (np.float32, np.float64) and array.dtype.isnative:
        return array
    if array.dtype.kind == "c":
        raise ValueError(f"{name} must be real, got dtype {array.dtype}. Complex data not supported")
    if array.dtype.kind == "O":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError) as error:
            # numpy's own words, for a ragged list or a stray string, with the argument's name before them
            raise type(error)(f"{name} must hold real numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array.astype(np.float32 if array.dtype.itemsize < 4 and array.dtype.kind == "f" else np.float64)


def matrix(name: str, value: Any, *, columns: int | None = None) -> np.ndarray:
    """`value` as a C-contiguous (n, d) array of float32 or float64; entries are not looked at."""
    array = real_array(name, value)
    if array.ndim != 2:
        hint = " Reshape your data: one row a point" if array.ndim < 2 else ""
        raise ValueError(
            f"{name} must be a 2-D array (n, d), got {array.ndim}-D of shape {array.shape}.{hint}"
        )
    if array.shape[1] == 0:
        raise ValueError(f"{name} has 0 feature(s) (shape={array.shape}) while a minimum of 2 is required.")
    if columns is not None and array.shape[1] != columns:
        raise ValueError(f"{name} must have {columns} columns, got {array.shape[1]}")
    return np.ascontiguousarray(array)


def weights(name: str, value: Any, n: int) -> np.ndarray:
    """`value` as n finite weights >= 0, not all 0."""
    array = np.ascontiguousarray(real_array(name, value), dtype=np.float64)
    if array.ndim == 0:
        array = np.full(n, float(array))
    if array.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one weight a row, got {array.shape}")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(f"{name} must be finite and >= 0, got {array[at]} at index {at}")
    if not array.any():
        raise ValueError(f"{name} must have a positive sum, got only zeros")
    return array
