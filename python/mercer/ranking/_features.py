"""Columns made of columns: numeric transformers, exploded multi-value columns, sub-features, noise controls.

Transformers are named functions (the public tool evaluates strings). They see the different values of a batch,
not its rows, and give new columns through the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mercer import _core

__all__ = ["TRANSFORMERS", "Frame", "add_controls", "explode", "subfeature", "transform", "transformers"]

Transformer = Callable[[np.ndarray], np.ndarray]
# A transformed column is kept with more than one value, none on so many of the rows, NaN on fewer than so many.
MAJORITY, NAN = 0.80, 0.75
MAX_EXPLODED = 10_000


@dataclass
class Frame:
    """A batch with the names of its columns and what each is: column, transform, interaction, ..."""

    batch: Any
    names: list[str]
    kinds: list[str]

    def add(self, batch: Any, names: Sequence[str], kind: str) -> None:
        """Append columns."""
        if names:
            self.batch = self.batch.extended([batch])
            self.names = [*self.names, *names]
            self.kinds = [*self.kinds, *[kind] * len(names)]

    def index(self, name: str, argument: str) -> int:
        """The place of a column; ValueError names the argument that asked for it."""
        try:
            return self.names.index(name)
        except ValueError:
            raise ValueError(f"{argument} must name columns of the source, got {name!r}") from None


# Transformers


def _signed_log(x: np.ndarray) -> np.ndarray:
    return np.divide(x, np.abs(x)) * np.log(np.abs(x))


def _beyond(threshold: float, resolution: int, inner: Transformer) -> Transformer:
    """x below the threshold, 0 on it, round(inner(x - threshold) · resolution) above."""

    def transformed(x: np.ndarray) -> np.ndarray:
        above = np.round(inner(x - threshold) * resolution)
        return np.where(x < threshold, x, np.where(x > threshold, above, 0.0))

    return transformed


_MINIMAL: dict[str, Transformer] = {
    "_tr_sqrt": np.sqrt,
    "_tr_log(x+1)": lambda x: np.log(x + 1),
    "_tr_sqrt(abs(x))": lambda x: np.sqrt(np.abs(x)),
    "_tr_log(abs(x)+1)": lambda x: np.log(np.abs(x) + 1),
}
_DEFAULT: dict[str, Transformer] = {
    **_MINIMAL,
    "_tr_div(x,abs(x))*log(abs(x))": _signed_log,
    "_tr_log(x + sqrt(pow(x,2), 1)": lambda x: np.log(x + np.sqrt(x * x + 1)),
    "_tr_log*sqrt": lambda x: np.log(x + 1) * np.sqrt(x),
    "_tr_log*100": lambda x: np.round(np.log(x + 1) * 100),
    "_tr_nonzero": lambda x: np.where(x != 0, 1.0, 0.0),
    "_tr_round(div(x,max))": lambda x: np.round(x / np.max(x)),
}
_FW: dict[str, Transformer] = dict(_DEFAULT)
for _resolution in (1, 10, 50, 100):
    for _prefix, _scale in (("fw", 1), ("fw_prob", 100)):
        for _threshold in (1, 2, 4, 8, 16, 32, 64, 96):
            _at = _threshold / _scale if _scale > 1 else _threshold
            for _name, _inner in (("sqrt", np.sqrt), ("log", np.log)):
                _FW[f"_tr_{_prefix}_{_name}_res_{_resolution}_gt_{_at}"] = _beyond(_at, _resolution, _inner)

# The presets of the public tool, by its names for them and for each transformer.
TRANSFORMERS: dict[str, dict[str, Transformer]] = {
    "minimal": _MINIMAL,
    "default": _DEFAULT,
    "fw-transformers": _FW,
}


def transformers(chosen: Any) -> dict[str, Transformer]:
    """The functions that `chosen` means: None, a preset or several with commas, or a mapping of one's own."""
    if chosen is None or chosen == "none":
        return {}
    if isinstance(chosen, Mapping):
        for name, function in chosen.items():
            if not isinstance(name, str) or not callable(function):
                raise TypeError(f"transformers must map names to functions, got {name!r}: {function!r}")
        return {name if "_tr_" in name else f"_tr_{name}": function for name, function in chosen.items()}
    found: dict[str, Transformer] = {}
    for name in chosen.split(",") if isinstance(chosen, str) else chosen:
        if name not in TRANSFORMERS:
            allowed = ", ".join(map(repr, TRANSFORMERS))
            raise ValueError(f"transformers must be a mapping or among {allowed}, got {name!r}")
        found.update(TRANSFORMERS[name])
    return found


def numbers(values: Sequence[bytes]) -> np.ndarray:
    """Values as float64: the empty one 0, what is no number NaN."""

    def number(value: bytes) -> float:
        text = value.replace(b'"', b"")
        try:
            return float(text) if text else 0.0
        except ValueError:
            return np.nan

    return np.array([number(value) for value in values], dtype=np.float64)


def transform(
    frame: Frame,
    columns: Sequence[str],
    functions: Mapping[str, Transformer],
    as_text: bool,
    threads: int | None,
) -> None:
    """Add the transformed columns that are worth keeping; `as_text`, with their numbers written out as values."""
    for column in columns:
        i = frame.names.index(column)
        x = numbers(frame.batch.values(i))
        with np.errstate(all="ignore"):
            table = np.array([np.asarray(function(x), dtype=np.float64) for function in functions.values()])
        if table.shape != (len(functions), len(x)):
            raise ValueError(f"transformers must return an array of their argument's shape, {x.shape}")
        made, kept = frame.batch.transformed(i, table, MAJORITY, NAN, threads)
        if as_text and kept:
            texts = ([str(number).encode() for number in table[t]] for t in kept)
            first, *rest = (frame.batch.relabelled(i, text) for text in texts)
            made = first.extended(rest)
        names = list(functions)
        frame.add(made, [column + names[t] for t in kept], "transform")


# Multi-value columns and sub-features


def explode(frame: Frame, column: str, missing: Sequence[bytes]) -> None:
    """A 0/1 column ("1" or nothing) for each of the parts, split by "-" or ",", that values of a column have."""
    i = frame.index(column, "multivalue")
    parts = [set(value.replace(b",", b"-").split(b"-")) for value in frame.batch.values(i)]
    wanted = sorted(set().union(*parts) - set(missing))
    if len(wanted) > MAX_EXPLODED:
        raise ValueError(
            f"multivalue column {column!r} has {len(wanted)} parts in a batch, more than {MAX_EXPLODED}"
        )
    made = [frame.batch.relabelled(i, [b"1" if part in held else b"" for held in parts]) for part in wanted]
    if made:
        names = [f"MULTIEX-{column}-{text(part)}" for part in wanted]
        frame.add(made[0].extended(made[1:]), names, "multivalue")


def subfeature(frame: Frame, mapping: str) -> None:
    """Columns of "a->b" (a where b has one value) or "a<->b" (indicators of pairs of values)."""
    both = "<->" in mapping
    first, arrow, second = mapping.partition("<->" if both else "->")
    if not arrow:
        raise ValueError(f"subfeatures must be 'a->b' or 'a<->b', got {mapping!r}")
    i, j = frame.index(first, "subfeatures"), frame.index(second, "subfeatures")
    a, b = frame.batch.codes(i), frame.batch.codes(j)
    of_a, of_b = frame.batch.values(i), frame.batch.values(j)
    if len(of_b) * (len(of_a) if both else 1) > MAX_EXPLODED:
        raise ValueError(f"subfeatures of {mapping!r} would be more than {MAX_EXPLODED} columns in a batch")
    columns: list[tuple[np.ndarray, list[bytes]]] = []
    names = []
    for w, value in enumerate(of_b):
        here = b == w
        if both:
            for v, other in enumerate(of_a):
                columns.append(((here & (a == v)).astype(np.uint32), [b"0", b"1"]))
                names.append(f"SUBFEATURE|{first}|{second}-{text(other)}&{text(value)}")
        else:
            codes = np.where(here, a + 1, 0).astype(np.uint32)
            columns.append((codes, [b"", *(other + b"AND" + value for other in of_a)]))
            names.append(f"SUBFEATURE-{first}&{text(value)}")
    frame.add(_core.RankBatch.from_codes(columns, frame.batch.rows), names, "subfeature")


def text(value: bytes) -> str:
    """A value for people and files: what is not UTF-8 is taken for Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


# Noise


def add_controls(frame: Frame, label: int, rng: np.random.Generator, threads: int | None) -> None:
    """The public tool's controls: what a column that tells nothing scores, at several cardinalities, and what the
    label itself does.
    """
    n = frame.batch.rows
    sequence = np.arange(n, dtype=np.uint32)
    columns = {"CONTROL-constant0": (np.zeros(n, dtype=np.uint32), [b"0"])}
    for name, drawn in (("gaussian", rng.standard_normal(n)), ("uniform", rng.random(n))):
        raw = drawn.tobytes().hex().encode()
        columns[f"CONTROL-{name}"] = (sequence, [raw[16 * i : 16 * i + 16] for i in range(n)])
    for name, top in (
        ("binary", 2),
        ("card100", 101),
        ("card2k", 2001),
        ("card10k", 10_001),
        ("card50k", 50_001),
    ):
        drawn = rng.integers(0, top, n)
        used, codes = np.unique(drawn, return_inverse=True)
        columns[f"CONTROL-random-{name}"] = (codes.astype(np.uint32), [b"%d" % v for v in used])
    columns["CONTROL-int-sequence"] = (sequence, [b"%d.0" % i for i in range(n)])
    source = list(range(len(frame.names)))
    names = list(columns)
    made = _core.RankBatch.from_codes(list(columns.values()), n)
    volume = frame.batch.interactions([source], False, threads)
    made = made.extended([frame.batch.select([label]), volume])
    frame.add(made, [*names, "CONTROL-target", "CONTROL-volume"], "control")
