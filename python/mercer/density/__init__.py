"""Densities: distributions to fit, score and draw from."""

from __future__ import annotations

from mercer.density._concentration import kappa_banerjee, kappa_mle, kappa_sra, kappa_tanabe
from mercer.density._log_kde import CondensationWarning, KernelDiagnostics, kernel_sum, log_kde
from mercer.density._mixture import VonMisesFisherMixture
from mercer.density._moments import SphereMoments
from mercer.density._von_mises_fisher import VonMisesFisher

__all__ = [
    "CondensationWarning",
    "KernelDiagnostics",
    "SphereMoments",
    "VonMisesFisher",
    "VonMisesFisherMixture",
    "kappa_banerjee",
    "kappa_mle",
    "kappa_sra",
    "kappa_tanabe",
    "kernel_sum",
    "log_kde",
]
