"""Noise laws on the integers, from a budget and a sensitivity; their variances; the draw itself.

Everything between the budget and the sampler is a rational number, rounded to the side of more noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from mercer import _checks, _core
from mercer.private.ledger import zcdp_rho

__all__ = ["Budget", "InsecureNoiseWarning", "Law", "Noise"]


class InsecureNoiseWarning(UserWarning):
    """The noise comes from a seed: whoever has the seed has the data."""


@dataclass(frozen=True, slots=True)
class Law:
    """Discrete Laplace, P(z) ∝ exp(-|z| num / 2^shift), or discrete Gaussian, variance parameter num / 2^shift."""

    gaussian: bool
    num: int
    shift: int

    @classmethod
    @lru_cache(256)
    def laplace(cls, epsilon: Fraction, sensitivity: int) -> Law:
        """epsilon-DP for a vector of whole numbers whose l1 norm changes by at most `sensitivity`.

        Proof: P(z)/P(z') <= exp(rate |z - z'|) coordinate by coordinate, so the ratio of the densities of the noisy
        vectors is at most exp(rate · sensitivity) <= exp(epsilon), for rate <= epsilon / sensitivity.
        """
        rate = epsilon / sensitivity
        shift = max(0, min(62, 53 - _bits(rate)))
        num = math.floor(rate * 2**shift)
        if not 0 < num <= 2**62:
            raise ValueError(
                f"epsilon must give noise of a scale in [2^-62, 2^62] counts, got 1/{float(rate):.3g}"
            )
        return cls(False, num, shift)

    @classmethod
    @lru_cache(256)
    def gauss(cls, rho: Fraction, square: int) -> Law:
        """rho-zCDP for a vector of whole numbers whose squared l2 norm changes by at most `square`.

        Canonne, Kamath and Steinke 2020, theorem 14: discrete Gaussian noise of parameter sigma² on each coordinate is
        (Delta² / 2 sigma²)-zCDP.
        """
        variance = square / (2 * rho)
        t = math.isqrt(math.floor(variance)) + 1
        # 2 num den s² < 2^96 and den s < 2^32 for s the power of two next to sigma: what the sampler is proved for
        shift = max(0, min(20, 46 - 2 * t.bit_length(), 31 - t.bit_length()))
        num = math.ceil(variance * 2**shift)
        if t >= 2**23:
            raise ValueError(f"epsilon must give Gaussian noise of a deviation < 2^23 steps, got {t}")
        return cls(True, num, shift)

    @property
    def variance(self) -> float:
        """Of one draw: 2 q / (1 - q)², q = exp(-rate); of the Gaussian the sum over the integers."""
        ratio = self.num / 2**self.shift
        if not self.gaussian:
            return 2 * math.exp(-ratio) / math.expm1(-ratio) ** 2
        if ratio > 25:  # by Poisson summation the difference is below exp(-2 pi² 25)
            return ratio
        z = np.arange(1, math.ceil(40 * math.sqrt(ratio)) + 40, dtype=np.float64)
        weight = np.exp(-z * z / (2 * ratio))
        return float(2 * np.sum(z * z * weight) / (1 + 2 * np.sum(weight)))

    def to_json(self) -> list[Any]:
        """["laplace" or "gaussian", num, shift]."""
        return ["gaussian" if self.gaussian else "laplace", self.num, self.shift]

    @classmethod
    def from_json(cls, value: Any) -> Law:
        """The inverse, which believes nothing."""
        kind, num, shift = value
        if kind not in ("laplace", "gaussian") or type(num) is not int or type(shift) is not int:
            raise ValueError(f"not a noise law: {value!r}")
        if not (0 < num <= 2**62 and 0 <= shift <= 62):
            raise ValueError(f"noise law out of range: {value!r}")
        return cls(kind == "gaussian", num, shift)


def _bits(rate: Fraction) -> int:
    """The least b with rate < 2^b."""
    return rate.numerator.bit_length() - rate.denominator.bit_length() + 1


@dataclass(frozen=True, slots=True)
class Budget:
    """What one release spends: `amount` is epsilon, or, with Gaussian noise, rho."""

    epsilon: float
    delta: float
    gaussian: bool
    amount: Fraction

    @classmethod
    def of(cls, mechanism: Any, epsilon: Any, delta: Any) -> Budget:
        """Check what the user gave."""
        mechanism = _checks.choice("mechanism", mechanism, ("laplace", "gaussian"))
        epsilon = _epsilon(epsilon)
        if mechanism == "laplace":
            if delta not in (None, 0, 0.0):
                raise ValueError(f"delta must be None with mechanism='laplace', which is pure, got {delta}")
            return cls(epsilon, 0.0, False, Fraction(epsilon))
        if delta is None:
            raise ValueError("delta must be in (0, 1) with mechanism='gaussian', got None")
        rho = zcdp_rho(epsilon, delta)
        if rho <= 0:
            raise ValueError(f"epsilon must be large enough to give some rho > 0, got {epsilon}")
        return cls(epsilon, float(delta), True, Fraction(rho))

    def split(self, shares: Sequence[float]) -> list[Fraction]:
        """Parts in the given proportions whose sum is exactly the amount."""
        exact = [Fraction(share) for share in shares]
        total = sum(exact)
        return [self.amount * share / total for share in exact]

    def law(self, amount: Fraction, l1: int, square: int) -> Law:
        """The noise that `amount` of the budget buys for a vector of these sensitivities."""
        return Law.gauss(amount, square) if self.gaussian else Law.laplace(amount, l1)

    def spending(self) -> dict[str, float]:
        """As :meth:`PrivacyLedger.spend` takes it."""
        return {"rho": float(self.amount)} if self.gaussian else {"epsilon": self.epsilon}


def _epsilon(value: Any) -> float:
    number = _checks.real("epsilon", value, -math.inf)
    if not number > 0:
        raise ValueError(f"epsilon must be > 0, got {number}")
    return number


class Noise:
    """Where the noise comes from: the operating system, or, for tests, a seed that is said aloud."""

    def __init__(self, insecure_seed: Any, n_jobs: Any) -> None:
        self.threads = _checks.threads("n_jobs", n_jobs)
        self.seed: int | None = None
        self._stream = 0
        if insecure_seed is not None:
            self.seed = _checks.integer("insecure_seed", insecure_seed, 0, high=2**64 - 1)
            warnings.warn(
                "insecure_seed makes the noise repeatable: whoever has the seed can take it off. The release is marked",
                InsecureNoiseWarning,
                stacklevel=4,
            )

    @property
    def source(self) -> str:
        """For the statement."""
        return (
            "operating system"
            if self.seed is None
            else "INSECURE SEED (for tests only: this release protects nobody)"
        )

    def add(self, values: np.ndarray, laws: Sequence[Law], lengths: Sequence[int] | None = None) -> None:
        """Add noise in place: law i to the next `lengths[i]` of the flat int64 `values` (one law: to all)."""
        lengths = [values.size] if lengths is None else list(lengths)
        _core.private_noise(
            values, lengths, laws[0].gaussian, [law.num for law in laws], [law.shift for law in laws],
            self.seed, self._stream, self.threads,
        )  # fmt: skip
        self._stream += 1  # the same seed must not give two structures the same noise
