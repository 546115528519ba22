"""What runs here: the first thing to put in a bug report."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

_OPTIONAL = (
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "cupy-cuda12x",
    "usearch",
    "pyarrow",
    "polars",
    "tokenizers",
    "dask",
    "typer",
    "rich",
    "matplotlib",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """The versions of mercer, Python, numpy, scipy and the optional packages installed here; imports none.

    >>> {"mercer", "SIMD", "numpy", "scipy"} <= versions().keys()
    True
    """
    from mercer import _core

    found = {
        "mercer": _core.__version__,
        "SIMD": _core.simd_level() if hasattr(_core, "simd_level") else "unknown",
        "threads": f"{_core.num_threads()} of {os.cpu_count()}",
        "python": f"{platform.python_version()} ({platform.python_implementation()}{_threading()})",
        "platform": platform.platform(),
    }
    for package in ("numpy", "scipy", *_OPTIONAL):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def show_versions() -> None:
    """Print `versions()`, the optional packages that are missing, and the CUDA devices if torch knows some.

    Imports torch where it is installed (a second or two).
    """
    found = versions()
    for name, value in found.items():
        print(f"{name:14} {value}")
    print(f"{'CUDA':14} {_cuda()}")
    missing = [package for package in _OPTIONAL if package not in found]
    if missing:
        print(f"{'not installed':14} {', '.join(missing)}")


def _threading() -> str:
    return ", free-threaded" if not getattr(sys, "_is_gil_enabled", lambda: True)() else ""


def _cuda() -> str:
    try:
        import torch
    except ImportError:
        return "unknown (torch is not installed)"
    if not torch.cuda.is_available():
        return "no device"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
