"""Hashes of vectors: sides of hyperplanes, nearest axes, cells of a random line."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mercer import _checks, _core
from mercer._backend import is_reference
from mercer.lsh._family import Family, given_array, mix, rows

__all__ = ["E2LSH", "CrossPolytope", "SimHash"]

#: Streams of the generator: a family draws from its own.
SIMHASH, POLYTOPE, POLYTOPE_SIGNS, E2, E2_DENOMINATORS, E2_SHIFTS = range(20, 26)


class SimHash(Family):
    """Which sides of random hyperplanes a vector lies on: for angles.

    Two vectors at angle t agree in a bit with probability 1 - t/pi.

    Parameters
    ----------
    dim : int
        Coordinates d of a vector.
    n_bits : int
        Hyperplanes k of a table, 0 … 62; the buckets are 0 … 2^k - 1.
    tables : int
        Independent hashes.
    numbering : {"plain", "gray"}
        Bit j is 1 where the product with plane j is greater than 0 (0 and ties give 0); the first plane's bit is the
        most significant. "plain" reads the bits as a number. "gray" reads them as a Gray code, so that buckets i and
        i + 1 differ in one plane: ``i = 2 i + (b xor (i and 1))`` over the bits.
    random_state : int, None or numpy generator
        The planes are standard normal; the same int gives the same ones on any machine.
    planes : (tables, dim, n_bits) array, optional
        Given instead of drawn.

    Notes
    -----
    Cost of `hash`: n · tables · n_bits · d multiply-adds, at the rate of a matrix product.

    Source: Charikar 2002, "Similarity estimation techniques from rounding algorithms"; Gray numbering: Dhulipala et al.
    2024, "MUVERA", as its authors' code does it.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((5, 16))
    >>> SimHash(16, 4, tables=3, random_state=0).hash(X).shape
    (5, 3)
    >>> SimHash(2, 2, planes=np.eye(2)[None]).hash([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]]).ravel()
    array([3, 1, 0], dtype=int32)
    """

    _plain: ClassVar = ("dim", "n_bits", "tables", "numbering", "random_state")
    _arrays: ClassVar = ("planes",)

    def __init__(
        self,
        dim: int,
        n_bits: int,
        *,
        tables: int = 1,
        numbering: str = "plain",
        random_state: Any = 0,
        planes: Any = None,
    ) -> None:
        self.dim = _checks.integer("dim", dim, 1)
        self.n_bits = _checks.integer("n_bits", n_bits, 0, high=62)
        self.tables = _checks.integer("tables", tables, 1)
        self.numbering = _checks.choice("numbering", numbering, ("plain", "gray"))
        self.random_state = _checks.random_seed(random_state)
        self._given = frozenset() if planes is None else frozenset({"planes"})
        shape = (self.tables, self.dim, self.n_bits)
        if planes is None:
            drawn = _core.lsh_normals(self.random_state, SIMHASH, self.tables * self.n_bits, self.dim)
            self._rows = drawn.reshape(self.tables, self.n_bits, self.dim)
        else:
            self._rows = np.ascontiguousarray(given_array("planes", planes, shape).transpose(0, 2, 1))

    @property
    def planes(self) -> np.ndarray:
        """The normals of the hyperplanes, (tables, dim, n_bits) float64."""
        return self._rows.transpose(0, 2, 1)

    def hash(self, X: Any, *, threads: int | None = None) -> np.ndarray:
        """The buckets of each row.

        Parameters
        ----------
        X : (n, dim) array
            float32 products for float32, else float64.
        threads : int, optional
            None: ``MERCER_NUM_THREADS``, else all cores. The bits do not depend on it.

        Returns
        -------
        (n, tables) int32, or int64 where n_bits > 31

        Raises
        ------
        ValueError
            Another width; NaN or infinity.
        """
        threads = _checks.threads("threads", threads)
        X = rows(X, self.dim, threads)
        out = np.empty((len(X), self.tables), np.int32 if self.n_bits <= 31 else np.int64)
        if is_reference():
            out[...] = self._reference(X)
        else:
            _core.lsh_simhash(X, self._rows, self.numbering == "gray", out, threads)
        return out

    def bits(self, buckets: Any) -> np.ndarray:
        """The bits of buckets, first plane first: (..., n_bits) bool."""
        codes = np.asarray(buckets).astype(np.int64)
        if ((codes < 0) | (codes >> self.n_bits > 0)).any():
            raise ValueError(f"buckets must lie in 0 ... {(1 << self.n_bits) - 1}")
        if self.numbering == "gray":
            codes = codes ^ (codes >> 1)
        return (codes[..., None] >> np.arange(self.n_bits - 1, -1, -1)) & 1 == 1

    def _reference(self, X: np.ndarray) -> np.ndarray:
        bits = np.einsum("nd,tkd->ntk", X, self._rows.astype(X.dtype)) > 0
        codes = np.zeros(bits.shape[:2], np.int64)
        for b in np.moveaxis(bits, 2, 0):
            codes = 2 * codes + (b ^ (codes & 1) if self.numbering == "gray" else b)
        return codes


class CrossPolytope(Family):
    """The nearest of the signed axes after a random rotation: for angles, with many buckets in one hash.

    With m axes kept, axis j is bucket j and its opposite m + j: the place of the largest entry of ``[y, -y]`` for
    y = R x, the first among equals (Reformer's hash is this one).

    Parameters
    ----------
    dim : int
        Coordinates d of a vector.
    n_buckets : int, optional
        2m, even. By default 2d, or twice the next power of two for "hadamard".
    hashes : int
        Rotations a table, whose buckets are digits to the base ``n_buckets`` (the first the most significant).
    tables : int
        Independent hashes.
    rotation : {"gaussian", "hadamard"}
        A Gaussian matrix, n_buckets/2 · d multiply-adds a vector; or H D3 H D2 H D1 with random signs, O(d log d).
    random_state : int, None or numpy generator
        The same int gives the same rotations on any machine.
    rotations : array, optional
        Given instead of drawn: (tables, hashes, dim, n_buckets/2); for "hadamard" the signs (tables, hashes, 3, size)
        of a power of two size >= dim.

    Notes
    -----
    Source: Andoni, Indyk, Laarhoven, Razenshteyn, Schmidt 2015, "Practical and optimal LSH for angular distance".

    Examples
    --------
    >>> import numpy as np
    >>> h = CrossPolytope(3, rotations=np.eye(3)[None, None])
    >>> h.hash([[0.1, 2.0, 0.3], [0.1, -2.0, 0.3]]).ravel()
    array([1, 4])
    """

    _plain: ClassVar = ("dim", "n_buckets", "hashes", "tables", "rotation", "random_state")
    _arrays: ClassVar = ("rotations",)

    def __init__(
        self,
        dim: int,
        n_buckets: int | None = None,
        *,
        hashes: int = 1,
        tables: int = 1,
        rotation: str = "gaussian",
        random_state: Any = 0,
        rotations: Any = None,
    ) -> None:
        self.dim = _checks.integer("dim", dim, 1)
        self.rotation = _checks.choice("rotation", rotation, ("gaussian", "hadamard"))
        self.hashes = _checks.integer("hashes", hashes, 1)
        self.tables = _checks.integer("tables", tables, 1)
        self.random_state = _checks.random_seed(random_state)
        fast = self.rotation == "hadamard"
        size = 1 << (self.dim - 1).bit_length() if fast else self.dim
        if fast and rotations is not None and np.ndim(rotations) == 4:
            size = max(size, 1 << (np.shape(rotations)[-1] - 1).bit_length())
        if n_buckets is None:
            n_buckets = 2 * size if fast or np.ndim(rotations) != 4 else 2 * np.shape(rotations)[-1]
        self.n_buckets = _checks.integer("n_buckets", n_buckets, 2)
        if self.n_buckets % 2:
            raise ValueError(f"n_buckets must be even, got {self.n_buckets}")
        self._axes = self.n_buckets // 2
        if fast and self._axes > size:
            raise ValueError(f"n_buckets must be at most {2 * size} here, got {self.n_buckets}")
        if self.hashes * np.log2(self.n_buckets) > 62:
            raise ValueError(f"hashes must leave n_buckets ** hashes below 2 ** 62, got {self.hashes}")
        self._given = frozenset() if rotations is None else frozenset({"rotations"})
        if fast:
            shape: tuple[int, ...] = (self.tables, self.hashes, 3, size)
            if rotations is not None:
                self._rows = given_array("rotations", rotations, shape)
                if not (np.abs(self._rows) == 1).all():
                    raise ValueError("rotations must hold signs, 1 and -1, for rotation='hadamard'")
            else:
                words = _core.lsh_bits(
                    self.random_state, POLYTOPE_SIGNS, self.tables * self.hashes * 3, -(-size // 64)
                )
                bits = np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, bitorder="little")[:, :size]
                self._rows = (1.0 - 2.0 * bits).reshape(shape)
        elif rotations is not None:
            shape = (self.tables, self.hashes, self.dim, self._axes)
            self._rows = np.ascontiguousarray(
                given_array("rotations", rotations, shape).transpose(0, 1, 3, 2)
            )
        else:
            count = self.tables * self.hashes * self._axes
            drawn = _core.lsh_normals(self.random_state, POLYTOPE, count, self.dim)
            self._rows = drawn.reshape(self.tables, self.hashes, self._axes, self.dim)

    @property
    def rotations(self) -> np.ndarray:
        """As the argument of that name."""
        return self._rows if self.rotation == "hadamard" else self._rows.transpose(0, 1, 3, 2)

    def hash(self, X: Any, *, threads: int | None = None) -> np.ndarray:
        """The buckets of each row, (n, tables) int64 in 0 … n_buckets ** hashes - 1; as in `SimHash.hash`."""
        threads = _checks.threads("threads", threads)
        X = rows(X, self.dim, threads)
        if is_reference():
            return self._reference(X)
        out = np.empty((len(X), self.tables), np.int64)
        matrix = self._rows.reshape(-1, self._rows.shape[-1])
        fast = self.rotation == "hadamard"
        _core.lsh_cross_polytope(X, matrix, fast, self.hashes, self._axes, out, threads)
        return out

    def _reference(self, X: np.ndarray) -> np.ndarray:
        if self.rotation == "hadamard":
            from scipy.linalg import hadamard

            size = self._rows.shape[-1]
            y = np.zeros((len(X), self.tables, self.hashes, size))
            y[..., : self.dim] = X[:, None, None]
            for i in range(3):
                y = (y * self._rows[:, :, i]) @ hadamard(size)
            y = y[..., : self._axes]
        else:
            y = np.einsum("nd,thmd->nthm", X, self._rows.astype(X.dtype))
        digits = np.concatenate([y, -y], -1).argmax(-1)
        return digits @ (self.n_buckets ** np.arange(self.hashes - 1, -1, -1, dtype=np.int64))


class E2LSH(Family):
    """Cells of width r on random lines, floor((a·x + b) / r): for Euclidean or Manhattan distances.

    Parameters
    ----------
    dim : int
        Coordinates d of a vector.
    width : float
        r > 0: distances below it mostly stay within a cell.
    hashes : int
        Lines a table; `hash` mixes their cells into one bucket.
    tables : int
        Independent hashes.
    p : {2, 1}
        Directions a are Gaussian (2-stable, for Euclidean distances) or Cauchy (1-stable, for Manhattan).
    random_state : int, None or numpy generator
        The same int gives the same lines on any machine.
    directions : (tables, hashes, dim) array, optional
        Given instead of drawn.
    shifts : (tables, hashes) array, optional
        b; uniform in [0, width) where they are not given.

    Notes
    -----
    Source: Datar, Immorlica, Indyk, Mirrokni 2004, "Locality-sensitive hashing scheme based on p-stable distributions".

    Examples
    --------
    >>> import numpy as np
    >>> h = E2LSH(2, 0.5, directions=[[[1.0, 0.0]]], shifts=[[0.25]])
    >>> h.hash([[0.0, 9.0], [0.3, 9.0], [-0.3, 9.0]]).ravel()
    array([ 0,  1, -1])
    """

    _plain: ClassVar = ("dim", "width", "hashes", "tables", "p", "random_state")
    _arrays: ClassVar = ("directions", "shifts")

    def __init__(
        self,
        dim: int,
        width: float,
        *,
        hashes: int = 1,
        tables: int = 1,
        p: int = 2,
        random_state: Any = 0,
        directions: Any = None,
        shifts: Any = None,
    ) -> None:
        self.dim = _checks.integer("dim", dim, 1)
        self.width = _checks.real("width", width, 0.0, strict=True)
        self.hashes = _checks.integer("hashes", hashes, 1)
        self.tables = _checks.integer("tables", tables, 1)
        self.p = _checks.integer("p", p, 1, high=2)
        self.random_state = _checks.random_seed(random_state)
        given = {"directions": directions, "shifts": shifts}
        self._given = frozenset(name for name, value in given.items() if value is not None)
        count, shape = self.tables * self.hashes, (self.tables, self.hashes)
        if directions is not None:
            self.directions = given_array("directions", directions, (*shape, self.dim))
        else:
            a = _core.lsh_normals(self.random_state, E2, count, self.dim)
            if self.p == 1:  # a quotient of two normals is Cauchy
                a = a / _core.lsh_normals(self.random_state, E2_DENOMINATORS, count, self.dim)
            self.directions = a.reshape(*shape, self.dim)
        if shifts is not None:
            self.shifts = given_array("shifts", shifts, shape)
        else:
            bits = _core.lsh_bits(self.random_state, E2_SHIFTS, count, 1)
            self.shifts = (self.width * ((bits >> np.uint64(11)) * 2.0**-53)).reshape(shape)

    def values(self, X: Any, *, threads: int | None = None) -> np.ndarray:
        """The cell on each line, (n, tables, hashes) int64; as in `SimHash.hash`."""
        threads = _checks.threads("threads", threads)
        X = rows(X, self.dim, threads)
        flat = self.directions.reshape(-1, self.dim)
        shape = (len(X), self.tables, self.hashes)
        if is_reference():
            cells = (X @ flat.T.astype(X.dtype) + self.shifts.ravel()) / self.width
            return np.floor(cells).astype(np.int64).reshape(shape)
        out = np.empty((len(X), len(flat)), np.int64)
        _core.lsh_e2(X, flat, self.shifts.ravel(), self.width, out, threads)
        return out.reshape(shape)

    def hash(self, X: Any, *, threads: int | None = None) -> np.ndarray:
        """One bucket a table, (n, tables) int64: the cell itself, or with several hashes a mix of them.

        Mixes of different cells are equal by chance with probability 2^-64 a pair.
        """
        cells = self.values(X, threads=threads)
        if self.hashes == 1:
            return cells[:, :, 0]
        mixed = np.zeros(cells.shape[:2], np.uint64)
        for i in range(self.hashes):
            mixed = mix(mixed ^ mix(cells[:, :, i].view(np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
        return mixed.view(np.int64)
