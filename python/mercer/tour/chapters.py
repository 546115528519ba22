"""The chapters, in the order they are run and shown. A new one is a module and a line here."""

from __future__ import annotations

from mercer.tour import attention, backbones, columns, density, directions, private_density, search
from mercer.tour.chapter import Chapter

CHAPTERS: tuple[Chapter, ...] = (
    directions.CHAPTER,
    density.CHAPTER,
    private_density.CHAPTER,
    columns.CHAPTER,
    attention.CHAPTER,
    search.CHAPTER,
    backbones.CHAPTER,
)
