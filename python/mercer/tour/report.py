"""The report: one HTML file that needs nothing beside it, in the reader's light or dark."""

from __future__ import annotations

import html
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import mercer
from mercer.tour.chapter import Cell, Chapter, Figure, Group, Groups, Marked, Section, Table, Text, Tour

__all__ = ["Done", "render"]


@dataclass(frozen=True)
class Done:
    """A chapter that was run: what it returned and the clock it ran on."""

    chapter: Chapter
    sections: Sequence[Section]
    tour: Tour
    failed: bool = False


def render(done: Sequence[Done], *, quick: bool, seconds: float) -> str:
    """The whole page."""
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    machine = f"{_processor()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    facts = [f"mercer {mercer.__version__}", f"Python {platform.python_version()}", machine, when]
    facts.append(f"{seconds:.0f} s in all" + (", quick" if quick else ""))
    contents = "".join(
        f'<li><a href="#{d.chapter.name}">{_e(d.chapter.title)}</a><span>{_took(d)}</span></li>' for d in done
    )
    body = "".join(_chapter(i, d) for i, d in enumerate(done, 1))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>mercer tour</title>'
        f"<style>{_CSS}</style></head><body><main>"
        f'<header><p class="kicker">mercer</p><h1>The tour</h1><p class="lead">'
        "What the library does, on real input, beside what one would use without it.</p>"
        f'<p class="facts">{"".join(f"<span>{_e(f)}</span>" for f in facts)}</p>'
        f'<ol class="contents">{contents}</ol></header>{body}</main></body></html>\n'
    )


def _chapter(number: int, d: Done) -> str:
    stages = "".join(
        f"<tr><td>{_e(s.title)}{' (set-up, kept for the next run)' if s.setup else ''}</td>"
        f'<td class="num">{s.seconds:.2f} s</td></tr>'
        for s in d.tour.stages
    )
    return (
        f'<article id="{d.chapter.name}"><p class="kicker">Chapter {number} · {_took(d)}</p>'
        f"<h2>{_e(d.chapter.title)}</h2>"
        f'<p class="lead">{_inline(d.chapter.promise)}</p>'
        + "".join(
            f"<section><h3>{_e(s.title)}</h3>{''.join(map(_part, s.parts))}</section>" for s in d.sections
        )
        + f"<details><summary>Where the time went</summary><table class='plain'>{stages}</table></details></article>"
    )


def _took(d: Done) -> str:
    setup = f" + {d.tour.setup_seconds:.1f} s set-up" if d.tour.setup_seconds >= 0.5 else ""
    return f"{d.tour.seconds:.1f} s{setup}" + (" · failed" if d.failed else "")


def _part(part: Text | Table | Figure | Groups | Marked) -> str:
    if isinstance(part, Text):
        return f"<p>{_inline(part.body)}</p>"
    if isinstance(part, Figure):
        return f"<figure>{part.svg}<figcaption>{_inline(part.caption)}</figcaption></figure>"
    if isinstance(part, Groups):
        caption = f'<p class="caption">{_inline(part.caption)}</p>' if part.caption else ""
        first, rest = (
            "".join(map(_group, part.groups[s])) for s in (slice(part.shown), slice(part.shown, None))
        )
        if rest:
            more = f"{len(part.groups) - part.shown} more"
            rest = (
                f'<details class="more"><summary>{more}</summary><div class="groups">{rest}</div></details>'
            )
        return f'{caption}<div class="groups">{first}</div>{rest}'
    if isinstance(part, Marked):
        return f'<div class="marked"><h4>{_e(part.title)}</h4>{"".join(_passage(*p) for p in part.passages)}</div>'
    return _table(part)


def _passage(title: str, fact: str, text: str, marks: Sequence[tuple[int, int, float, str]]) -> str:
    """A text whose marks do not overlap, in their order."""
    parts, at = [], 0
    for start, end, strength, tip in marks:
        shade = f'style="--strength:{100 * strength:.0f}%" title="{_e(tip)}"'
        parts.append(f"{_e(text[at:start])}<mark {shade}>{_e(text[start:end])}</mark>")
        at = end
    return f"<p><b>{_e(title)}</b> <span>{_e(fact)}</span> {''.join(parts)}{_e(text[at:])}</p>"


def _table(t: Table) -> str:
    kinds = [("ours" if c == t.ours else "baseline" if c == t.baseline else "") for c in t.columns]
    numeric = [all(_is_number(row[i]) for row in t.rows) for i in range(len(t.columns))]

    def cell(tag: str, i: int, value: str | Cell) -> str:
        c = value if isinstance(value, Cell) else Cell(value)
        names = " ".join(filter(None, (kinds[i], c.tone, "num" if numeric[i] else "")))
        tip = f' title="{_e(c.title)}"' if c.title else ""
        return f'<{tag} class="{names}"{tip}>{_inline(c.text)}</{tag}>'

    head = "".join(cell("th", i, c) for i, c in enumerate(t.columns))
    rows = "".join(f"<tr>{''.join(cell('td', i, v) for i, v in enumerate(row))}</tr>" for row in t.rows)
    caption = f"<caption>{_inline(t.caption)}</caption>" if t.caption else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _group(g: Group) -> str:
    facts = "".join(f"<span><b>{_e(value)}</b> {_e(name)}</span>" for name, value in g.facts)
    lines = "".join(f'<li title="{_e(more)}">{_e(text)}</li>' for text, more in g.lines)
    footer = f'<p class="footer">{_inline(g.footer)}</p>' if g.footer else ""
    style = f' style="--mark:{g.color}"' if g.color else ""
    return f'<div class="group"{style}><h4>{_e(g.title)}</h4><p class="facts">{facts}</p><ul>{lines}</ul>{footer}</div>'


def _is_number(value: str | Cell) -> bool:
    text = value.text if isinstance(value, Cell) else value
    return bool(re.match(r"^([+−-]?[\d.,]+([e×].*)?( ?±.*)?( ?(s|ms|µs|ns|%|×))?|[+−-]?inf|nan|—|)$", text))


def _inline(text: str) -> str:
    text = _e(text)
    text = re.sub(
        r"`([^`]+)`", lambda m: f"<code>{m[1]}</code>" if "\n" not in m[1] else f"<pre>{m[1]}</pre>", text
    )
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "")
    except OSError:
        model = ""
    return re.sub(r"\((R|TM)\)|CPU|Processor|@.*", "", model).strip() or platform.machine()


_CSS = """
:root{--bg:#fbfaf8;--panel:#fff;--text:#1d2126;--soft:#5d6670;--line:#e3e0da;--accent:#0b6e5f;--accent-bg:#e5f3f0;
--base:#7a5a1e;--base-bg:#f8f1e3;--bad:#b3261e;--grid:#e8e5df;--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--panel:#1b1f23;--text:#e6e8ea;--soft:#9aa4ae;--line:#2d3338;
--accent:#5fd0bb;--accent-bg:#15302c;--base:#e0b96a;--base-bg:#2e2716;--bad:#ff8a80;--grid:#2a2f34}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--text);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:48px 24px 96px}
h1{font-size:44px;line-height:1.1;margin:0 0 12px;letter-spacing:-.02em}
h2{font-size:31px;line-height:1.2;margin:0 0 10px;letter-spacing:-.015em}
h3{font-size:20px;margin:44px 0 10px}
h4{font-size:15px;margin:0 0 4px;line-height:1.35}
p{margin:0 0 14px;max-width:76ch}
.kicker{color:var(--accent);font-weight:600;font-size:14px;margin-bottom:6px}
.lead{font-size:18px;color:var(--soft)}
.facts span{display:inline-block;margin-right:16px;color:var(--soft);font-size:13.5px}
.facts b{color:var(--text);font-variant-numeric:tabular-nums}
.contents{list-style:none;padding:0;margin:24px 0 0;border-top:1px solid var(--line)}
.contents li{display:flex;justify-content:space-between;gap:16px;padding:10px 0;border-bottom:1px solid var(--line)}
.contents span{color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
article{margin-top:72px}
code{font:.88em var(--mono);background:var(--grid);padding:1px 5px;border-radius:4px}
pre{font:13px/1.45 var(--mono);background:var(--grid);padding:12px;border-radius:6px;overflow:auto;white-space:pre-wrap}
.scroll{overflow-x:auto;margin:14px 0 18px}
table{border-collapse:collapse;width:100%;font-size:14.5px;background:var(--panel);border:1px solid var(--line)}
caption{caption-side:bottom;text-align:left;color:var(--soft);font-size:13.5px;padding:8px 2px 0}
th,td{padding:8px 12px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;font-size:13px;color:var(--soft);vertical-align:bottom}
tbody tr:last-child td{border-bottom:0}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
th.ours,td.ours{background:var(--accent-bg)}th.ours{color:var(--accent)}
th.baseline,td.baseline{background:var(--base-bg)}th.baseline{color:var(--base)}
.good{font-weight:700}.bad{color:var(--bad);font-weight:600}.dim{color:var(--soft)}
figure{margin:18px 0 22px;padding:16px;background:var(--panel);border:1px solid var(--line)}
figure svg{display:block;width:100%;height:auto;color:var(--text);font-family:inherit}
figcaption,.caption{color:var(--soft);font-size:13.5px;margin-top:10px;max-width:90ch}
.groups{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:12px;margin:14px 0}
.group{background:var(--panel);border:1px solid var(--line);border-top:4px solid var(--mark,var(--accent));padding:12px 14px}
.group .facts{margin:0 0 6px}.group .facts span{margin-right:12px;font-size:13px}
.group ul{margin:0;padding-left:16px;font:13px/1.5 var(--mono)}
.group li{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.group .footer{margin:8px 0 0;font-size:13px;color:var(--soft)}
.marked{background:var(--panel);border:1px solid var(--line);padding:12px 16px;margin:12px 0}
.marked p{font-size:14px;margin:8px 0 0;max-width:none}.marked span{color:var(--soft)}
mark{color:inherit;border-radius:3px;background:color-mix(in srgb,var(--accent) var(--strength),transparent)}
details{margin-top:28px;color:var(--soft)}summary{cursor:pointer}
details.more{margin-top:0;color:var(--text)}details.more summary{color:var(--accent)}
table.plain{width:auto;margin-top:10px}
svg .axis{stroke:var(--soft);stroke-width:1}svg .grid{stroke:var(--grid);stroke-width:1}
svg text{fill:currentColor;font-size:12px}svg .soft{fill:var(--soft)}
svg .halo{paint-order:stroke;stroke:var(--panel);stroke-width:4px;stroke-linejoin:round;font-weight:600}
svg .ours{stroke:var(--accent)}svg .base{stroke:var(--base)}svg .base2{stroke:var(--bad)}
svg .fill-ours{fill:var(--accent)}svg .fill-base{fill:var(--base)}svg .fill-base2{fill:var(--bad)}
@media print{article{break-before:page}figure,.group{break-inside:avoid}}
"""
