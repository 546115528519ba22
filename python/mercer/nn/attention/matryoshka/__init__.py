"""A key-value cache with fewer numbers a token: orthonormal bases of keys and values, a rank for each head.

Lin, Zeng, Xiao, Kou, Hou, Gao, Zhang, Deng 2025, "MatryoshkaKV: Adaptive KV Compression via Trainable Orthogonal
Projection" (ICLR).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mercer.nn.attention.matryoshka._basis import KVMoments, cayley, cayley_inverse, pca_basis
from mercer.nn.attention.matryoshka._model import MatryoshkaKV
from mercer.nn.attention.matryoshka._projection import (
    KVProjection,
    MatryoshkaAttention,
    fold_output_projection,
    fold_value_projection,
    project_attention,
)
from mercer.nn.attention.matryoshka._train import (
    distillation_loss,
    rank_schedule,
    sample_ranks,
    search_ranks,
)

if TYPE_CHECKING:
    from mercer.nn.attention.matryoshka._cache import CompressedKVCache
    from mercer.nn.attention.matryoshka._distill import Distillation

#: Those that need transformers or Lightning load when asked for.
_LATER = {"CompressedKVCache": "_cache", "Distillation": "_distill"}

__all__ = [
    "CompressedKVCache",
    "Distillation",
    "KVMoments",
    "KVProjection",
    "MatryoshkaAttention",
    "MatryoshkaKV",
    "cayley",
    "cayley_inverse",
    "distillation_loss",
    "fold_output_projection",
    "fold_value_projection",
    "pca_basis",
    "project_attention",
    "rank_schedule",
    "sample_ranks",
    "search_ranks",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"mercer.nn.attention.matryoshka.{_LATER[name]}"), name)
    raise AttributeError(f"module 'mercer.nn.attention.matryoshka' has no attribute {name!r}")
