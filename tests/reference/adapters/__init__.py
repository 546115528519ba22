"""How each reference case is run: one file a paper, named after its slug (`54-log-bessel`: `log_bessel.py`).

Two forms, each registered for a paper and one or more patterns of entries (`"inceptionnext_*"` is one adapter
for a family):

    @table("54-log-bessel", "bessel_table")
    def bessel_table(case, arrays):
        yield Check("log_iv", error, tolerance)

    @model("38-inceptionnext", "inceptionnext_*")
    def inceptionnext(case, state, inputs):
        ...
        return {"logits": logits}, number_of_parameters

A table adapter calls the library on `arrays` and yields a `Check` an output. A model adapter gets the filled
weights and the plain inputs (what the json says of them beyond shape and seed is the adapter's to do) and
returns the outputs and, where the case counts them, the number of parameters (else None); `golden.compare`
does the rest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

import golden

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]
Runner = Callable[[Path], Iterator["Check"]]

_REGISTERED: list[tuple[str, str, Runner]] = []


@dataclass(frozen=True, slots=True)
class Check:
    """The error of one output beside its tolerance; `note` gives the unit of the error, or adds a fact."""

    output: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.output} {self.error:.2g} {'<=' if self.ok else 'NOT <='} {self.tolerance:.2g}{note}"


def worst(output: str, got: Any, true: np.ndarray, bar: np.ndarray | float, note: str) -> Check:
    """The largest |got - true| / bar. Equal infinities agree; NaN and an array of another shape do not."""
    got = np.asarray(got, dtype=np.float64)
    if got.shape != true.shape:
        return Check(output, np.nan, 1.0, f"shape {got.shape}, the reference {true.shape}")
    with np.errstate(invalid="ignore"):
        error = np.where(got == true, 0.0, np.abs(got - true) / bar)
    return Check(output, float(np.max(error, initial=0.0)), 1.0, f"of {note}")


def table(paper: str, *entries: str) -> Callable:
    """Register a function from (case, arrays) to checks."""

    def register(function: Callable[[Case, Arrays], Iterable[Check]]) -> Callable:
        def run(path: Path) -> Iterator[Check]:
            case, arrays = golden.load(path)
            yield from function(case, arrays)

        _REGISTERED.extend((paper, entry, run) for entry in entries)
        return function

    return register


def model(paper: str, *entries: str) -> Callable:
    """Register a function from (case, state, inputs) to (outputs, number of parameters or None)."""

    def register(
        function: Callable[[Case, Arrays, Arrays], tuple[Mapping[str, Any], int | None]],
    ) -> Callable:
        def run(path: Path) -> Iterator[Check]:
            case, _ = golden.load(path)
            inputs = {
                name: golden.make_input(spec["shape"], spec.get("seed", 0))
                for name, spec in case["inputs"].items()
                if "shape" in spec
            }
            outputs, parameters = function(case, golden.state(case), inputs)
            for name, error in golden.compare(path, outputs).items():
                yield Check(name, error, case["tolerance"])
            if parameters is not None:
                yield Check("parameters", abs(parameters - case["params"]), 0)

        _REGISTERED.extend((paper, entry, run) for entry in entries)
        return function

    return register


def find(paper: str, entry: str) -> Runner | None:
    """What runs the cases of (paper, entry), or None."""
    slug = paper.partition("-")[2].replace("-", "_")
    try:
        importlib.import_module(f"{__name__}.{slug}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{slug}":
            raise
    fits = (run for of, pattern, run in _REGISTERED if of == paper and fnmatchcase(entry, pattern))
    return next(fits, None)
