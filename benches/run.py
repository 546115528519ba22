"""What `make bench` runs: every `benches/peers/bench_*.py`, or those named, into `docs/benchmarks.md`.

    python benches/run.py [NAME ...] [--quick] [--criterion] [--page FILE]

Each bench owns the section of the page between its markers; a run of some leaves the sections of the others. A bench
in parts has a section for each, and NAME.PART runs one.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import inspect
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benches" / "peers"))

from harness import Row  # noqa: E402
from mercer import _versions  # noqa: E402
from mercer._atomic import replacing  # noqa: E402

INTRODUCTION = """# Benchmarks

`make bench` runs the work below through mercer and through the best alternative, turn by turn in one run, and
writes this page. A ratio above 1 says how many times faster mercer is: the median over the rounds, with their
interquartile range. Times are per element. The machine and the versions stand under each table.
"""


def main() -> int:
    known = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benches/peers").glob("bench_*.py"))
    parser = argparse.ArgumentParser(description="Run the benches against peers and write their page.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--quick", action="store_true", help="less work: to see that a bench runs")
    parser.add_argument("--criterion", action="store_true", help="the benches of the Rust core as well")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    arguments = parser.parse_args()
    unknown = sorted({name.partition(".")[0] for name in arguments.names} - set(known))
    if unknown:
        parser.error(f"NAME must be one of {', '.join(known)}, got {', '.join(unknown)}")
    for name in arguments.names or known:
        stem, _, part = name.partition(".")
        found = parts(importlib.import_module(f"bench_{stem}"))
        if part and name not in found:
            parser.error(f"NAME.PART must be one of {', '.join(found)}, got {name}")
        for here in [name] if part else found:
            bench = found[here]
            print(f"\n{bench.title}", flush=True)
            rows = []
            for row in bench.rows(arguments.quick):
                rows.append(row)
                print(line(row), flush=True)
            write_section(arguments.page, here, section(bench, rows, quick=arguments.quick))
    print(f"\nwrote {arguments.page}")
    if arguments.criterion:
        subprocess.run(["cargo", "bench", "--package", "mercer-core"], cwd=ROOT, check=True)
    return 0


class Bench(NamedTuple):
    """What has a section of the page."""

    name: str
    title: str
    text: str
    rows: Callable[[bool], Iterable[Row]]


def parts(module: ModuleType) -> dict[str, Bench]:
    """The benches of a module by name: its `PARTS`, functions with a docstring each, or all its rows as one."""
    stem = module.__name__.removeprefix("bench_")
    text = inspect.cleandoc(module.__doc__ or "")
    if not hasattr(module, "PARTS"):
        return {stem: Bench(stem, module.TITLE, text, module.rows)}
    return {
        f"{stem}.{part}": Bench(
            f"{stem}.{part}", f"{module.TITLE}: {part}", inspect.cleandoc(rows.__doc__ or ""), rows
        )
        for part, rows in module.PARTS.items()
    }


def _time(ns: float) -> str:
    """Nothing where it is no time that was measured."""
    return "" if math.isnan(ns) else f"{ns:.3g} ns"


def line(row: Row) -> str:
    """A row for the terminal."""
    times = f"{_time(row.ours_ns):>12} {_time(row.peer_ns):>12}"
    ratio = f"x{row.ratio:.1f} ({row.low:.1f} .. {row.high:.1f})"
    return f"  {row.work:<44} {row.peer:<12} {row.threads} thr {times}  {ratio} {row.note}"


def section(bench: Bench, rows: list[Row], *, quick: bool) -> str:
    """The Markdown of one bench."""
    lines = [f"## {bench.title}", "", bench.text, ""]
    lines += [
        "| work | peer | threads | mercer | peer | ratio | spread | |",
        "| --- | --- " + "| ---: " * 5 + "| --- |",
    ]
    lines += [
        f"| {row.work} | {row.peer} | {row.threads} | {_time(row.ours_ns)} | {_time(row.peer_ns)} "
        f"| **{row.ratio:.3g}** | {row.low:.3g} .. {row.high:.3g} | {row.note} |"
        for row in rows
    ]
    lines.append("")
    for peer, threads in dict.fromkeys((row.peer, row.threads) for row in rows):
        ratios = [row.ratio for row in rows if (row.peer, row.threads) == (peer, threads)]
        plural = "s" * (threads != 1)
        lines.append(
            f"Against {peer} on {threads} thread{plural}: median ratio **{statistics.median(ratios):.3g}** "
            f"of {len(ratios)}, best {max(ratios):.3g}, least {min(ratios):.3g}.\n"
        )
    command = f'make bench ARGS="{bench.name}{" --quick" * quick}"'
    lines.append(f"{datetime.date.today()}, `{command}`, {machine()}.")
    return "\n".join(lines)


def machine() -> str:
    """The processor and the versions, for the reader who wants to know where the numbers come from."""
    found = _versions.versions()
    versions = ", ".join(f"{name} {found[name]}" for name in ("mercer", "python", "numpy", "scipy"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, SIMD {found['SIMD']}; {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section of `name`, or add it at the end; the page is the old one or the new one."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    content = page.read_text(encoding="utf-8") if page.exists() else INTRODUCTION
    before, found, rest = content.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    before = before if found else before.rstrip("\n") + "\n\n"
    with replacing(page) as beside:
        beside.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
