"""What leaves the curator: noisy state, its privacy statement, and the answers that cost nothing more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from mercer import _checks
from mercer._atomic import replacing
from mercer.private import _container
from mercer.private._container import CorruptFile

__all__ = ["Release", "load"]


class Release:
    """A released structure: it answers any number of queries at no further cost to privacy (post-processing).

    Made by `fit` of the estimators, by :meth:`PrivatePartial.release <mercer.private.PrivatePartial.release>` or by
    :func:`load`. It holds what was made public and nothing else: merging two of them would add their noise and their
    cost, so it is not offered; merge partials instead and release once.

    Attributes:
        statement: What a reader has to know: mechanism, neighbouring relation, epsilon, delta, unit of privacy, bounds,
            what was public, where the noise came from. JSON types only.
    """

    kind: ClassVar[str] = ""
    _kinds: ClassVar[dict[str, type[Release]]] = {}

    def __init__(
        self, statement: dict[str, Any], parameters: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> None:
        self.statement = statement
        self._parameters = parameters
        self._arrays = arrays
        self._open()

    @classmethod
    def _made(
        cls, statement: dict[str, Any], parameters: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> Self:
        """A release of what was made here, and so need not be checked."""
        made = cls.__new__(cls)
        made.statement, made._parameters, made._arrays = statement, parameters, arrays
        return made

    def __init_subclass__(cls) -> None:
        if cls.kind:
            Release._kinds[cls.kind] = cls

    def _open(self) -> None:
        """Check parameters and arrays, and make what queries need. Raises ValueError, TypeError or KeyError."""
        raise NotImplementedError

    @property
    def n_features(self) -> int:
        """Columns that a query has."""
        return int(self._parameters["columns"])

    def query(self, Y: Any, *, threads: int | None = None) -> np.ndarray:
        """The estimated sum over the private rows x of f(x, y), for each row y of `Y` (m, d). float64 (m,)."""
        raise NotImplementedError

    def std_error(self, Y: Any) -> np.ndarray:
        """The exact standard deviation of the noise in each answer: a public formula. float64 (m,)."""
        raise NotImplementedError

    @property
    def count(self) -> float:
        """The number of rows: exact where it is public, else the noisy one."""
        raise NotImplementedError

    def mean(self, Y: Any) -> np.ndarray:
        """The estimated mean over the rows: :meth:`query` over :attr:`count`."""
        return self.query(Y) / max(self.count, 1.0)

    def statement_json(self) -> str:
        """The statement as JSON."""
        return json.dumps(self.statement, indent=1, allow_nan=False)

    def to_bytes(self) -> bytes:
        """What :meth:`save` writes."""
        content = {"kind": self.kind, "statement": self.statement, "parameters": self._parameters}
        return _container.pack(_container.RELEASE, content, self._arrays)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file (`head -n 40 FILE` shows the statement); whole or not at all."""
        with replacing(path) as beside:
            beside.write_bytes(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Release:
        """The release that :meth:`to_bytes` gave.

        Raises:
            CorruptFile: not a release, another version, cut short, or changed.
        """
        content, arrays = _container.unpack(_container.RELEASE, bytes(data))
        try:
            found = cls._kinds[content["kind"]]
            if not isinstance(content["statement"], dict) or not isinstance(content["parameters"], dict):
                raise ValueError("statement and parameters must be objects")
            return found(content["statement"], content["parameters"], arrays)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise CorruptFile(f"its content is not that of a release: {error!r}") from None

    def __reduce__(self) -> tuple[Callable[[bytes], Release], tuple[bytes]]:
        return Release.from_bytes, (self.to_bytes(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Release) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        delta = f", delta={self.statement['delta']:g}" if self.statement.get("delta") else ""
        return f"<{type(self).__name__}: {self.statement['mechanism']}; epsilon={self.statement['epsilon']:g}{delta}>"

    def _queries(self, Y: Any) -> np.ndarray:
        return queries(Y, self.n_features)


def queries(Y: Any, columns: int) -> np.ndarray:
    """(m, columns) finite float64 rows; a vector counts as one column."""
    Y = _checks.real_array("Y", Y)
    if Y.ndim == 1 and columns == 1:
        Y = Y[:, None]
    Y = np.ascontiguousarray(_checks.matrix("Y", Y, columns=columns), np.float64)
    if not np.isfinite(Y).all():
        row = int(np.flatnonzero(~np.isfinite(Y).all(1))[0])
        raise ValueError(f"Y must be finite, row {row} contains NaN or infinity")
    return Y


def load(path: str | os.PathLike[str]) -> Release:
    """Read a release.

    Args:
        path: What :meth:`Release.save` wrote.

    Raises:
        CorruptFile: not a release, another version, cut short, or changed. Nothing in the file is executed.

    Cost: reading the file, and O(nodes) to open a tree.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from mercer.private import PrivateKernelSum, load
        >>> X = np.random.default_rng(0).normal(size=(500, 2))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "density.mercer"
        >>> PrivateKernelSum("gaussian", epsilon=2.0, n_features=100).fit(X).save(path)
        >>> release = load(path)
        >>> release.statement["neighbouring"], release.query([[0.0, 0.0]]).shape
        ('add or remove one record', (1,))
    """
    return Release.from_bytes(_container.read(path))
