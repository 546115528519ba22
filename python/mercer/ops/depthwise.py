"""Depthwise convolution of maps with large odd kernels, "same" zero padding, stride 1, and its gradients, in NumPy.

Maps are (B, C, H, W) of any strides (planes, or channels last as in `x.transpose(0, 3, 1, 2)`), kernels (C, kh, kw).
The direct method keeps channels in the lanes of a vector and skips taps outside the map; past a size that
:func:`depthwise_method` knows, Fourier transforms take over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mercer import _checks, _core
from mercer._backend import is_reference

__all__ = ["depthwise_convolution", "depthwise_method", "depthwise_weight_gradient"]

METHODS = ("auto", "direct", "fourier")


def depthwise_convolution(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    turned: bool = False,
    dilation: int = 1,
    method: str = "auto",
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """out[n, c, i, j] = bias[c] + sum over a, b of kernel[c, a, b] x[n, c, i + (a - kh // 2) r, j + (b - kw // 2) r].

    Args:
        x: (B, C, H, W), float32 or float64.
        kernel: (C, kh, kw) of the same dtype, both odd.
        bias: (C,) or None.
        turned: Turn the kernel round: with the gradient of the output for x, this is the gradient of the input.
        dilation: r, pixels from one tap to the next.
        method: "direct", "fourier" or "auto"; dilated kernels are always direct.
        threads: As everywhere.
        out: Where to, like `x`; a new array with the strides' order of `x` by default.

    Raises:
        ValueError: Shapes that do not fit, even kernels, NaN is not looked for.

    Cost: about B C H W kh kw multiply-adds, less those outside the map; the transforms O(B C N log N), N = (H + kh/2)
    (W + kw/2).

    Example:
        >>> depthwise_convolution(np.ones((1, 1, 3, 3)), np.ones((1, 3, 3)))[0, 0]
        array([[4., 6., 4.],
               [6., 9., 6.],
               [4., 6., 4.]])
    """
    x, kernel = _maps("x", x), _kernels("kernel", kernel)
    _checks.choice("method", method, METHODS)
    dilation = _checks.integer("dilation", dilation, 1)
    if kernel.shape[0] != x.shape[1] or kernel.dtype != x.dtype:
        raise ValueError(
            f"kernel must be ({x.shape[1]}, kh, kw) of dtype {x.dtype} to fit x, got {kernel.shape} of {kernel.dtype}"
        )
    if bias is not None:
        bias = np.ascontiguousarray(bias, dtype=x.dtype)
        if bias.shape != x.shape[1:2]:
            raise ValueError(f"bias must have shape {x.shape[1:2]}, got {bias.shape}")
    out = np.empty_like(x) if out is None else out
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(f"out must be {x.shape} of dtype {x.dtype}, got {out.shape} of {out.dtype}")
    if is_reference():
        out[...] = _reference(x, kernel[:, ::-1, ::-1] if turned else kernel, bias, dilation)
        return out
    how = None if method == "auto" else method
    _core.depthwise_convolve(
        x, np.ascontiguousarray(kernel), bias, turned, out, dilation, how, _checks.threads("threads", threads)
    )
    return out


def depthwise_weight_gradient(
    x: Any,
    gradient: Any,
    kernel_size: tuple[int, int],
    *,
    dilation: int = 1,
    method: str = "auto",
    threads: int | None = None,
) -> np.ndarray:
    """out[c, a, b] = sum over n, i, j of gradient[n, c, i, j] x[n, c, i + (a - kh // 2) r, j + (b - kw // 2) r].

    Args:
        x: (B, C, H, W), the input of the convolution.
        gradient: (B, C, H, W), of a loss in its output.
        kernel_size: (kh, kw), odd.
        dilation, method, threads: As in :func:`depthwise_convolution`.

    Example:
        >>> x = np.ones((1, 1, 3, 3))
        >>> depthwise_weight_gradient(x, x, (3, 3))[0]
        array([[4., 6., 4.],
               [6., 9., 6.],
               [4., 6., 4.]])
    """
    x, gradient = _maps("x", x), _maps("gradient", gradient)
    _checks.choice("method", method, METHODS)
    dilation = _checks.integer("dilation", dilation, 1)
    if gradient.shape != x.shape or gradient.dtype != x.dtype:
        raise ValueError(
            f"gradient must be {x.shape} of dtype {x.dtype}, like x, got {gradient.shape} of {gradient.dtype}"
        )
    out = np.zeros((x.shape[1], *_size(kernel_size)), x.dtype)
    if is_reference():
        kh, kw = out.shape[1:]
        windows = _windows_of(x, kh, kw, dilation)
        return np.einsum("ncijab,ncij->cab", windows, gradient)
    how = None if method == "auto" else method
    _core.depthwise_weight_gradient(x, gradient, out, dilation, how, _checks.threads("threads", threads))
    return out


def depthwise_method(shape: tuple[int, int, int, int], kernel_size: tuple[int, int]) -> str:
    """What "auto" is for maps of this shape: "direct" or "fourier".

    Example:
        >>> depthwise_method((8, 80, 28, 28), (13, 13)), depthwise_method((1, 8, 512, 512), (127, 127))
        ('direct', 'fourier')
    """
    return _core.depthwise_method(list(shape), _size(kernel_size))


def machine() -> str:
    """The vector instructions and the number of threads in use."""
    return f"{_core.simd_level()}, {_core.num_threads()} threads"


def _reference(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None, dilation: int) -> np.ndarray:
    y = np.einsum("ncijab,cab->ncij", _windows_of(x, kernel.shape[1], kernel.shape[2], dilation), kernel)
    return y if bias is None else y + bias[:, None, None]


def _windows_of(x: np.ndarray, kh: int, kw: int, r: int) -> np.ndarray:
    """What each tap sees, (B, C, H, W, kh, kw)."""
    padded = np.pad(x, ((0, 0), (0, 0), (kh // 2 * r, kh // 2 * r), (kw // 2 * r, kw // 2 * r)))
    size = ((kh - 1) * r + 1, (kw - 1) * r + 1)
    return np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))[..., ::r, ::r]


def _maps(name: str, value: Any) -> np.ndarray:
    array = _checks.real_array(name, value)
    if array.ndim != 4 or 0 in array.shape[2:]:
        raise ValueError(f"{name} must be (B, C, H, W) with pixels, got shape {array.shape}")
    if any(step <= 0 for step, n in zip(array.strides, array.shape, strict=True) if n > 1):
        return np.ascontiguousarray(array)
    return array


def _kernels(name: str, value: Any) -> np.ndarray:
    array = _checks.real_array(name, value)
    if array.ndim != 3:
        raise ValueError(f"{name} must be (C, kh, kw), got shape {array.shape}")
    _size(array.shape[1:])
    return array


def _size(kernel_size: tuple[int, ...]) -> tuple[int, int]:
    kh, kw = (_checks.integer("kernel_size", k, 1) for k in kernel_size)
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {(kh, kw)}")
    return kh, kw
