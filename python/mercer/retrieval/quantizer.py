"""Product quantisation: a byte for every few coordinates, scored against queries that are not quantised.

Source: Jegou, Douze, Schmid 2011, "Product quantization for nearest neighbor search"; PQ-256-8 (8 coordinates a byte,
32 times fewer bytes than float32) is MUVERA's default, PQ-256-16 its smallest and PQ-256-4 its safest.
"""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np

from mercer import _checks, _core, _state
from mercer._estimator import raise_not_fitted

__all__ = ["ProductQuantizer"]

KIND = "mercer.retrieval.ProductQuantizer"
SAMPLE = 32  # stream of the generator


class ProductQuantizer:
    """Vectors as bytes.

    Parameters
    ----------
    dim : int
        Coordinates of a vector.
    block : int
        Consecutive coordinates G of a byte; the last block may have fewer.
    centers : int
        Centres of a block, at most 256.
    n_iter : int
        Rounds of k-means in `fit`.
    max_train : int
        Vectors that `fit` uses of those it is given, drawn at random.
    random_state : int, None or numpy generator

    Attributes
    ----------
    codebooks : (ceil(dim / block), centers, block) float32, or None before `fit`

    Notes
    -----
    `fit` costs n_iter · vectors · dim · centers operations, `encode` dim · centers a vector, `asymmetric_scores`
    dim / block additions a row. A block with no more different rows than centres is kept exactly.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    >>> pq = ProductQuantizer(32, block=4).fit(X)
    >>> codes = pq.encode(X)
    >>> codes.shape, codes.dtype
    ((300, 8), dtype('uint8'))
    >>> bool(np.allclose(pq.asymmetric_scores(X[:2], codes), X[:2] @ pq.decode(codes).T, atol=1e-4))
    True
    """

    def __init__(
        self,
        dim: int,
        block: int = 8,
        centers: int = 256,
        *,
        n_iter: int = 8,
        max_train: int = 100_000,
        random_state: Any = 0,
    ) -> None:
        self.dim = _checks.integer("dim", dim, 1)
        self.block = _checks.integer("block", block, 1, high=self.dim)
        self.centers = _checks.integer("centers", centers, 1, high=256)
        self.n_iter = _checks.integer("n_iter", n_iter, 1)
        self.max_train = _checks.integer("max_train", max_train, 1)
        self.random_state = _checks.random_seed(random_state)
        self.codebooks: np.ndarray | None = None
        self._core: _core.PqCodebooks | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of a code."""
        return -(-self.dim // self.block)

    def fit(self, X: Any, *, threads: int | None = None) -> Self:
        """Learn the centres from rows (n, dim)."""
        threads = _checks.threads("threads", threads)
        X = self._rows("X", X, threads)
        if not len(X):
            raise ValueError("X must have rows, got none")
        if len(X) > self.max_train:
            order = np.argsort(_core.lsh_bits(self.random_state, SAMPLE, len(X), 1)[:, 0], kind="stable")
            X = np.ascontiguousarray(X[np.sort(order[: self.max_train])])
        flat = np.empty(self.n_bytes * self.centers * self.block, np.float32)
        _core.PqCodebooks.fit(X, self.block, self.centers, self.n_iter, self.random_state, flat, threads)
        return self._set(flat.reshape(self.n_bytes, self.centers, self.block))

    def encode(self, X: Any, *, threads: int | None = None) -> np.ndarray:
        """The nearest centre of each block, (n, n_bytes) uint8."""
        threads = _checks.threads("threads", threads)
        core = self._fitted()
        X = self._rows("X", X, threads)
        codes = np.empty((len(X), self.n_bytes), np.uint8)
        core.encode(X, codes, threads)
        return codes

    def decode(self, codes: Any) -> np.ndarray:
        """The centres that codes name, (n, dim) float32."""
        self._fitted()
        codes = self._codes(codes)
        assert self.codebooks is not None
        found = self.codebooks[np.arange(self.n_bytes), codes.astype(np.int64)]  # (n, n_bytes, block)
        return np.ascontiguousarray(found.reshape(len(codes), -1)[:, : self.dim])

    def asymmetric_scores(self, queries: Any, codes: Any, *, threads: int | None = None) -> np.ndarray:
        """Products of queries (m, dim) with the decoded rows, which are not made: (m, n) float32."""
        threads = _checks.threads("threads", threads)
        core = self._fitted()
        return core.scores(self._rows("queries", queries, threads), self._codes(codes), threads)

    def get_state(self) -> dict[str, Any]:
        """Parameters and centres, for `from_state`."""
        return {**self._parameters(), "codebooks": self.codebooks}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The quantiser of a state."""
        state = dict(state)
        codebooks = state.pop("codebooks", None)
        made = cls(**state)
        if codebooks is None:
            return made
        shape = (made.n_bytes, made.centers, made.block)
        codebooks = np.ascontiguousarray(codebooks, np.float32)
        if codebooks.shape != shape or not np.isfinite(codebooks).all():
            raise ValueError(f"codebooks must be finite of shape {shape}, got shape {codebooks.shape}")
        return made._set(codebooks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state, whole or not at all."""
        self._fitted()
        assert self.codebooks is not None
        _state.write(path, KIND, self._parameters(), {"codebooks": self.codebooks})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; ``ValueError`` for a file that is damaged or of another kind."""
        parameters, arrays = _state.read(path, KIND)
        return cls.from_state({**parameters, **arrays})

    def __repr__(self) -> str:
        return f"ProductQuantizer(dim={self.dim}, block={self.block}, centers={self.centers})"

    def _parameters(self) -> dict[str, Any]:
        names = ("dim", "block", "centers", "n_iter", "max_train", "random_state")
        return {name: getattr(self, name) for name in names}

    def _set(self, codebooks: np.ndarray) -> Self:
        self.codebooks = codebooks
        self._core = _core.PqCodebooks(self.dim, codebooks)
        return self

    def _fitted(self) -> _core.PqCodebooks:
        if self._core is None:
            raise_not_fitted(self, "call fit with rows that are like those to encode")
        return self._core

    def _rows(self, name: str, X: Any, threads: int | None) -> np.ndarray:
        X = np.ascontiguousarray(_checks.matrix(name, X, columns=self.dim), np.float32)
        _core.largest_entry(X, name, threads)
        return X

    def _codes(self, codes: Any) -> np.ndarray:
        codes = np.asarray(codes)
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != self.n_bytes:
            raise ValueError(
                f"codes must be uint8 of shape (n, {self.n_bytes}), got {codes.dtype} of shape {codes.shape}"
            )
        if self.centers < 256 and codes.size and codes.max() >= self.centers:
            raise ValueError(f"codes must be below centers = {self.centers}, got {codes.max()}")
        return np.ascontiguousarray(codes)
