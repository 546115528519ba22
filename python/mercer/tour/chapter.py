"""What a chapter is made of: a title, a function, and the sections that function returns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Cell",
    "Chapter",
    "Figure",
    "Group",
    "Groups",
    "Marked",
    "Section",
    "Stage",
    "Table",
    "Text",
    "Tour",
]


@dataclass(frozen=True)
class Text:
    """A paragraph. ``**bold**`` and `` `code` `` are understood; everything else is shown as it is."""

    body: str


@dataclass(frozen=True)
class Cell:
    """A table cell with a tone: "good" (the better one), "bad" (wrong or not finite), or "dim"."""

    text: str
    tone: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under column titles. ``ours`` and ``baseline`` name the columns to set off."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    ours: str = ""
    baseline: str = ""


@dataclass(frozen=True)
class Figure:
    """An inline picture: an ``<svg>`` element that takes its text colour from the page."""

    svg: str
    caption: str
    wide: bool = True


@dataclass(frozen=True)
class Group:
    """One card of :class:`Groups`: a heading, facts beside it, and lines below."""

    title: str
    facts: Sequence[tuple[str, str]]
    lines: Sequence[tuple[str, str]]
    footer: str = ""
    color: str = ""


@dataclass(frozen=True)
class Groups:
    """Cards in a grid; those after the first `shown` can be unfolded."""

    groups: Sequence[Group]
    caption: str = ""
    shown: int = 1000


@dataclass(frozen=True)
class Marked:
    """Texts under a heading: (title, fact, text, marks), a mark being (start, end, strength in 0 … 1, tip)."""

    title: str
    passages: Sequence[tuple[str, str, str, Sequence[tuple[int, int, float, str]]]]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Text | Table | Figure | Groups | Marked]


@dataclass(frozen=True)
class Chapter:
    """A flagship of the library shown at work.

    Attributes
    ----------
    name : str
        What ``chapters=`` and ``--chapter`` call it.
    title, promise : str
        The heading, and the sentence below it.
    requires : sequence of (module, pip name)
        Imports it cannot do without.
    run : callable(Tour) -> list of Section
        Reports through the :class:`Tour` it is given.
    """

    name: str
    title: str
    promise: str
    run: Callable[[Tour], list[Section]]
    requires: Sequence[tuple[str, str]] = ()


@dataclass
class Stage:
    """A timed part of a chapter. Set-up (filling a cache) is shown apart from the chapter's own time."""

    title: str
    seconds: float = 0.0
    setup: bool = False


@dataclass
class Tour:
    """What a chapter's function is given: the options, and a way to say how far it is.

    Examples
    --------
    >>> tour = Tour()
    >>> with tour.stage("counting") as report:
    ...     for i in range(3):
    ...         report(i + 1, 3)
    >>> [stage.title for stage in tour.stages]
    ['counting']
    """

    quick: bool = False
    show: Callable[[str, int, int], None] = lambda title, done, total: None
    stages: list[Stage] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, title: str, *, setup: bool = False) -> Iterator[Callable[[int, int], None]]:
        """Time what runs inside; yields ``report(done, total)``."""
        stage = Stage(title, setup=setup)
        self.stages.append(stage)
        self.show(title, 0, 0)
        start = time.perf_counter()
        try:
            yield lambda done, total: self.show(title, done, total)
        finally:
            stage.seconds = time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Time of the stages that are not set-up."""
        return sum(s.seconds for s in self.stages if not s.setup)

    @property
    def setup_seconds(self) -> float:
        """Time of the stages that are set-up."""
        return sum(s.seconds for s in self.stages if s.setup)
