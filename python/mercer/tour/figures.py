"""Figures as inline SVG: sharp at any size, no library, colours from the page so that light and dark both work."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["bars", "color", "curves", "map_of_points"]

WIDTH = 1000


def color(i: int) -> str:
    """A colour for group ``i``: neighbours in number are far apart in hue, and legible on light and dark."""
    hue = (25 + 137.508 * i) % 360  # The golden angle.
    return f"oklch({(0.62, 0.72, 0.55)[i % 3]} {(0.15, 0.13, 0.12)[i % 3]} {hue:.0f})"


def map_of_points(
    xy: np.ndarray, group: np.ndarray, tips: Sequence[str], names: Sequence[str], height: int = 640
) -> str:
    """A scatter of (n, 2) points, coloured by group, each group's name at the median of its points.

    Pointing at a dot shows its tip.
    """
    low, high = np.quantile(xy, [0.002, 0.998], axis=0)
    span = np.maximum(high - low, 1e-12)
    unit = np.clip((xy - low) / span, -0.02, 1.02)
    px = 30 + unit[:, 0] * (WIDTH - 60)
    py = 25 + (1 - unit[:, 1]) * (height - 50)
    parts = [_open(height, "map of documents")]
    for g in np.unique(group):
        dots = "".join(
            f'<circle cx="{px[i]:.1f}" cy="{py[i]:.1f}" r="3.2"><title>{_e(tips[i])}</title></circle>'
            for i in np.flatnonzero(group == g).tolist()
        )
        parts.append(f'<g fill="{color(int(g))}" fill-opacity=".78">{dots}</g>')
    parts += _place_names(px, py, group, names, height)
    return "".join(parts) + "</svg>"


def bars(
    names: Sequence[str],
    values: Sequence[float],
    colors: Sequence[str],
    *,
    unit: str,
    mark: tuple[float, str] | None = None,
    show: Callable[[float], str] = "{:.0f}".format,
) -> str:
    """Horizontal bars from 0, with an optional marked value across all of them."""
    row, left, top = 24, 300, 34
    height = top + row * len(values) + 30
    high = max([*values, mark[0] if mark else 0]) * 1.08
    scale = (WIDTH - left - 70) / high
    parts = [_open(height, unit)]
    for t in _ticks(0, high):
        x = left + t * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 30}"/>')
        parts.append(
            f'<text class="soft" x="{x:.1f}" y="{height - 12}" text-anchor="middle">{show(t)}</text>'
        )
    for i, (name, value, fill) in enumerate(zip(names, values, colors, strict=True)):
        y = top + i * row
        parts.append(f'<text x="{left - 10}" y="{y + 16}" text-anchor="end">{_e(name)}</text>')
        parts.append(
            f'<rect x="{left}" y="{y + 4}" width="{max(value * scale, 1):.1f}" height="{row - 8}" rx="2" fill="{fill}"/>'
        )
        parts.append(f'<text x="{left + value * scale + 6:.1f}" y="{y + 16}">{show(value)}</text>')
    if mark:
        x = left + mark[0] * scale
        parts.append(
            f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 30}"'
            ' stroke-width="2" stroke-dasharray="5 4"/>'
            f'<text class="fill-base" x="{x:.1f}" y="{top - 14}" text-anchor="middle">{_e(mark[1])}</text>'
        )
    return "".join(parts) + "</svg>"


def curves(
    series: Sequence[tuple[str, str, np.ndarray, np.ndarray]],
    *,
    x_title: str,
    y_title: str,
    height: int = 380,
    widths: Sequence[float] | None = None,
) -> str:
    """Lines over a logarithmic x. A series is (name, class, x, y); it breaks where y is not finite.

    Classes: "ours", "base", "base2".
    """
    left, right, top, bottom = 78, 24, 20, 52
    finite = np.concatenate([y[np.isfinite(y)] for *_, y in series])
    low, high = float(finite.min()), float(finite.max())
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    log_x = np.log10(np.concatenate([x for _, _, x, _ in series]))
    x0, x1 = float(log_x.min()), float(log_x.max())

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x0) / (x1 - x0) * (WIDTH - left - right),
            top + (high - y) / (high - low) * (height - top - bottom),
        )

    parts = [_open(height, f"{y_title} against {x_title}")]
    for t in _ticks(low, high):
        _, y = at(x0, t)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="soft" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{_minus(f"{t:g}")}</text>'
        )
    for decade in range(math.ceil(x0), math.floor(x1) + 1):
        x, _ = at(decade, low)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
        label = f"{10.0**decade:g}" if abs(decade) < 4 else f"1e{decade}"
        parts.append(
            f'<text class="soft" x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{label}</text>'
        )
    for n, (name, kind, xs, ys) in enumerate(series):
        width = widths[n] if widths else 2.5
        for run in _finite_runs(ys):
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(math.log10(xs[i]), ys[i]) for i in run))
            parts.append(
                f'<polyline class="{kind}" points="{path}" fill="none" stroke-width="{width}" stroke-linecap="round"/>'
            )
        key = top + 16 + 20 * n
        parts.append(
            f'<line class="{kind}" x1="{left + 16}" x2="{left + 44}" y1="{key - 4}" y2="{key - 4}" stroke-width="{width}"/>'
            f'<text x="{left + 52}" y="{key}">{_e(name)}</text>'
        )
    parts.append(
        f'<text class="soft" x="{(left + WIDTH - right) / 2}" y="{height - 8}" text-anchor="middle">{_e(x_title)}</text>'
        f'<text class="soft" transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)"'
        f' text-anchor="middle">{_e(y_title)}</text>'
    )
    return "".join(parts) + "</svg>"


def _place_names(
    px: np.ndarray, py: np.ndarray, group: np.ndarray, names: Sequence[str], height: int
) -> list[str]:
    """Names at the groups' medians, each moved up or down past those already placed."""
    taken: list[tuple[float, float, float]] = []
    parts = []
    groups = sorted(np.unique(group), key=lambda g: -int((group == g).sum()))
    for g in groups:
        name = names[int(g)]
        x, y = float(np.median(px[group == g])), float(np.median(py[group == g]))
        half = 3.6 * len(name)
        x = min(max(x, half + 6), WIDTH - half - 6)
        for step in range(60):
            trial = y + (step + 1) // 2 * 7 * (1 if step % 2 else -1)
            clear = all(abs(trial - ty) > 15 or abs(x - tx) > half + th for tx, ty, th in taken)
            if clear and 14 < trial < height - 6:
                y = trial
                break
        taken.append((x, y, half))
        parts.append(f'<text class="halo" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{_e(name)}</text>')
    return parts


def _finite_runs(y: np.ndarray) -> list[np.ndarray]:
    index = np.flatnonzero(np.isfinite(y))
    return [run for run in np.split(index, np.flatnonzero(np.diff(index) > 1) + 1) if len(run)]


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _open(height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{_e(label)}" xmlns="http://www.w3.org/2000/svg">'


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _e(text: str) -> str:
    return html.escape(text, quote=True)
