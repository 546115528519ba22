"""What the structures share: a public configuration, whole-number accumulators, a release out of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from mercer.private._noise import Budget, Law, Noise
from mercer.private.release import Release

__all__ = ["Structure", "Terms"]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Terms:
    """The public terms of a release, whatever its mechanism.

    Attributes:
        columns: d.
        low, high: Bounds of each column, or None where none are needed.
        clip: Whether values outside were moved to the bounds (else they were refused).
        replace: Neighbours differ by replacing one unit (else by adding or removing one).
        rows: Rows that one unit of privacy may have.
        users: Whether the unit is a user (else a row).
        public_n: Whether the number of rows is public.
    """

    columns: int
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    clip: bool
    replace: bool
    rows: int = 1
    users: bool = False
    public_n: bool = False

    def changes(self) -> int:
        """Rows that may appear or vanish between neighbours: those taken out and those put in."""
        return self.rows * (2 if self.replace else 1)

    def statement(
        self, mechanism: str, budget: Budget, noise: Noise, *, public: Sequence[str], note: str = ""
    ) -> dict[str, Any]:
        """The privacy statement of a release under these terms."""
        unit = f"user, at most {self.rows} rows each" if self.users else "record"
        known = ["number of columns", *(["bounds"] if self.low else []), *public]
        if self.public_n:
            known.append("number of rows")
        stated: dict[str, Any] = {
            "mechanism": mechanism,
            "guarantee": "(epsilon, delta)-differential privacy, from zero-concentrated differential privacy"
            if budget.gaussian
            else "pure epsilon-differential privacy",
            "neighbouring": f"{'replace' if self.replace else 'add or remove'} one {unit.partition(',')[0]}",
            "unit": unit,
            "epsilon": budget.epsilon,
            "delta": budget.delta,
            "noise": f"discrete {'Gaussian' if budget.gaussian else 'Laplace'}, exact (Canonne, Kamath, Steinke 2020)",
            "noise_source": noise.source,
            "public": known,
            "bounds": [list(self.low), list(self.high)] if self.low and self.high else None,
            "outside_bounds": ("clipped" if self.clip else "refused") if self.low else "nothing is outside",
        }
        if budget.gaussian:
            stated["rho"] = float(budget.amount)
        if note:
            stated["note"] = note
        return stated


class Structure(ABC):
    """One kind of un-noised sums. `terms` and `options` are public and JSON; arrays are secret until released."""

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Structure]]] = {}

    def __init__(self, terms: Terms, options: dict[str, Any]) -> None:
        self.terms = terms
        self.options = options

    def __init_subclass__(cls) -> None:
        Structure.kinds[cls.kind] = cls

    @abstractmethod
    def empty(self) -> Arrays:
        """Accumulators of no rows; "n" counts rows."""

    @abstractmethod
    def add(self, arrays: Arrays, block: np.ndarray, first_row: int, threads: int | None) -> None:
        """Add the rows of a block. A row that is refused raises; the accumulators are then of no use."""

    @abstractmethod
    def release(self, arrays: Arrays, budget: Budget, noise: Noise) -> Release:
        """Add noise, once, to a copy."""

    def to_json(self) -> dict[str, Any]:
        """All that is public."""
        return {"kind": self.kind, "terms": asdict(self.terms), "options": self.options}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Structure:
        """The inverse."""
        terms = dict(value["terms"])
        for name in ("low", "high"):
            terms[name] = None if terms[name] is None else tuple(map(float, terms[name]))
        return cls.kinds[value["kind"]](Terms(**terms), value["options"])

    def same(self, other: Structure) -> bool:
        """Whether sums of the two may be added."""
        return self.to_json() == other.to_json()


def released_count(n: np.ndarray, terms: Terms, law: Law | None, noise: Noise) -> np.ndarray:
    """The number of rows for a release: with noise unless it is public (`law` None).

    Sensitivity: at most `changes` rows come or go. (Replacing a record leaves n as it is, but not the number of rows of
    its class, which is released in the same way.)
    """
    n = n.copy()
    if law is not None:
        noise.add(n, [law])
    return n
