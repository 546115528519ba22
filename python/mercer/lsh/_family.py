"""What all hashes share: parameters, arrays that were given, a state on disk."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Self

import numpy as np

from mercer import _checks, _core, _state

__all__ = ["Family", "given_array", "mix", "rows"]


class Family:
    """A family of hash functions, drawn from a seed or given as arrays.

    Attributes
    ----------
    tables : int
        Hash functions; `hash` gives one column for each.
    """

    tables: int
    #: Names of the constructor's arguments that are plain numbers and strings.
    _plain: ClassVar[tuple[str, ...]] = ()
    #: Names of those that are arrays where they are given.
    _arrays: ClassVar[tuple[str, ...]] = ()
    _given: frozenset[str]

    def get_state(self) -> dict[str, Any]:
        """What `from_state` makes the same hash from: the seed, or the arrays where they were given."""
        state: dict[str, Any] = {name: getattr(self, name) for name in self._plain}
        for name in sorted(self._given):
            state[name] = getattr(self, name)
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The family of a state."""
        return cls(**state)

    @property
    def fingerprint(self) -> str:
        """Equal for families that give the same buckets."""
        return _state.fingerprint(type(self).__name__, *self._split())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state, whole or not at all (an npz with a JSON header; nothing is pickled)."""
        _state.write(path, f"mercer.lsh.{type(self).__name__}", *self._split())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            The file is damaged, or of another kind or version.
        """
        plain, arrays = _state.read(path, f"mercer.lsh.{cls.__name__}")
        if not set(plain) <= set(cls._plain) or not set(arrays) <= set(cls._arrays):
            raise _state.CorruptState(f"{os.fspath(path)} holds {sorted({*plain, *arrays})}")
        return cls.from_state({**plain, **arrays})

    def _split(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        state = self.get_state()
        arrays = {name: state.pop(name) for name in list(state) if isinstance(state[name], np.ndarray)}
        return state, arrays

    def __repr__(self) -> str:
        plain = [f"{name}={getattr(self, name)!r}" for name in self._plain]
        given = [f"{name}=array of shape {getattr(self, name).shape}" for name in sorted(self._given)]
        return f"{type(self).__name__}({', '.join(plain + given)})"


def rows(X: Any, dim: int, threads: int | None) -> np.ndarray:
    """X as finite rows of `dim` float32 or float64 numbers."""
    X = _checks.matrix("X", X, columns=dim)
    _core.largest_entry(X, "X", threads)
    return X


def given_array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array that the caller gives, finite and of this shape, in double precision."""
    array = np.ascontiguousarray(_checks.real_array(name, value), dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, it contains NaN or infinity")
    return array


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a permutation of 64-bit words (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
