"""Logarithms, ratios and derivatives of the modified Bessel functions I_v(x) and K_v(x)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mercer import _core
from mercer._backend import is_reference

__all__ = [
    "dlog_iv_dv",
    "dlog_kv_dv",
    "iv_ratio",
    "iv_ratio_complement",
    "iv_ratio_inverse",
    "kv_ratio",
    "log_iv",
    "log_iv_derivatives",
    "log_ive",
    "log_kv",
    "log_kv_derivatives",
    "log_kv_ratio",
    "log_kve",
]


def log_iv(v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None) -> Any:
    """Logarithm of the modified Bessel function of the first kind, log I_v(x).

    Every intermediate is a logarithm, so nothing over- or underflows: the result is finite wherever the
    logarithm is, for orders and arguments up to 1e308 and down to the smallest subnormal. The error is a few
    units in the last place of ``max(1, |log I|)``, also near the curve where log I crosses zero.

    Args:
        v: Order, >= 0; negative whole numbers are allowed (I_{-n} = I_n).
        x: Argument, >= 0. Broadcasts against `v`.
        out: Where to put the result: of the broadcast shape, float32 or float64.
        threads: Threads to use, >= 1. Default: ``MERCER_NUM_THREADS``, else every core. The result does not
            depend on it.

    Returns:
        float32 if both arguments are (Python numbers follow the other), else float64. NaN where an argument
        is NaN. log I_0(0) = 0, log I_v(0) = -inf for v > 0, +inf at x = inf.

    Raises:
        ValueError: If some x is negative or some v is negative and not whole; names the first.
        TypeError: If an argument is not of real numbers.

    Note:
        5 to 9 ns a point and thread where AVX-512 is available; no memory beyond the result but for operands that
        must be broadcast. Plan: Plesner, Sørensen, Hauberg (ICS 2024); expansions: DLMF 10.25.2 and 10.41.3.

    Example:
        >>> from mercer.special import log_iv
        >>> import scipy.special
        >>> float(scipy.special.iv(2000.0, 3.0))
        0.0
        >>> print(f"{log_iv(2000.0, 3.0):.10f}")
        -12395.5930098600
    """
    return _elementwise("log_iv", v, x, out, threads)


def log_ive(v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None) -> Any:
    """Logarithm of the exponentially scaled function of the first kind, log(exp(-x) I_v(x)).

    The scale is taken off analytically, not subtracted from `log_iv`: at x = 1e8 the result keeps all its
    digits where the subtraction would keep eight. Arguments, errors and cost as for `log_iv`; the limit at
    x = inf is -inf.

    Example:
        >>> from mercer.special import log_ive
        >>> print(f"{log_ive(0.0, 1e8):.13f}")
        -10.1292789039309
    """
    return _elementwise("log_ive", v, x, out, threads)


def log_kv(v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None) -> Any:
    """Logarithm of the modified Bessel function of the second kind, log K_v(x).

    Finite wherever the logarithm is. Arguments, errors and accuracy as for `log_iv`, but that every real order
    is allowed (K is even in v). +inf at x = 0, -inf at x = inf. 5 to 15 ns a point and thread with AVX-512.

    Source: DLMF 10.41.4 for hypot(v, x) >= 25; below it the trapezoid rule on DLMF 10.32.9, for x < 1
    Temme (J. Comput. Phys. 19, 1975, 324), with the forward recurrence in v.

    Example:
        >>> from mercer.special import log_kv
        >>> import math
        >>> math.isclose(log_kv(0.5, 3.0), 0.5 * math.log(math.pi / 6) - 3)
        True
    """
    return _elementwise("log_kv", v, x, out, threads)


def log_kve(v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None) -> Any:
    """Logarithm of the exponentially scaled function of the second kind, log(exp(x) K_v(x)).

    The scale is taken off analytically. Arguments, errors and cost as for `log_kv`.

    Example:
        >>> from mercer.special import log_kve
        >>> print(f"{log_kve(0.5, 1e12):.12f}")
        -13.589719205320
    """
    return _elementwise("log_kve", v, x, out, threads)


def iv_ratio(v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None) -> Any:
    """Ratio I_{v+1}(x) / I_v(x), in [0, 1), for v >= 0 and x >= 0.

    The mean resultant length of a von Mises-Fisher distribution in d dimensions is ``iv_ratio(d/2 - 1, kappa)``.
    Relative error below 4e-15. 0 at x = 0, 1 at x = inf. ``out``, ``threads`` and errors as for `log_iv`; a
    negative order raises. For a ratio near one see `iv_ratio_complement`.

    Source: quotient of the expansions DLMF 10.41.3 and 10.41.9; backward recurrence below hypot(v, x) = 25.

    Example:
        >>> from mercer.special import iv_ratio
        >>> import math
        >>> math.isclose(iv_ratio(0.5, 2.0), 1 / math.tanh(2.0) - 1 / 2.0)
        True
    """
    return _elementwise("iv_ratio", v, x, out, threads)


def iv_ratio_complement(
    v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None
) -> Any:
    """One less the ratio, 1 - I_{v+1}(x) / I_v(x), with all its digits where the ratio is near one.

    Relative error below 1e-13. Arguments as for `iv_ratio`.

    Example:
        >>> from mercer.special import iv_ratio, iv_ratio_complement
        >>> print(f"{iv_ratio_complement(0.5, 1e15):.10e}")
        1.0000000000e-15
    """
    return _elementwise("iv_ratio_complement", v, x, out, threads)


def kv_ratio(v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None) -> Any:
    """Ratio K_{v+1}(x) / K_v(x), above 1, for v >= 0 and x >= 0.

    +inf at x = 0, 1 at x = inf. ``out``, ``threads`` and errors as for `log_iv`; a negative order raises.
    Relative error below 4e-15.

    Example:
        >>> from mercer.special import kv_ratio
        >>> import math
        >>> math.isclose(kv_ratio(0.5, 4.0), 1.25)
        True
    """
    return _elementwise("kv_ratio", v, x, out, threads)


def log_kv_ratio(
    v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None
) -> Any:
    """Logarithm of K_{v+1}(x) / K_v(x), also where the ratio leaves float64. Arguments as for `kv_ratio`.

    Example:
        >>> from mercer.special import log_kv_ratio
        >>> print(f"{log_kv_ratio(1e300, 1e-300):.10f}")
        1382.2442029770
    """
    return _elementwise("log_kv_ratio", v, x, out, threads)


def dlog_iv_dv(v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None) -> Any:
    """Derivative in the order, d/dv log I_v(x), for v >= 0 and x >= 0.

    Absolute error below 1e-11 max(1, |value|), in practice 1e-14. -inf at x = 0. ``out``, ``threads`` and
    errors as for `log_iv`; a negative order raises.

    Source: the expansion DLMF 10.41.3 and the series DLMF 10.25.2, differentiated term by term.

    Example:
        >>> from mercer.special import dlog_iv_dv, log_iv
        >>> slope = (log_iv(7.001, 3.0) - log_iv(6.999, 3.0)) / 0.002
        >>> abs(dlog_iv_dv(7.0, 3.0) - slope) < 1e-7
        np.True_
    """
    return _elementwise("dlog_iv_dv", v, x, out, threads)


def dlog_kv_dv(v: ArrayLike, x: ArrayLike, *, out: NDArray | None = None, threads: int | None = None) -> Any:
    """Derivative in the order, d/dv log K_v(x), for any real v and x >= 0; odd in v.

    Accuracy, ``out``, ``threads`` and errors as for `dlog_iv_dv`. +inf at x = 0 for v > 0.

    Example:
        >>> from mercer.special import dlog_kv_dv
        >>> float(dlog_kv_dv(0.0, 3.0))
        0.0
    """
    return _elementwise("dlog_kv_dv", v, x, out, threads)


def log_iv_derivatives(
    v: ArrayLike, x: ArrayLike, order: int = 1, *, out: NDArray | None = None, threads: int | None = None
) -> Any:
    """Derivatives of log I_v(x) in x, the first to the one of `order`.

    Args:
        v, x: Order and argument as in `log_iv`.
        order: How many derivatives, 1 to 4.
        out: Where to put the result, of the shape and dtype described below.
        threads: As in `log_iv`.

    Returns:
        Shape ``(order, *broadcast)``: entry ``[k - 1]`` is the k-th derivative. Each within 1e-10 relative or
        1e-13 absolute. At x = 0 the one-sided limit.

    Note:
        (log I_v)' = v/x + I_{v+1}/I_v; the ratio is differentiated by r' = r (1/x + r_{v+1} - r_v), in which
        nothing cancels for small x. Cost: about 10 ns a point, derivative and thread with AVX-512.

    Example:
        >>> from mercer.special import log_iv_derivatives
        >>> import math
        >>> first, second = log_iv_derivatives(0.5, 2.0, order=2)
        >>> math.isclose(first, 1 / math.tanh(2.0) - 0.25)
        True
    """
    return _derivatives("log_iv", v, x, order, out, threads)


def log_kv_derivatives(
    v: ArrayLike, x: ArrayLike, order: int = 1, *, out: NDArray | None = None, threads: int | None = None
) -> Any:
    """Derivatives of log K_v(x) in x, the first to the one of `order`; as `log_iv_derivatives`.

    (log K_v)' = -v/x - K_{v-1}/K_v, the quotient h differentiated by h' = h^2 + (2v-1) h/x - 1.

    Example:
        >>> from mercer.special import log_kv_derivatives
        >>> log_kv_derivatives(0.5, 2.0, order=3)  # log K_1/2 = log(pi / (2 x)) / 2 - x
        array([-1.25 ,  0.125, -0.125])
    """
    return _derivatives("log_kv", v, x, order, out, threads)


def iv_ratio_inverse(
    v: ArrayLike,
    r: ArrayLike,
    *,
    complement: ArrayLike | None = None,
    out: NDArray | None = None,
    threads: int | None = None,
) -> Any:
    """Argument x at which I_{v+1}(x) / I_v(x) = r.

    The concentration of a von Mises-Fisher distribution in d dimensions with mean resultant length R is
    ``iv_ratio_inverse(d/2 - 1, R)``.

    Args:
        v: Order, >= 0.
        r: The ratio, in [0, 1]. 0 gives 0 and 1 gives +inf.
        complement: 1 - r where it is known with more digits than `r` can hold; default: ``1 - r``.
        out, threads: As in `log_iv`.

    Returns:
        Relative error about 4e-16 / (1 - r), which is what the last bit of `r` is worth.

    Raises:
        ValueError: If some v is negative or some r is outside [0, 1]; names the first.

    Note:
        Newton's method inside Amos's bounds (Math. Comp. 28, 1974, 239); about 1 us a point.

    Example:
        >>> from mercer.special import iv_ratio, iv_ratio_inverse
        >>> print(f"{iv_ratio_inverse(191.0, iv_ratio(191.0, 250.0)):.9f}")
        250.000000000
    """
    rest = () if complement is None else (complement,)
    names = ("v", "r", "complement")
    arrays, dtype = _real_arrays(names, (v, r, *rest))
    threads = _threads(threads)
    _refuse_negative("v", arrays[0], threads)
    for name, array in zip(names[1:], arrays[1:], strict=False):
        _refuse_negative(name, array, threads)
        above = np.flatnonzero(array > 1)
        if above.size:
            at = np.unravel_index(above[0], array.shape)
            raise ValueError(f"{name} must be in [0, 1], got {array[at]}{_where(at)}")
    arrays = [np.asarray(a, np.float64) for a in arrays]
    if complement is None:
        arrays.append(1.0 - arrays[1])
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    result = _result(out, shape, dtype)
    if is_reference():
        from mercer.special import _reference

        result[...] = _reference.iv_ratio_inverse(*arrays)
        return _finish(out, result)
    flat = np.empty(result.size)
    operands = [_operand(a, shape, np.dtype(np.float64)) for a in arrays]
    if flat.size:
        orders, ratios, rests = operands
        _core.bessel_ratio_inverse(orders, ratios, rests, flat, threads)
    result[...] = flat.reshape(shape)
    return _finish(out, result)


_EVERY_ORDER = frozenset({"log_kv", "log_kve", "dlog_kv_dv"})
_WHOLE_NEGATIVE_ORDERS = frozenset({"log_iv", "log_ive"})


def _elementwise(name: str, v: ArrayLike, x: ArrayLike, out: NDArray | None, threads: int | None) -> Any:
    (v, x), dtype = _real_arrays(("v", "x"), (v, x))
    threads = _threads(threads)
    shape = v.shape if v.shape == x.shape else np.broadcast_shapes(v.shape, x.shape)
    result = _result(out, shape, dtype)
    if out is not None:
        _check_domain(name, v, x, threads)  # before anything is written
    if _fill(name, v, x, result, dtype, threads):
        _check_domain(name, v, x, threads)
    return _finish(out, result)


def _derivatives(
    name: str, v: ArrayLike, x: ArrayLike, order: int, out: NDArray | None, threads: int | None
) -> Any:
    if isinstance(order, bool) or not isinstance(order, int | np.integer) or not 1 <= order <= 4:
        raise ValueError(f"order must be a whole number from 1 to 4, got {order!r}")
    (v, x), dtype = _real_arrays(("v", "x"), (v, x))
    threads = _threads(threads)
    _check_domain(name, v, x, threads)
    shape = (int(order), *np.broadcast_shapes(v.shape, x.shape))
    result = _result(out, shape, dtype)
    # Into a fresh array first where the operands would be overwritten between two derivatives.
    shared = out is not None and (np.may_share_memory(out, v) or np.may_share_memory(out, x))
    fresh = np.empty(shape, dtype) if shared else result
    for k in range(int(order)):
        _fill(f"{name}_dx{k + 1}", v, x, fresh[k, ...], dtype, threads)
    if shared:
        result[...] = fresh
    return result


def _fill(name: str, v: NDArray, x: NDArray, result: NDArray, dtype: np.dtype, threads: int) -> bool:
    """Write f(v, x) over `result`, directly where its memory allows; whether some v or x is negative."""
    if is_reference():
        from mercer.special import _reference

        result[...] = _reference.evaluate(name, v, x)
        return False
    direct = (
        result.dtype == dtype
        and result.flags.c_contiguous
        and result.flags.aligned
        and not np.may_share_memory(result, v)
        and not np.may_share_memory(result, x)
    )
    flat = result.reshape(-1) if direct else np.empty(result.size, dtype)
    negative = False
    if flat.size:
        v, x = _operand(v, result.shape, dtype), _operand(x, result.shape, dtype)
        negative = _core.bessel(name, v, x, flat, threads)
    if not direct:
        result[...] = flat.reshape(result.shape)
    return negative


def _real_arrays(names: tuple[str, ...], values: tuple[ArrayLike, ...]) -> tuple[list[NDArray], np.dtype]:
    """The arguments as arrays, and the dtype of the result: float32 if all are, else float64."""
    arrays = []
    for name, value in zip(names, values, strict=False):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
        arrays.append(array)
    # Python numbers take part with their value's kind only, as in numpy's own functions.
    kinds = [v if type(v) in (int, float, bool) else a.dtype for v, a in zip(values, arrays, strict=False)]
    narrow = np.result_type(*kinds) in (np.float32, np.float16) and any(
        isinstance(k, np.dtype) for k in kinds
    )
    return arrays, np.dtype(np.float32 if narrow else np.float64)


def _check_domain(name: str, v: NDArray, x: NDArray, threads: int) -> None:
    _refuse_negative("x", x, threads)
    if name in _EVERY_ORDER:
        return
    first = _first_negative(v, threads)
    if first is None:
        return
    if name in _WHOLE_NEGATIVE_ORDERS:
        broken = np.flatnonzero((v < 0) & (v != np.floor(v)))
        if broken.size:
            at = np.unravel_index(broken[0], v.shape)
            raise ValueError(f"v must be >= 0 or a whole number, got {v[at]}{_where(at)}")
        return
    _refuse_negative("v", v, threads)


def _refuse_negative(name: str, array: NDArray, threads: int) -> None:
    first = _first_negative(array, threads)
    if first is not None:
        at = np.unravel_index(first, array.shape)
        raise ValueError(f"{name} must be >= 0, got {array[at]}{_where(at)}")


def _first_negative(array: NDArray, threads: int) -> int | None:
    if array.dtype in (np.float32, np.float64) and array.dtype.isnative and array.flags.c_contiguous:
        return _core.first_negative(array.reshape(-1), threads)
    negative = np.flatnonzero(array < 0)
    return int(negative[0]) if negative.size else None


def _where(at: tuple[Any, ...]) -> str:
    index = ", ".join(str(int(i)) for i in at)
    return f" at index {index}" if index else ""


def _operand(array: NDArray, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """Flat and contiguous: one element, or as many as the result."""
    if array.size == 1:
        return np.ascontiguousarray(array, dtype).reshape(1)
    return np.ascontiguousarray(np.broadcast_to(array, shape), dtype).reshape(-1)


def _result(out: NDArray | None, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an ndarray, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if out.dtype not in (np.float32, np.float64):
        raise TypeError(f"out must be float32 or float64, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable")
    return out


def _finish(out: NDArray | None, result: NDArray) -> Any:
    return result[()] if out is None else out


def _threads(threads: int | None) -> int:
    if threads is None:
        return _core.num_threads()
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or threads < 1:
        raise ValueError(f"threads must be a whole number >= 1, got {threads!r}")
    return int(threads)
