"""Kernels and feature representations as parts you can use: exact, private and fast.

Subpackages load on first use, so that ``import mercer`` costs a numpy user nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mercer._core import __version__

if TYPE_CHECKING:
    from mercer import density, nn, special

_SUBPACKAGES = frozenset({"catalog", "density", "nn", "reproduce", "special"})

__all__ = ["__version__", "density", "nn", "special"]


def __getattr__(name: str):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"mercer.{name}")
    raise AttributeError(f"module 'mercer' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_SUBPACKAGES} - {"_SUBPACKAGES", "importlib", "annotations"})
