"""What hypothesis draws for arrays: every dtype, shape, stride and magnitude that a caller may hand over.

    @given(strategies.arrays(min_value=0))
    def test_ratio_lies_in_the_unit_interval(x): ...

Magnitudes are drawn by their exponent, so that subnormals, 1e-200 and 1e300 are as likely as numbers near
one; a uniform draw would never leave the top of the range.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DTYPES = (np.float32, np.float64)
LAYOUTS = ("C", "F", "reversed", "strided", "offset", "read-only")
ROWS, DIM = st.integers(1, 20), st.integers(2, 64)


def dtypes():
    """float32 or float64."""
    return st.sampled_from(DTYPES).map(np.dtype)


def shapes(max_dims=3, max_side=6):
    """Shapes with 0-d and empty ones among them."""
    return st.just(()) | hnp.array_shapes(max_dims=max_dims, min_side=0, max_side=max_side)


@st.composite
def floats(draw, dtype=np.float64, min_value=None, max_value=None, nan=False, inf=False):
    """Numbers of a dtype in [min_value, max_value], uniform in their exponent, with the edges among them."""
    info = np.finfo(dtype)
    low = float(info.min if min_value is None else _rounded_inwards(dtype, min_value, +np.inf))
    high = float(info.max if max_value is None else _rounded_inwards(dtype, max_value, -np.inf))
    tiny, least = float(info.tiny), float(info.smallest_subnormal)
    edges = [0.0, -0.0, 1.0, -1.0, low, high, least, -least, tiny, -tiny, float(info.eps)]
    edges += [np.nan] * nan + [np.inf, -np.inf] * inf
    edges = [x for x in edges if np.isnan(x) or low <= x <= high or (np.isinf(x) and _outside(x, low, high))]
    exponent = st.integers(int(np.log2(least)), int(info.maxexp) - 1)
    mantissa = st.floats(1.0, 2.0, exclude_max=True)
    sign = st.sampled_from([s for s in (1.0, -1.0) if (high > 0 if s > 0 else low < 0)] or [1.0])
    scaled = st.builds(
        lambda s, m, e: float(np.clip(s * np.ldexp(m, e), low, high)), sign, mantissa, exponent
    )
    return draw(st.sampled_from(edges) | scaled if edges else scaled)


def _rounded_inwards(dtype, bound, inwards):
    nearest = np.dtype(dtype).type(bound)
    outside = float(nearest) > bound if inwards < 0 else float(nearest) < bound
    return np.nextafter(nearest, nearest.dtype.type(inwards)) if outside else nearest


def _outside(x, low, high):
    """An infinity is drawn only on a side that the caller left open."""
    return high >= float(np.finfo(np.float32).max) if x > 0 else low <= float(np.finfo(np.float32).min)


@st.composite
def arrays(
    draw, dtype=None, shape=None, min_value=None, max_value=None, nan=False, inf=False, layouts=LAYOUTS
):
    """Arrays of `floats`; dtype and shape are drawn unless given (a value or a strategy)."""
    dtype = np.dtype(draw(_given(dtype, dtypes())))
    shape = draw(_given(shape, shapes()))
    elements = floats(dtype, min_value, max_value, nan, inf).map(dtype.type)
    return draw(laid_out(draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing())), layouts))


def _given(value, default):
    if value is None:
        return default
    return value if isinstance(value, st.SearchStrategy) else st.just(value)


@st.composite
def laid_out(draw, array, layouts=LAYOUTS):
    """The same values in another memory layout."""
    layout = draw(st.sampled_from(layouts))
    if layout == "F":
        return np.array(array, order="F")
    if layout == "reversed":
        backwards = (..., *(slice(None, None, -1),) * array.ndim)
        return np.array(array[backwards], order="C")[backwards]
    if layout == "strided":
        wide = np.full(tuple(2 * n for n in array.shape), -1, dtype=array.dtype)
        view = wide[(..., *(slice(None, None, 2),) * array.ndim)]
        view[...] = array
        return view
    if layout == "offset":  # a view whose data do not begin on a cache line or a vector's width
        raw = np.empty(array.size + 1, dtype=array.dtype)[1:].reshape(array.shape)
        raw[...] = array
        return raw
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


@st.composite
def broadcastable(draw, count=2, **options):
    """`count` arrays whose shapes broadcast together, each with its own layout."""
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, max_side=4, min_side=0))
    return tuple(draw(arrays(shape=shape, **options)) for shape in drawn.input_shapes)


@st.composite
def unit_vectors(draw, dtype=np.float64, rows=ROWS, dim=DIM, layouts=LAYOUTS):
    """(rows, dim) of unit length, sometimes on an axis, sometimes all alike, sometimes in opposite pairs."""
    n, d = draw(rows), draw(dim)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((n, d))
    kind = draw(st.sampled_from(["free", "axes", "alike", "opposite"]))
    if kind == "axes":
        x = np.eye(d)[rng.integers(d, size=n)] * rng.choice([-1.0, 1.0], size=(n, 1))
    elif kind == "alike":
        x[:] = x[0]
    elif kind == "opposite":
        x[1::2] = -x[0 : 2 * (n // 2) : 2]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return draw(laid_out(x.astype(dtype), layouts))
