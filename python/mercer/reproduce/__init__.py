"""One module a paper: what it claims, measured here, beside the baseline it claims to beat.

A reproduce module is named after the slug of its paper (``log-bessel``: ``log_bessel.py``) and has two
functions:

    def run(*, quick: bool, progress: Progress) -> Evidence: ...
    def plot(evidence: Evidence, figure: matplotlib.figure.Figure) -> None: ...

``run`` measures. It fixes its seeds, calls ``progress("what is being done", 0.4)`` as it goes, takes under a
minute with ``quick`` and under ten without, on two cores, and returns one :class:`Row` for each claim, held
or not:

    rows = [
        Row("median error of log I, all regions", "relative", baseline=8.1e-13, ours=1.1e-16, paper=2e-14,
            better="lower", holds=1.1e-16 <= 1.5e-16, must_hold=True),
        Row("speed against SciPy on a GPU", "x", paper=77, better="higher", holds="not-testable-here",
            note="no CUDA device here"),
    ]
    return Evidence("log-bessel", rows, seed=54, figures={"error": {"v": v, "ours": ours, "scipy": theirs}})

``plot`` draws into an empty figure from ``evidence.figures`` alone, so that a figure can be made again from
the JSON.

Four habits. A baseline is run here and now, never quoted. ``paper`` holds the published figure, flattering
or not. ``holds`` says whether *the claim* holds here; where it is "no" or "not-testable-here", ``note`` gives
the reason, and the row refuses to exist without it. ``must_hold`` marks what a contract demands: those rows
decide the exit code.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from mercer import catalog
from mercer._atomic import replacing

__all__ = ["Evidence", "Progress", "Row", "execute", "load", "write"]

Value = float | int | str | None
Holds = Literal["yes", "no", "not-testable-here"]


class Progress(Protocol):
    """What `run` calls to say where it is."""

    def __call__(self, message: str, fraction: float | None = None) -> None:
        """Say what is being done and, where it is known, the fraction done so far in [0, 1]."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One claim: a quantity of the baseline, of ours and of the paper, and whether the claim holds here.

    Parameters
    ----------
    quantity, unit : str
        What was measured, readable on its own; ``unit`` is ``""`` for a plain number.
    baseline, ours, paper : float, int, str or None
        Measured here for the baseline and for mercer; as published. None where there is none.
    better : {"higher", "lower", "equal"}
        Which way is better ("equal": the claim is that two things agree).
    holds : bool or {"yes", "no", "not-testable-here"}
        Whether the claim holds here; a bool is kept as "yes" or "no".
    must_hold : bool
        Whether the exit code depends on it. A row that must hold and cannot be tested does not hold.
    spread : (low, high) or None
        Of ``ours`` over the seeds or repetitions.
    note : str
        The reason, required unless ``holds`` is "yes".

    Examples
    --------
    >>> Row("kappa at d = 2048", "", baseline=1e-8, ours=2102.0, better="equal", holds=True).holds
    'yes'
    >>> Row("speed on GPU", "x", better="higher", holds="no")
    Traceback (most recent call last):
        ...
    ValueError: note must say why 'speed on GPU' is 'no', got ''
    """

    quantity: str
    unit: str
    _: dataclasses.KW_ONLY
    baseline: Value = None
    ours: Value = None
    paper: Value = None
    better: Literal["higher", "lower", "equal"]
    holds: bool | Holds
    must_hold: bool = False
    spread: tuple[float, float] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.holds, str):
            object.__setattr__(self, "holds", "yes" if self.holds else "no")
        if self.holds not in ("yes", "no", "not-testable-here"):
            raise ValueError(f"holds must be a bool, 'yes', 'no' or 'not-testable-here', got {self.holds!r}")
        if self.better not in ("higher", "lower", "equal"):
            raise ValueError(f"better must be 'higher', 'lower' or 'equal', got {self.better!r}")
        if self.holds != "yes" and not self.note:
            raise ValueError(f"note must say why {self.quantity!r} is {self.holds!r}, got ''")


@dataclasses.dataclass(slots=True)
class Evidence:
    """What one reproduction found.

    Parameters
    ----------
    slug : str
        Of the paper, as in `mercer list`.
    rows : sequence of Row
    seed : int or tuple of int
        All the randomness there was.
    figures : mapping
        The numbers the figure is drawn from: plain values, lists, mappings and numpy arrays.
    versions, seconds
        Filled in by :func:`execute`.

    Examples
    --------
    >>> rows = [Row("area", "m2", baseline=3.0, ours=3.1, better="higher", holds=True, must_hold=True)]
    >>> Evidence("log-bessel", rows, seed=0).passed
    True
    """

    slug: str
    rows: Sequence[Row]
    seed: int | tuple[int, ...]
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = math.nan
    quick: bool = False

    @property
    def passed(self) -> bool:
        """Whether every row that must hold does."""
        return all(row.holds == "yes" for row in self.rows if row.must_hold)

    def to_json(self) -> str:
        """Strict JSON: numpy scalars and arrays as numbers and lists, NaN and infinities as strings."""
        content = {
            "slug": self.slug,
            "passed": self.passed,
            "quick": self.quick,
            "seed": self.seed,
            "seconds": self.seconds,
            "versions": self.versions,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "figures": self.figures,
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Evidence:
        """The evidence that `to_json` wrote (arrays come back as lists)."""
        content = json.loads(text, parse_constant=_refuse_constant)
        rows = [
            Row(**{**row, "spread": row["spread"] and tuple(map(float, row["spread"]))})
            for row in content["rows"]
        ]
        seed = content["seed"]
        return cls(
            content["slug"],
            rows,
            seed if isinstance(seed, int) else tuple(seed),
            content["figures"],
            content["versions"],
            float(content["seconds"]),
            content["quick"],
        )


def load(slug: str) -> Any:
    """The reproduce module of a paper.

    Raises ``LookupError`` for a slug that is not in the catalogue or whose reproduction has not landed.
    """
    system = catalog.find(slug)
    try:
        return importlib.import_module(system.reproduce)
    except ModuleNotFoundError as error:
        if error.name != system.reproduce:
            raise
        raise LookupError(
            f"{system.slug} is planned: there is nothing to reproduce yet (see `mercer list`)"
        ) from None


def execute(slug: str, *, quick: bool = False, progress: Progress | None = None) -> Evidence:
    """Run the reproduction of a paper and return what it found, with the versions and the time it took."""
    from mercer import _versions

    module = load(slug)
    start = time.perf_counter()
    evidence = module.run(quick=quick, progress=progress or _silent)
    evidence.seconds = time.perf_counter() - start
    evidence.quick = quick
    evidence.versions = _versions.versions()
    return evidence


def write(evidence: Evidence, out: str | Path) -> tuple[Path, Path | None]:
    """Write ``out/SLUG.json`` and, where matplotlib is installed, ``out/SLUG.png``; whole or not at all."""
    out = Path(out)
    table, picture = out / f"{evidence.slug}.json", out / f"{evidence.slug}.png"
    with replacing(table) as beside:
        beside.write_text(evidence.to_json(), encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print(f"no {picture}: pip install 'mercer-kernels[plot]' for the figure", file=sys.stderr)
        return table, None
    figure = Figure(figsize=(10, 5), layout="constrained")
    load(evidence.slug).plot(evidence, figure)
    with replacing(picture) as beside:
        figure.savefig(beside, dpi=150)
    return table, picture


def run_and_report(slug: str, *, out: str | Path | None = None, quick: bool = False) -> int:
    """What `mercer reproduce` does: progress, table, files. Returns the exit code."""
    try:
        load(slug)
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    try:
        evidence = execute(slug, quick=quick, progress=_narrate)
    except ImportError as error:  # An optional package: its message says which.
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130
    show(evidence)
    if out is not None:
        for path in filter(None, write(evidence, out)):
            print(f"wrote {path}")
    return 0 if evidence.passed else 1


_COLUMNS = ("quantity", "unit", "baseline", "ours", "spread", "paper", "better", "holds")


def show(evidence: Evidence) -> None:
    """Print the table (by rich where it is installed), then every "no" and "not-testable-here" and why."""
    cells = [_cells(row) for row in evidence.rows]
    title = f"{catalog.find(evidence.slug).title} ({evidence.seconds:.1f} s, seed {evidence.seed})"
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
        print(title)
        for line in (_COLUMNS, ["-" * width for width in widths], *cells):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)  # A pipe has no width; 80 columns would break the numbers.
        table = Table(*_COLUMNS, title=title, title_justify="left")
        colours = {"yes": None, "no": "red", "not-testable-here": "yellow"}
        for row, line in zip(evidence.rows, cells, strict=True):
            table.add_row(*line, style=colours[str(row.holds)])
        console.print(table)
    for row in evidence.rows:
        if row.holds != "yes":
            print(f"{row.holds}{' (must hold)' if row.must_hold else ''}: {row.quantity}: {row.note}")
    must = [row for row in evidence.rows if row.must_hold]
    held = sum(row.holds == "yes" for row in must)
    print(
        f"{sum(row.holds == 'yes' for row in evidence.rows)} of {len(evidence.rows)} claims hold here; "
        f"{held} of the {len(must)} that must."
    )


def _cells(row: Row) -> list[str]:
    spread = "" if row.spread is None else f"{_number(row.spread[0])} .. {_number(row.spread[1])}"
    return [
        row.quantity,
        row.unit,
        _number(row.baseline),
        _number(row.ours),
        spread,
        _number(row.paper),
        row.better,
        f"{row.holds}{' *' if row.must_hold else ''}",
    ]


def _number(value: Value) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """`value` in the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy for their sake
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _silent(message: str, fraction: float | None = None) -> None:
    pass


def _narrate(message: str, fraction: float | None = None) -> None:
    share = "" if fraction is None else f"{100 * fraction:3.0f} %  "
    print(f"[{time.perf_counter() - _START:6.1f} s]  {share}{message}", file=sys.stderr, flush=True)


_START = time.perf_counter()
