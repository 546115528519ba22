"""Attention that costs less than n²: exact over neighborhoods, or approximate by sparse and low-rank parts.

Needs torch: ``pip install 'mercer-kernels[torch]'``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mercer.nn.attention import matryoshka, neighborhood, scatterbrain
    from mercer.nn.attention._replace import Replaced, replace
    from mercer.nn.attention._select import Choice, Plan, attention, fit_budget

_FROM = {
    "Choice": "_select",
    "Plan": "_select",
    "Replaced": "_replace",
    "attention": "_select",
    "fit_budget": "_select",
    "replace": "_replace",
}

__all__ = [
    "Choice",
    "Plan",
    "Replaced",
    "attention",
    "fit_budget",
    "matryoshka",
    "neighborhood",
    "replace",
    "scatterbrain",
]


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(f"mercer.nn.attention.{_FROM[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"mercer.nn.attention.{name}")
    raise AttributeError(f"module 'mercer.nn.attention' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
