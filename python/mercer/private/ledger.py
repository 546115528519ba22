"""What has been spent, and what (epsilon, delta) it amounts to.

Sequential composition adds (Dwork, McSherry, Nissim, Smith 2006): epsilons for pure differential privacy, rhos for
zero-concentrated (Bun and Steinke 2016). Data cut into disjoint parts by a public rule spend the largest of what the
parts spend (parallel composition). A rho turns into (epsilon, delta) by Canonne, Kamath and Steinke 2020,
proposition 12: delta = exp((a - 1)(a rho - epsilon)) (1 - 1/a)^a / (a - 1) for any a > 1, so that
epsilon = a rho + (log(1/delta) + (a - 1) log(a - 1) - a log a) / (a - 1). Any a is sound; the best is searched for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NoReturn

from mercer import _checks

__all__ = ["BudgetExceeded", "PrivacyLedger", "Spending", "zcdp_delta", "zcdp_epsilon", "zcdp_rho"]


class BudgetExceeded(ValueError):
    """A release would spend more than the budget has left; nothing was released."""


def zcdp_delta(rho: float, epsilon: float) -> float:
    """The delta at which a rho-zCDP mechanism is (epsilon, delta)-DP, rounded up.

    >>> f"{zcdp_delta(0.1, 2.0):.1e}"
    '4.3e-06'
    """
    rho = _checks.real("rho", rho, 0.0)
    epsilon = _checks.real("epsilon", epsilon, 0.0)
    if rho == 0:
        return 0.0
    return min(math.exp(min(_least(lambda a: (a - 1) * (a * rho - epsilon) + _entropy(a)), 0.0)), 1.0)


def zcdp_epsilon(rho: float, delta: float) -> float:
    """The epsilon at which a rho-zCDP mechanism is (epsilon, delta)-DP, rounded up.

    Never above rho + 2 sqrt(rho log(1/delta)).

    >>> round(zcdp_epsilon(0.1, 1e-5), 2)
    1.91
    """
    rho = _checks.real("rho", rho, 0.0)
    log = -math.log(_delta(delta))
    if rho == 0:
        return 0.0
    return max(_least(lambda a: a * rho + (log + _entropy(a)) / (a - 1)), 0.0) * (1 + SLACK)


def zcdp_rho(epsilon: float, delta: float) -> float:
    """The largest rho whose :func:`zcdp_epsilon` at `delta` is at most `epsilon`, rounded down.

    >>> rho = zcdp_rho(2.0, 1e-5)
    >>> bool(zcdp_epsilon(rho, 1e-5) <= 2.0 < zcdp_epsilon(1.001 * rho, 1e-5))
    True
    """
    return _rho(_checks.real("epsilon", epsilon, 0.0, strict=True), _delta(delta))


@lru_cache(256)
def _rho(epsilon: float, delta: float) -> float:
    log = -math.log(delta)
    return max(-_least(lambda a: ((log + _entropy(a)) / (a - 1) - epsilon) / a), 0.0) * (1 - 2 * SLACK)


SLACK = 2.0**-40  # what the evaluation of a bound may be off by


def _entropy(a: float) -> float:
    """log of (1 - 1/a)^a / (a - 1)."""
    return (a - 1) * math.log(a - 1) - a * math.log(a)


def _least(f: Callable[[float], float]) -> float:
    """The least value found of a function of a > 1 with one valley: golden sections of log(a - 1)."""
    low, high = -20.0, 45.0
    ratio = (math.sqrt(5) - 1) / 2
    x = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [f(1 + math.exp(v)) for v in x]
    for _ in range(50):  # the interval becomes 2e-9, and the bound holds at any a: near the valley it is flat
        if values[0] < values[1]:
            high, x[1], values[1] = x[1], x[0], values[0]
            x[0] = high - ratio * (high - low)
            values[0] = f(1 + math.exp(x[0]))
        else:
            low, x[0], values[0] = x[0], x[1], values[1]
            x[1] = low + ratio * (high - low)
            values[1] = f(1 + math.exp(x[1]))
    return min(values)


def _delta(delta: Any) -> float:
    delta = _checks.real("delta", delta, 0.0, strict=True)
    if delta >= 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    return delta


@dataclass(frozen=True, slots=True)
class Spending:
    """One entry of a ledger: pure `epsilon` or `rho` (the other is 0), of which data, and what for."""

    what: str
    epsilon: float = 0.0
    rho: float = 0.0
    part: tuple[str, str] | None = None


class PrivacyLedger:
    """A budget that several releases of the same people's data share. It refuses to be overspent.

    Args:
        epsilon: What may be spent in all, > 0.
        delta: In [0, 1); > 0 lets releases with Gaussian noise in.

    Attributes:
        log: The spendings so far, a tuple of :class:`Spending`.

    A ledger is one object however it is passed around: `copy.deepcopy` (and so scikit-learn's `clone`) gives the ledger
    itself, and it cannot be pickled, for a copy would be a second budget. Spending is atomic among threads.

    Example:
        >>> from mercer.private import PrivacyLedger
        >>> ledger = PrivacyLedger(epsilon=1.0)
        >>> ledger.spend("counts", epsilon=0.4)
        >>> ledger.epsilon_spent, ledger.epsilon_left
        (0.4, 0.6)
        >>> ledger.spend("densities", epsilon=0.7)
        Traceback (most recent call last):
            ...
        mercer.private.ledger.BudgetExceeded: 'densities' needs epsilon = 0.7, the ledger has 0.6 of 1.0 left
    """

    def __init__(self, epsilon: float, delta: float = 0.0) -> None:
        self.epsilon = _checks.real("epsilon", epsilon, 0.0, strict=True)
        self.delta = 0.0 if delta == 0 else _delta(delta)
        self._log: list[Spending] = []
        self._lock = threading.Lock()

    @property
    def log(self) -> tuple[Spending, ...]:
        """What was spent, in order."""
        return tuple(self._log)

    def spend(
        self, what: str, *, epsilon: float = 0.0, rho: float = 0.0, part: tuple[str, str] | None = None
    ) -> None:
        """Enter a spending, or raise :class:`BudgetExceeded` and enter nothing.

        Args:
            what: For the reader of the log.
            epsilon: Of a purely differentially private release, > 0; or
            rho: of a zero-concentrated one. Exactly one of the two.
            part: (name of a partition, name of the part): the data of this release are those of one part of a partition
                made by a public rule. Of the parts of a partition only the most expensive counts.
        """
        if (epsilon == 0) == (rho == 0):
            raise ValueError(f"exactly one of epsilon and rho must be > 0, got {epsilon} and {rho}")
        _checks.real("epsilon", epsilon, 0.0)
        _checks.real("rho", rho, 0.0)
        if part is not None and not (isinstance(part, tuple) and len(part) == 2):
            raise ValueError(f"part must be a pair (partition, part), got {part!r}")
        entry = Spending(str(what), float(epsilon), float(rho), part)
        with self._lock:
            if rho and self.delta == 0:
                raise BudgetExceeded(
                    f"{what!r} has Gaussian noise, which needs delta > 0; the ledger has delta = 0"
                )
            after = self._spent([*self._log, entry])
            # Sums of the doubles as they are, exactly: ten times 0.1 is a little more than 1, and is allowed.
            if after > self.epsilon * (1 + 1e-12):
                need = f"epsilon = {epsilon:.6g}" if epsilon else f"rho = {rho:.6g}"
                left = max(self.epsilon - self._spent(self._log), 0.0)
                raise BudgetExceeded(
                    f"{what!r} needs {need}, the ledger has {left:.6g} of {self.epsilon} left"
                )
            self._log.append(entry)

    @property
    def epsilon_spent(self) -> float:
        """Of all spendings together, at this ledger's delta."""
        return self._spent(self._log)

    @property
    def epsilon_left(self) -> float:
        """What is left, by the same account."""
        return max(self.epsilon - self.epsilon_spent, 0.0)

    def _spent(self, log: list[Spending]) -> float:
        pure, concentrated = Fraction(0), Fraction(0)
        parts: dict[str, dict[str, list[Fraction]]] = {}
        for entry in log:
            cost = [Fraction(entry.epsilon), Fraction(entry.rho)]
            if entry.part is None:
                pure, concentrated = pure + cost[0], concentrated + cost[1]
            else:
                partition, part = entry.part
                sums = parts.setdefault(partition, {}).setdefault(part, [Fraction(0), Fraction(0)])
                sums[0] += cost[0]
                sums[1] += cost[1]
        for partition_sums in parts.values():
            pure += max(sums[0] for sums in partition_sums.values())
            concentrated += max(sums[1] for sums in partition_sums.values())
        return float(pure) + (zcdp_epsilon(float(concentrated), self.delta) if concentrated else 0.0)

    def __copy__(self) -> PrivacyLedger:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PrivacyLedger:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a PrivacyLedger cannot be pickled: the copy would be a second budget for the same data"
        )

    def __repr__(self) -> str:
        delta = f", delta={self.delta:g}" if self.delta else ""
        return f"PrivacyLedger(epsilon={self.epsilon:g}{delta}) with {self.epsilon_spent:.6g} spent"
