"""Sums before the noise: they are as secret as the data, they merge and travel, and they answer nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import numpy as np

from mercer.private import _container, _features, _moments, _trees  # noqa: F401  (structures register themselves)
from mercer.private._container import CorruptFile
from mercer.private._noise import Budget, Noise
from mercer.private._sources import dask_blocks, is_dask, rows_of
from mercer.private._structure import Structure
from mercer.private.ledger import BudgetExceeded, PrivacyLedger
from mercer.private.release import Release

__all__ = ["PrivatePartial"]


class PrivatePartial:
    """Un-noised sums over part of the private rows: SECRET.

    Made by `partial(X)` of the estimators, once per chunk, file or machine. Partials of the same configuration merge in
    any order to exactly the sums over all rows (everything is whole numbers); :meth:`release` adds the noise, once.

    `to_bytes` is for carrying it between machines that may see the data. The first line of the bytes says SECRET, and
    no reader of releases accepts them.

    Example:
        >>> import numpy as np
        >>> from mercer.private import PrivateDistanceSum
        >>> X = np.random.default_rng(0).uniform(size=(1000, 1))
        >>> sums = PrivateDistanceSum("l1", epsilon=1.0, bounds=(0, 1))
        >>> whole = sums.partial(X[:300]).merge(sums.partial(X[300:]))
        >>> whole == sums.partial(X)
        True
        >>> release = whole.release(epsilon=1.0)
        >>> release.statement["epsilon"]
        1.0
    """

    def __init__(self, structure: Structure, arrays: dict[str, np.ndarray], users: dict[bytes, int]) -> None:
        self._structure = structure
        self._arrays = arrays
        self._users = users
        self._released = False

    @classmethod
    def of(
        cls, structure: Structure, X: Any, users: Any, threads: int | None, first_row: int = 0
    ) -> PrivatePartial:
        """Sums over the rows of `X`; see the estimators' `partial`."""
        if is_dask(X):
            return cls._of_dask(structure, X, users, threads)
        rows = rows_of(X)
        if rows.columns != structure.terms.columns:
            raise ValueError(f"X must have {structure.terms.columns} columns, got {rows.columns}")
        arrays = structure.empty()
        counts: dict[bytes, int] = {}
        keys = _user_keys(users, structure.terms.users)
        for first, block in rows.blocks():
            if keys is not None:
                block = _bounded(block, keys[first : first + len(block)], counts, structure.terms.rows)
            structure.add(arrays, np.ascontiguousarray(block), first_row + first, threads)
        if keys is not None and len(keys) != rows.length:
            raise ValueError(f"users must have one id a row, got {len(keys)} for {rows.length} rows")
        return cls(structure, arrays, counts)

    @classmethod
    def _of_dask(cls, structure: Structure, X: Any, users: Any, threads: int | None) -> PrivatePartial:
        if users is not None:
            raise TypeError(
                "users must be None for a Dask collection; make a partial of each block with its users"
            )
        import dask

        def block(rows: Any) -> PrivatePartial:
            return cls.of(structure, np.asarray(rows), None, threads)

        level = [dask.delayed(block, pure=False)(rows) for rows in dask_blocks(X)]
        join = dask.delayed(lambda a, b: a.merge(b), pure=False)
        while len(level) > 1:
            pairs = [join(*level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
            level = pairs + level[len(pairs) * 2 :]
        return dask.compute(level[0])[0]

    def merge(self, other: PrivatePartial) -> PrivatePartial:
        """The sums over the rows of both, as a new partial.

        Raises:
            TypeError: `other` is not a partial (a release has noise already and cannot be merged).
            ValueError: the configurations differ, or a user has more than `max_rows_per_user` rows in both together:
                rows cannot be taken out of sums, so give one user's rows to one partial.
        """
        if not isinstance(other, PrivatePartial):
            raise TypeError(
                f"other must be a PrivatePartial, got {type(other).__name__}: noise is added once, after the merge"
            )
        if not self._structure.same(other._structure):
            raise ValueError(
                "other must be a partial of the same estimator (parameters, bounds, public randomness)"
            )
        if self._released or other._released:
            raise BudgetExceeded(
                "a partial that has been released cannot be merged: its rows have spent their budget"
            )
        users = dict(self._users)
        for key, count in other._users.items():
            users[key] = users.get(key, 0) + count
        if users and max(users.values()) > self._structure.terms.rows:
            raise ValueError(
                f"a user has more than max_rows_per_user = {self._structure.terms.rows} rows in the two partials "
                "together; give all rows of one user to one partial"
            )
        arrays = {name: array + other._arrays[name] for name, array in self._arrays.items()}
        return PrivatePartial(self._structure, arrays, users)

    def release(
        self,
        epsilon: float,
        *,
        mechanism: str = "laplace",
        delta: float | None = None,
        ledger: PrivacyLedger | None = None,
        insecure_seed: int | None = None,
        n_jobs: int | None = None,
    ) -> Release:
        """Add noise and make the release. Spends the budget; a second release needs a ledger that has some left.

        Args:
            epsilon: > 0.
            mechanism: "laplace" (pure epsilon) or "gaussian" (needs `delta`).
            delta: In (0, 1), for "gaussian".
            ledger: Where to enter the spending.
            insecure_seed: For tests only: see the estimators.
            n_jobs: Threads for the noise.

        Raises:
            BudgetExceeded: released before without a ledger, or the ledger refuses. Nothing is released then.
        """
        budget = Budget.of(mechanism, epsilon, delta)
        if ledger is None and self._released:
            raise BudgetExceeded(
                "this partial has been released: another release spends more, so it needs a ledger"
            )
        spend(ledger, budget, f"{self._structure.kind} release")
        self._released = True
        return self._structure.release(self._arrays, budget, Noise(insecure_seed, n_jobs))

    def to_bytes(self) -> bytes:
        """Everything, un-noised: SECRET. To be read by :meth:`from_bytes` alone."""
        arrays = dict(self._arrays)
        arrays["user_counts"] = np.array(list(self._users.values()), np.int64)
        content = {
            "SECRET": "un-noised sums of private data: do not publish; this is not a release",
            "structure": self._structure.to_json(),
            "users": [key.hex() for key in self._users],
            "released": self._released,
        }
        return _container.pack(_container.PARTIAL, content, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The partial that :meth:`to_bytes` gave.

        Raises:
            CorruptFile: not a partial, another version, cut short, or changed.
        """
        content, arrays = _container.unpack(_container.PARTIAL, bytes(data))
        try:
            structure = Structure.from_json(content["structure"])
            counts = arrays.pop("user_counts").tolist()
            users = {bytes.fromhex(k): int(c) for k, c in zip(content["users"], counts, strict=True)}
            expected = structure.empty()
            if {k: a.shape for k, a in arrays.items()} != {k: a.shape for k, a in expected.items()}:
                raise ValueError("arrays do not fit the structure")
            if users and max(users.values()) > structure.terms.rows:
                raise ValueError("a user has more rows than allowed")
            made = cls(structure, arrays, users)
            made._released = bool(content["released"])
            return made
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            raise CorruptFile(f"its content is not that of a partial: {error!r}") from None

    def query(self, Y: Any) -> NoReturn:
        """Refused: there is no noise yet."""
        raise TypeError(
            "a PrivatePartial answers nothing: its sums have no noise. Call release(epsilon) first"
        )

    std_error = mean = density = save = query

    def __reduce__(self) -> tuple[Callable[[bytes], PrivatePartial], tuple[bytes]]:
        return PrivatePartial.from_bytes, (self.to_bytes(),)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PrivatePartial)
            and self._structure.same(other._structure)
            and self._users == other._users
            and all(np.array_equal(a, other._arrays[name]) for name, a in self._arrays.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<PrivatePartial ({self._structure.kind}): SECRET, no noise yet>"


def spend(
    ledger: PrivacyLedger | None, budget: Budget, what: object, part: tuple[str, str] | None = None
) -> None:
    """Enter a release in a ledger, if there is one; before any noise is drawn."""
    if ledger is None:
        return
    if not isinstance(ledger, PrivacyLedger):
        raise TypeError(f"ledger must be a PrivacyLedger, got {ledger!r}")
    ledger.spend(what if isinstance(what, str) else repr(what), part=part, **budget.spending())


def _user_keys(users: Any, expected: bool) -> list[bytes] | None:
    """A hash of each row's user: what travels in a partial is as secret as the rest, but not the ids themselves."""
    if not expected:
        if users is not None:
            raise ValueError("users must be None unless max_rows_per_user is given")
        return None
    if users is None:
        raise ValueError("users must be given with max_rows_per_user: one id a row")
    ids: Sequence[Any] = np.asarray(users).tolist()
    return [hashlib.blake2b(repr(user).encode(), digest_size=16).digest() for user in ids]


def _bounded(block: np.ndarray, keys: list[bytes], counts: dict[bytes, int], most: int) -> np.ndarray:
    """The rows of the block that are among the first `most` of their user."""
    if len(keys) != len(block):
        raise ValueError(f"users must have one id a row, got {len(keys)} for a block of {len(block)} rows")
    kept = np.zeros(len(block), bool)
    for i, key in enumerate(keys):
        seen = counts.get(key, 0)
        if seen < most:
            counts[key] = seen + 1
            kept[i] = True
    return block[kept]
