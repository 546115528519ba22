"""Puts the evidence that `mercer reproduce` wrote to docs/evidence into the evidence page, at build time."""

import json
from pathlib import Path

EVIDENCE = Path(__file__).parent / "evidence"


def on_page_markdown(markdown, page, config, files):
    if page.file.src_path != "evidence.md":
        return markdown
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(EVIDENCE.glob("*.json"))]
    sections = "\n\n".join(map(_section, found)) or "None recorded yet."
    return markdown.replace("<!-- evidence -->", sections)


def _section(evidence):
    slug, rows = evidence["slug"], evidence["rows"]
    lines = [f"## {slug}", ""]
    if (EVIDENCE / f"{slug}.png").exists():
        lines += [f"![What {slug} measured](evidence/{slug}.png)", ""]
    lines += [
        "| claim | unit | baseline | mercer | spread | paper | better | holds here |",
        "|" + " --- |" * 8,
    ]
    for row in rows:
        spread = " .. ".join(map(_number, row["spread"] or ()))
        measured = (_number(row["baseline"]), _number(row["ours"]), spread, _number(row["paper"]))
        cells = [row["quantity"], row["unit"], *measured]
        holds = row["holds"] + (f": {row['note']}" if row["holds"] != "yes" else "")
        lines.append("| " + " | ".join(_cell(cell) for cell in (*cells, row["better"], holds)) + " |")
    versions = ", ".join(f"{name} {version}" for name, version in evidence["versions"].items())
    lines += ["", f"{evidence['seconds']:.0f} s, seed {evidence['seed']}; {versions}."]
    return "\n".join(lines)


def _number(value):
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text):
    return text.replace("|", "\\|").replace("\n", " ")
