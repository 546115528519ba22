"""kde-large-dim: log densities of small sets, and the thresholds of Gaussian spectra."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from adapters import Arrays, Case, Check, table, worst
from mercer.density import condensed_moments, gaussian_free_energy, kde_thresholds, log_kde

MULTIPLES = (0.5, 0.8, 1.25, 2.0)  # of h_G, in free_energy's columns
COLUMNS = ("alpha", "h_g", "h_clt", "h_opt", "s_c", "e_star")


@table("50-kde-large-dim", "log_kde")
def log_densities(case: Case, arrays: Arrays) -> Iterator[Check]:
    for prefix in sorted({re.match(r"c\d+_|", name)[0] for name in arrays}):
        part = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        X, Y, h = part.pop("X"), part.pop("Y"), part.pop("h")
        w = part.pop("w", None)
        plain = log_kde(X, Y, np.atleast_1d(h), return_diagnostics=True)
        for name, true in part.items():
            scale = np.maximum(1.0, np.abs(true))
            label = prefix + name
            if name == "log_density":
                yield worst(label, plain.log_density.T, true, 1e-11 * scale, "1e-11 max(1,|t|)")
            elif name == "weighted_log_density":
                got = log_kde(X, Y, np.atleast_1d(h), weights=w)
                yield worst(label, got.T, true, 1e-11 * scale, "1e-11 max(1,|t|)")
            elif name in ("participation", "entropy"):
                yield worst(label, getattr(plain, name).T, true, 1e-9, "1e-9")
            else:
                yield Check(label, np.nan, 0.0, "this array is not known here")


@table("50-kde-large-dim", "thresholds")
def thresholds(case: Case, arrays: Arrays) -> Iterator[Check]:
    moments = {"pd_participation": 2, "pd_third": 3, "pd_entropy": 1}
    for name, true in arrays.items():
        if name == "pd_mu" or name.endswith("_spectrum"):
            continue  # what goes in
        scale = 1e-12 * np.abs(true)
        if name in moments:
            got = condensed_moments(arrays["pd_mu"], moments[name])
            yield worst(name, got, true, scale, "1e-12 |t|")
        elif name.endswith("_table"):
            found = kde_thresholds(true[:, 0], spectrum=arrays[name.replace("_table", "_spectrum")])
            got = np.stack([getattr(found, column) for column in COLUMNS], axis=1)
            yield worst(name, got, true, scale, "1e-12 |t|")
        elif name.endswith("_free_energy"):
            stem = name.removesuffix("_free_energy")
            alpha, spectrum = arrays[f"{stem}_table"][:, 0], arrays[f"{stem}_spectrum"]
            h_g = kde_thresholds(alpha, spectrum=spectrum).h_g
            got = [gaussian_free_energy(multiple * h_g, alpha, spectrum) for multiple in MULTIPLES]
            yield worst(
                name, np.stack(got, axis=1), true, 1e-12 * np.maximum(np.abs(true), 1e-2), "1e-12 |t|"
            )
        else:
            yield Check(name, np.nan, 0.0, "this array is not known here")
