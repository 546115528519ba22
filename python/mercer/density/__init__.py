"""Densities: distributions to fit, score and draw from."""

from __future__ import annotations

from mercer.density._approximate import ApproximateSum, approximate_kernel_sum
from mercer.density._bandwidth import CondensationDiagnostics, condensation_diagnostics, optimal_bandwidth
from mercer.density._concentration import kappa_banerjee, kappa_mle, kappa_sra, kappa_tanabe
from mercer.density._condensation import (
    KdeThresholds,
    condensed_moments,
    gaussian_free_energy,
    kde_thresholds,
    regime,
    stable_index,
)
from mercer.density._kernel_density import KernelDensity
from mercer.density._log_kde import CondensationWarning, KernelDiagnostics, kernel_sum, log_kde
from mercer.density._mixture import VonMisesFisherMixture
from mercer.density._moments import SphereMoments
from mercer.density._plot_regimes import plot_regimes, regime_curves
from mercer.density._von_mises_fisher import VonMisesFisher

__all__ = [
    "ApproximateSum",
    "CondensationDiagnostics",
    "CondensationWarning",
    "KdeThresholds",
    "KernelDensity",
    "KernelDiagnostics",
    "SphereMoments",
    "VonMisesFisher",
    "VonMisesFisherMixture",
    "approximate_kernel_sum",
    "condensation_diagnostics",
    "condensed_moments",
    "gaussian_free_energy",
    "kappa_banerjee",
    "kappa_mle",
    "kappa_sra",
    "kappa_tanabe",
    "kde_thresholds",
    "kernel_sum",
    "log_kde",
    "optimal_bandwidth",
    "plot_regimes",
    "regime",
    "regime_curves",
    "stable_index",
]
