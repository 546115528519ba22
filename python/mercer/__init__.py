"""Kernels and feature representations as parts you can use: exact, private and fast.

Subpackages load on first use, so that ``import mercer`` costs a numpy user nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mercer._core import __version__

if TYPE_CHECKING:
    from mercer import catalog, density, lsh, nn, ops, private, ranking, reproduce, retrieval, special
    from mercer._backend import backend
    from mercer._versions import show_versions

_SUBPACKAGES = frozenset(
    {"catalog", "density", "lsh", "nn", "ops", "private", "ranking", "reproduce", "retrieval", "special"}
)
_FUNCTIONS = {"backend": "mercer._backend", "show_versions": "mercer._versions"}

__all__ = [
    "__version__",
    "backend",
    "catalog",
    "density",
    "lsh",
    "nn",
    "ops",
    "private",
    "ranking",
    "reproduce",
    "retrieval",
    "show_versions",
    "special",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"mercer.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'mercer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
