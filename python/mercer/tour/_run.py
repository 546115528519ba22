"""Runs chapters one after another, shows progress, and writes the report beside its name."""

from __future__ import annotations

import importlib.util
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from mercer._atomic import replacing
from mercer.tour._progress import Progress
from mercer.tour.chapter import Chapter, Section, Text, Tour

__all__ = ["run_chapters"]


def run_chapters(out: Path, quick: bool, names: Sequence[str] | None) -> Path:
    """See :func:`mercer.tour.run`."""
    target = out if out.suffix == ".html" else out / "tour.html"
    if target.is_dir() or any(p.exists() and not p.is_dir() for p in target.parents):
        raise ValueError(f"out must be an .html file or a folder, got {str(out)!r}")
    from mercer.tour.chapters import CHAPTERS
    from mercer.tour.report import Done, render

    chosen = _choose(CHAPTERS, names)
    _require(chosen)
    done: list[Done] = []
    began = time.perf_counter()
    with Progress() as progress:
        for number, chapter in enumerate(chosen, 1):
            progress.chapter(f"chapter {number} of {len(chosen)}: {chapter.title}")
            tour = Tour(quick=quick, show=progress.show)
            try:
                sections, failed = chapter.run(tour), False
            except Exception:
                told = "".join(traceback.format_exc())
                print(told, file=sys.stderr)
                sections, failed = [Section("This chapter failed", [Text(f"`{told}`")])], True
            done.append(Done(chapter, sections, tour, failed))
            progress.finish(f"{tour.seconds:.1f} s" + (" — failed" if failed else ""))
    html = render(done, quick=quick, seconds=time.perf_counter() - began)
    with replacing(target) as beside:
        beside.write_text(html, encoding="utf-8")
    print(f"report: {target.resolve()}", flush=True)
    failures = [d.chapter.name for d in done if d.failed]
    if failures:
        raise RuntimeError(f"failed: {', '.join(failures)}; the report says how")
    return target


def _choose(chapters: Sequence[Chapter], names: Sequence[str] | None) -> list[Chapter]:
    if names is None:
        return list(chapters)
    known = {c.name: c for c in chapters}
    for name in names:
        if name not in known:
            raise ValueError(f"chapters must be among {', '.join(known)}, got {name!r}")
    return [c for c in chapters if c.name in set(names)]


def _require(chapters: Sequence[Chapter]) -> None:
    needed = {module: pip for c in chapters for module, pip in c.requires}
    missing = sorted(pip for module, pip in needed.items() if importlib.util.find_spec(module) is None)
    if missing:
        raise ImportError(
            f"the tour needs {', '.join(missing)}: pip install 'mercer-kernels[demo]', "
            f"or pip install {' '.join(missing)}"
        )
