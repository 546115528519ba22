"""Progress on standard error: a rich bar on a terminal where rich is installed, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress"]

PLAIN_EVERY = 2.0  # Seconds between plain lines: a log stays short, and silence never looks like a hang.


class Progress:
    """``chapter`` once, ``show`` as work goes on, ``finish`` once; repeated for each chapter."""

    def __init__(self) -> None:
        self._rich: Any = None
        self._task: Any = None
        self._began = time.perf_counter()
        self._shown = ("", 0.0)
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
                from rich.progress import Progress as Bars
            except ImportError:
                return
            self._rich = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )

    def __enter__(self) -> Progress:
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._rich is not None:
            self._rich.stop()

    def chapter(self, title: str) -> None:
        self._say(title)
        if self._rich is not None:
            self._task = self._rich.add_task("", total=None)

    def show(self, title: str, done: int, total: int) -> None:
        """``total`` 0 means: not known."""
        if self._rich is not None:
            self._rich.update(self._task, description=title, completed=done, total=total or None)
            return
        last, when = self._shown
        now = time.perf_counter()
        if title != last or now - when > PLAIN_EVERY:
            self._shown = (title, now)
            self._say(f"  {title}" + (f" {100 * done // total} %" if total else ""))

    def finish(self, text: str) -> None:
        if self._rich is not None:
            self._rich.remove_task(self._task)
        self._say(f"  {text}")

    def _say(self, line: str) -> None:
        if self._rich is not None:
            self._rich.console.print(line, highlight=False, markup=False)
        else:
            print(f"[{time.perf_counter() - self._began:5.1f} s] {line}", file=sys.stderr, flush=True)
