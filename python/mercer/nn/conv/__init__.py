"""Convolutions with large, parallel or dynamic kernels: one part for every backbone that is made from them.

- :func:`depthwise_conv2d`, :class:`DepthwiseConv2d`: large depthwise kernels, fast on the CPU in both directions;
  :func:`explain` says which algorithm a size gets.
- :class:`DilatedReparamBlock`, :func:`merge_branches`, :func:`fuse_bn`, :func:`dilate_kernel`: parallel branches and
  the one kernel that they are.
- :class:`InceptionDWConv2d`: three small kernels on some channels.
- :class:`ContMixBlock`, :func:`contmix`: kernels made for each pixel from a look at the whole map.
"""

from mercer.nn.conv._contmix import OVERLOCK_BRANCHES, ContextMixing, ContMixBlock, contmix
from mercer.nn.conv._depthwise import DepthwiseConv2d, ResidualDepthwiseConv2d, depthwise_conv2d, explain
from mercer.nn.conv._inception import InceptionDWConv2d
from mercer.nn.conv._reparam import (
    BRANCHES,
    DilatedReparamBlock,
    dilate_kernel,
    fold_norm,
    fuse_bn,
    merge_branches,
    warn_if_unseen,
)

__all__ = [
    "BRANCHES",
    "ContMixBlock",
    "ContextMixing",
    "DepthwiseConv2d",
    "DilatedReparamBlock",
    "InceptionDWConv2d",
    "OVERLOCK_BRANCHES",
    "ResidualDepthwiseConv2d",
    "contmix",
    "depthwise_conv2d",
    "dilate_kernel",
    "explain",
    "fold_norm",
    "fuse_bn",
    "merge_branches",
    "warn_if_unseen",
]
