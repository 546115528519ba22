"""Scatterbrain: softmax attention in linear time, exact where it matters and unbiased elsewhere.

Chen, Dao, Winsor, Song, Rudra and Ré, "Scatterbrain: Unifying Sparse and Low-rank Attention" (NeurIPS 2021). Random
positive features estimate the bulk of exp(t q·k); on a sparse support the estimate is replaced by the exact
value. With no features it is sparse attention (SMYRF, Reformer, local windows), with no support it is
Performer. Below some thousand tokens an exact attention is usually faster: see the guide "Which attention for
which length".
"""

from mercer.nn.attention.scatterbrain._estimator import (
    approximation_error,
    estimated_matrix,
    scatterbrain_attention,
)
from mercer.nn.attention.scatterbrain._features import orthogonal_gaussian, performer_features
from mercer.nn.attention.scatterbrain._layers import (
    DecodeState,
    MultiheadAttention,
    ScatterbrainAttention,
    scatterbrain_packed,
)
from mercer.nn.attention.scatterbrain._supports import smyrf_clusters

__all__ = [
    "DecodeState",
    "MultiheadAttention",
    "ScatterbrainAttention",
    "approximation_error",
    "estimated_matrix",
    "orthogonal_gaussian",
    "performer_features",
    "scatterbrain_attention",
    "scatterbrain_packed",
    "smyrf_clusters",
]
