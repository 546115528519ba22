"""Neighborhood attention: every token of a 1-, 2- or 3-D grid attends to its nearest neighbours, exactly.

Hassani, Hwu and Shi, "Faster Neighborhood Attention: Reducing the O(n²) Cost of Self Attention at the
Threadblock Level" (NeurIPS 2024). Its unfused operators :func:`neighborhood_qk`, :func:`neighborhood_av` and
:func:`neighborhood_inverse` are parts of their own: attention with given weights over a neighborhood is what
dynamic convolutions are made of.
"""

from mercer.nn.attention.neighborhood._fused import flex_mask_mod, merge_attentions, na1d, na2d, na3d
from mercer.nn.attention.neighborhood._layers import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)
from mercer.nn.attention.neighborhood._nat import NAT, NAT_VARIANTS, nat
from mercer.nn.attention.neighborhood._products import (
    neighborhood_av,
    neighborhood_inverse,
    neighborhood_qk,
)
from mercer.ops import neighbor_indices, neighborhood_mask

__all__ = [
    "NAT",
    "NAT_VARIANTS",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
    "flex_mask_mod",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "nat",
    "neighbor_indices",
    "neighborhood_av",
    "neighborhood_inverse",
    "neighborhood_mask",
    "neighborhood_qk",
]
