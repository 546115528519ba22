"""The report of a ranking: one HTML file that needs nothing beside it, in the reader's light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mercer._atomic import replacing
from mercer.ranking._run import AND

if TYPE_CHECKING:
    from mercer.ranking._ranker import FeatureRanker

__all__ = ["write_report"]

WIDTH, SHOWN, GAINS = 1040, 40, 25
KINDS = ("column", "interaction", "transform", "multivalue", "subfeature", "control")


def write_report(ranker: FeatureRanker, path: Any) -> None:
    """See `FeatureRanker.to_html`."""
    with replacing(path) as beside:
        beside.write_text(_page(ranker), encoding="utf-8")


def _page(ranker: FeatureRanker) -> str:
    scores = ranker.scores_
    measure = ranker.score + (f", {ranker.correction}" if ranker.score == "mi_corrected" else "")
    bad = {reason: n for reason, n in ranker.skipped_.items() if n}
    facts = [
        f"{ranker.n_rows_:,} rows",
        f"{ranker.n_batches_} batches",
        f"{len(scores):,} columns",
        f"score: {measure}, {ranker.aggregate}",
        f"{ranker.timings_['total']:.2f} s",
    ]
    if bad:
        facts.append(
            "skipped: " + ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in bad.items())
        )
    body = [
        _section("Ranking", _note(scores), _bars(scores[:SHOWN])),
        _section(
            "Cardinality against score",
            "A score that rises with the cardinality of noise is not a score of signal. The controls are noise made for "
            "this run, and the label itself." if "control" in scores["kind"] else
            "A score that rises with cardinality alone is suspect. Noise controls would show it: noise_controls=True.",
            _scatter(scores),
        ),
    ]  # fmt: skip
    if ranker.redundancy_ and len(ranker.redundancy_[0]) > 1:
        names, matrix = ranker.redundancy_
        body.append(_section(
            "Redundancy of the best columns",
            "Symmetric uncertainty in the last batch: 0 nothing in common, 1 the same.", _heatmap(names, matrix),
        ))  # fmt: skip
    gains = _gains(scores)
    if gains:
        body.append(_section(
            "What the made columns add",
            "Score of an interaction or a transformed column, less the best score of the columns it was made of.",
            _gain_bars(gains),
        ))  # fmt: skip
    if ranker.ranks_3mr_ is not None:
        order = "".join(f"<li>{_e(name)}</li>" for name in ranker.ranks_3mr_["feature"][:SHOWN])
        body.append(
            _section("3MR order", "Relevance - redundancy + relation, greedily.", f"<ol>{order}</ol>")
        )
    body.append(_section("All numbers", "", _table(ranker)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>Ranking for {_e(ranker.label_)}</title><style>{_CSS}</style></head><body><main>"
        f"<h1>What tells of <b>{_e(ranker.label_)}</b></h1>"
        f'<p class="facts">{"".join(f"<span>{_e(fact)}</span>" for fact in facts)}</p>'
        f"{''.join(body)}</main></body></html>\n"
    )


def _section(title: str, note: str, content: str) -> str:
    lead = f'<p class="note">{_e(note)}</p>' if note else ""
    return f"<section><h2>{_e(title)}</h2>{lead}{content}</section>"


def _note(scores: np.ndarray) -> str:
    more = f"The best {SHOWN} of {len(scores):,}. " if len(scores) > SHOWN else ""
    return more + "Bars are the score, whiskers half the interquartile range over the batches to either side."


def _bars(scores: np.ndarray) -> str:
    left, right, row = 270, 90, 24
    low = min(0.0, float((scores["score"] - scores["spread"] / 2).min(initial=0)))
    high = max(float((scores["score"] + scores["spread"] / 2).max(initial=0)), low + 1e-12)
    x = _scale(low, high, left, WIDTH - right)
    height = row * len(scores) + 34
    parts = [_open(height, "ranking")]
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{height - 24}"/>')
        parts.append(
            f'<text class="soft" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{_number(tick)}</text>'
        )
    for i, r in enumerate(scores):
        y, score, half = 8 + row * i, float(r["score"]), float(r["spread"]) / 2
        from_, to = sorted((x(0), x(score)))
        tip = f"{r['feature']}: {score:.6g} ± {half:.2g}, {r['cardinality']:,} values, {r['coverage']:.1f} % covered"
        parts.append(
            f"<g><title>{_e(tip)}</title>"
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{_e(_short(str(r["feature"]), 34))}</text>'
            f'<rect class="{_e(r["kind"])}" x="{from_:.1f}" y="{y + 2}" width="{max(to - from_, 1):.1f}" height="14" rx="2"/>'
            f'<path class="whisker" d="M{x(score - half):.1f} {y + 9}H{x(score + half):.1f}"/>'
            f'<text class="soft" x="{max(x(score + half), x(0)) + 6:.1f}" y="{y + 13}">{_number(score)}</text></g>'
        )
    return _legend(scores) + "".join(parts) + "</svg>"


def _legend(scores: np.ndarray) -> str:
    present = [kind for kind in KINDS if kind in set(scores["kind"])]
    if len(present) < 2:
        return ""
    return '<p class="legend">' + "".join(f'<span class="{kind}">{kind}</span>' for kind in present) + "</p>"


def _scatter(scores: np.ndarray) -> str:
    left, right, top, bottom, height = 70, 30, 16, 44, 420
    cards = np.maximum(scores["cardinality"].astype(float), 1)
    y_low, y_high = float(min(scores["score"].min(initial=0), 0)), float(scores["score"].max(initial=0))
    y_high = max(y_high, y_low + 1e-12)
    most = max(float(np.log10(cards.max(initial=1))), 0.5)
    x = _scale(0.0, most, left, WIDTH - right)
    y = _scale(y_low, y_high, height - bottom, top)
    parts = [_open(height, "cardinality against score")]
    for decade in range(int(most) + 1):
        at = x(decade)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(
            f'<text class="soft" x="{at:.1f}" y="{height - bottom + 18}" text-anchor="middle">{10**decade:,}</text>'
        )
    for tick in _ticks(y_low, y_high):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(
            f'<text class="soft" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    parts.append(
        f'<text class="soft" x="{WIDTH / 2}" y="{height - 8}" text-anchor="middle">different values</text>'
    )
    parts.append(
        f'<text class="soft" x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">score</text>'
    )
    boxes: list[tuple[float, float, float]] = []
    labels: list[str] = []
    for rank, (r, card) in enumerate(zip(scores[:2000], cards, strict=False)):
        a, b = x(math.log10(card)), y(float(r["score"]))
        control = r["kind"] == "control"
        mark = (
            f'<path class="control" d="M{a - 5:.1f} {b - 5:.1f}l10 10m0 -10l-10 10"/>'
            if control
            else f'<circle class="{_e(r["kind"])}" cx="{a:.1f}" cy="{b:.1f}" r="4"/>'
        )
        parts.append(
            f"<g><title>{_e(r['feature'])}: {float(r['score']):.6g}, {int(card):,} values</title>{mark}</g>"
        )
        name = _short(str(r["feature"]).removeprefix("CONTROL-"), 24)
        wide = 7.2 * len(name)
        anchor, at = ("end", a - 8) if a + wide + 10 > WIDTH - right else ("start", a + 8)
        from_ = at - wide if anchor == "end" else at
        free = all(abs(b - v) > 15 or from_ + wide < u or u + w < from_ for u, v, w in boxes)
        if (control or rank < 12) and free:
            boxes.append((from_, b, wide))
            labels.append(
                f'<text class="halo" x="{at:.1f}" y="{b - 6:.1f}" text-anchor="{anchor}">{_e(name)}</text>'
            )
    return _legend(scores) + "".join(parts + labels) + "</svg>"


def _heatmap(names: Sequence[str], matrix: np.ndarray) -> str:
    left, top = 270, 150
    cell = min(30, (WIDTH - left - 10) / len(names))
    height = top + cell * len(names) + 8
    parts = [_open(height, "redundancy")]
    for i, name in enumerate(names):
        middle = cell * (i + 0.5)
        parts.append(
            f'<text x="{left - 8}" y="{top + middle + 4:.1f}" text-anchor="end">{_e(_short(name, 34))}</text>'
        )
        at = left + middle
        parts.append(
            f'<text transform="translate({at + 4:.1f} {top - 8}) rotate(-60)">{_e(_short(name, 22))}</text>'
        )
        for j, other in enumerate(names):
            value = float(matrix[i, j])
            parts.append(
                f'<rect class="heat" style="fill-opacity:{0.04 + 0.96 * value:.3f}" x="{left + cell * j:.1f}" '
                f'y="{top + cell * i:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}">'
                f"<title>{_e(name)} and {_e(other)}: {value:.3f}</title></rect>"
            )
    return "".join(parts) + "</svg>"


def _gains(scores: np.ndarray) -> list[tuple[str, str, float]]:
    """(name, kind, gain over the best part), the largest first."""
    known = {str(r["feature"]): float(r["score"]) for r in scores}
    gains = []
    for r in scores:
        name, kind = str(r["feature"]), str(r["kind"])
        parts: Iterable[str] = ()
        if kind == "interaction":
            parts = name.split(AND)
        elif kind == "transform":
            parts = (name.partition("_tr_")[0],)
        found = [known[part] for part in parts if part in known]
        if found and float(r["score"]) > max(found) + 1e-9:
            gains.append((name, kind, float(r["score"]) - max(found)))
    return sorted(gains, key=lambda gain: -gain[2])[:GAINS]


def _gain_bars(gains: list[tuple[str, str, float]]) -> str:
    table = np.zeros(len(gains), dtype=[("feature", object), ("score", float), ("spread", float),
                                        ("cardinality", int), ("coverage", float), ("kind", object)])  # fmt: skip
    for i, (name, kind, gain) in enumerate(gains):
        table[i] = (name, gain, 0.0, 0, 100.0, kind)
    return _bars(table)


def _table(ranker: FeatureRanker) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in ("", "feature", "score", "spread", "values", "covered", "bytes", "kind")
    )
    rows = []
    for i, r in enumerate(ranker.scores_[:1000], 1):
        size = ranker.bytes_per_value_.get(r["feature"])
        cells = [
            f"{float(r['score']):.6f}", f"{float(r['spread']):.2g}", f"{r['cardinality']:,}",
            f"{r['coverage']:.1f} %", "" if size is None else f"{size:.1f}",
        ]  # fmt: skip
        numbers = "".join(f'<td class="num">{cell}</td>' for cell in cells)
        rows.append(
            f'<tr><td class="num">{i}</td><td>{_e(r["feature"])}</td>{numbers}<td>{_e(r["kind"])}</td></tr>'
        )
    more = len(ranker.scores_) - len(rows)
    rest = f"<p>{more:,} more in the files.</p>" if more > 0 else ""
    return f"<details><summary>{len(ranker.scores_):,} columns</summary><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{rest}</details>"


def _scale(low: float, high: float, start: float, end: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−") if value else "0"


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _open(height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg">'


def _e(value: Any) -> str:
    return html.escape(str(value), quote=True)


_CSS = """
:root{--bg:#fbfaf8;--panel:#fff;--text:#1d2126;--soft:#5d6670;--line:#e3e0da;--c1:#0b6e5f;--c2:#7a5a1e;--c3:#4a5bb5;
--c4:#a3487f;--c5:#5a8a2a;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--panel:#1b1f23;--text:#e6e8ea;--soft:#9aa4ae;--line:#2d3338;
--c1:#5fd0bb;--c2:#e0b96a;--c3:#9fabf0;--c4:#e79bc8;--c5:#a8d477;--bad:#ff8a80}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--text);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif}
main{max-width:1100px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:34px;margin:0 0 8px;font-weight:500}h2{font-size:22px;margin:44px 0 6px}
.facts span{display:inline-block;margin-right:18px;color:var(--soft);font-size:14px}
.note{color:var(--soft);font-size:14.5px;margin:0 0 12px;max-width:90ch}
svg{display:block;width:100%;height:auto;background:var(--panel);border:1px solid var(--line);color:var(--text)}
svg text{fill:currentColor;font-size:12.5px}svg .soft{fill:var(--soft);font-size:12px}
svg .halo{paint-order:stroke;stroke:var(--panel);stroke-width:4px;stroke-linejoin:round}
svg .grid{stroke:var(--line)}svg .whisker{stroke:currentColor;stroke-width:1.5;opacity:.65}
.column{fill:var(--c1);--k:var(--c1)}.interaction{fill:var(--c3);--k:var(--c3)}.transform{fill:var(--c2);--k:var(--c2)}
.multivalue{fill:var(--c4);--k:var(--c4)}.subfeature{fill:var(--c5);--k:var(--c5)}
.control{fill:var(--bad);--k:var(--bad)}path.control{stroke:var(--bad);stroke-width:2;fill:none}
circle{opacity:.75}.heat{fill:var(--c1)}
.legend{margin:0 0 8px;font-size:13.5px;color:var(--soft)}.legend span{margin-right:16px}
.legend span::before{content:"";display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px;background:var(--k)}
table{border-collapse:collapse;width:100%;font-size:14px;background:var(--panel);border:1px solid var(--line);margin-top:10px}
th,td{padding:6px 10px;text-align:left;border-bottom:1px solid var(--line)}th{color:var(--soft);font-size:13px}
.num{text-align:right;font-variant-numeric:tabular-nums}summary{cursor:pointer;color:var(--c1)}
ol{columns:3;font-size:14px}
"""
