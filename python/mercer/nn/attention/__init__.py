"""Attention that costs less than n²: exact over neighborhoods, or approximate by sparse and low-rank parts.

Needs torch: ``pip install 'mercer-kernels[torch]'``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mercer.nn.attention import neighborhood

__all__ = ["neighborhood"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"mercer.nn.attention.{name}")
    raise AttributeError(f"module 'mercer.nn.attention' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
