"""The torch side of mercer: special functions, distributions and layers that take part in autograd.

Needs torch: ``pip install 'mercer-kernels[torch]'``. Nothing outside this package and the models made from it
imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("mercer.nn needs torch: pip install 'mercer-kernels[torch]'") from error

if TYPE_CHECKING:
    from mercer.nn import attention, conv, density, distributions, layers, retrieval, special

__all__ = ["attention", "conv", "density", "distributions", "layers", "retrieval", "special"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"mercer.nn.{name}")
    raise AttributeError(f"module 'mercer.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
