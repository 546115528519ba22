"""The NumPy faces of kernels that layers are made of; their torch faces live in :mod:`mercer.nn`.

Neighborhood attention on grids of one to three axes: :func:`na1d`, :func:`na2d`, :func:`na3d`, and its parts.
Depthwise convolution with large kernels: :func:`depthwise_convolution` and its gradient.
"""

from mercer.ops.depthwise import depthwise_convolution, depthwise_method, depthwise_weight_gradient
from mercer.ops.neighborhood import *  # noqa: F403
from mercer.ops.neighborhood import __all__ as _neighborhood

__all__ = [*_neighborhood, "depthwise_convolution", "depthwise_method", "depthwise_weight_gradient"]
