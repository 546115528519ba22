"""The tour: every flagship of the library on real input, ending in one HTML report.

``mercer tour``, ``python -m mercer.tour`` or :func:`run`. A chapter is a title and a function that does the work,
says how far it is, and returns sections (text, tables, figures); see :mod:`mercer.tour.chapters`. Another chapter is
another module with a ``CHAPTER`` and a line in that list.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run"]


def run(
    out: str | os.PathLike[str] = "mercer-report",
    *,
    quick: bool = False,
    chapters: Sequence[str] | None = None,
) -> Path:
    """Run the chapters and write the report.

    Parameters
    ----------
    out : path
        An ``.html`` file, or a folder that gets ``tour.html``. Made if missing; an old report is replaced only when
        the new one is complete.
    quick : bool
        Fewer documents and restarts: a few seconds a chapter, numbers less settled.
    chapters : sequence of str, optional
        Names of chapters, all by default.

    Returns
    -------
    Path
        The report. A chapter that failed says so in it, and the others are there.

    Raises
    ------
    ImportError
        A package that the tour needs is missing: says which, and how to install it.
    ValueError
        No such chapter.

    Notes
    -----
    About 30 s a chapter on two cores. The first run also embeds the corpus, about half a minute more, and keeps the
    vectors (about 100 MB) in the user's cache folder.
    """
    # Said before the slow imports, so that nobody wonders whether it runs.
    print("mercer tour: starting", file=sys.stderr, flush=True)
    from mercer.tour._run import run_chapters

    return run_chapters(Path(out), quick, chapters)
