"""Similarity queries to private data: release once under differential privacy, query for ever.

The guide "Private similarity" has the threat model and the proofs.
"""

from __future__ import annotations

from mercer.private._container import CorruptFile
from mercer.private._features import exponential_sum, kernel_sums
from mercer.private._noise import InsecureNoiseWarning
from mercer.private.classifier import PrivateSimilarityClassifier
from mercer.private.distance_sum import PrivateDistanceSum
from mercer.private.kernel_sum import PrivateKernelSum
from mercer.private.ledger import BudgetExceeded, PrivacyLedger, Spending, zcdp_delta, zcdp_epsilon, zcdp_rho
from mercer.private.partial import PrivatePartial
from mercer.private.release import Release, load

__all__ = [
    "BudgetExceeded",
    "CorruptFile",
    "InsecureNoiseWarning",
    "PrivacyLedger",
    "PrivateDistanceSum",
    "PrivateKernelSum",
    "PrivatePartial",
    "PrivateSimilarityClassifier",
    "Release",
    "Spending",
    "exponential_sum",
    "kernel_sums",
    "load",
    "zcdp_delta",
    "zcdp_epsilon",
    "zcdp_rho",
]
