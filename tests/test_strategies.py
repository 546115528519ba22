"""The strategies draw what they promise, and reach what they are for."""

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st

import strategies


@given(st.data(), strategies.dtypes())
def test_values_stay_in_their_range(data, dtype):
    x = data.draw(strategies.arrays(dtype=dtype, min_value=0, max_value=0.1))
    assert x.dtype == dtype
    assert np.all((x >= 0) & (x.astype(float) <= 0.1))


@given(strategies.arrays(nan=False, inf=False))
def test_values_are_finite_unless_asked(x):
    assert np.all(np.isfinite(x))


@given(st.data(), strategies.arrays(layouts=("C",), nan=True, inf=True))
def test_a_layout_changes_no_value(data, x):
    assert np.array_equal(data.draw(strategies.laid_out(x)), x, equal_nan=True)


@given(strategies.broadcastable(count=3))
def test_broadcastable_arrays_broadcast(arrays):
    np.broadcast_shapes(*(x.shape for x in arrays))


@given(strategies.unit_vectors())
def test_unit_vectors_have_unit_length(x):
    assert np.allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-14)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda x: x.ndim == 0,
        lambda x: x.size == 0,
        lambda x: np.any(np.isnan(x)),
        lambda x: np.any(np.isposinf(x)),
        lambda x: np.any((x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)),
        lambda x: x.dtype == np.float64 and np.any((np.abs(x) > 1e200) & np.isfinite(x)),
        lambda x: x.dtype == np.float64 and np.any((np.abs(x) < 1e-100) & (np.abs(x) > 1e-250)),
        lambda x: any(stride < 0 for stride in x.strides),
        lambda x: x.size > 1 and not x.flags.c_contiguous and not x.flags.f_contiguous,
        lambda x: not x.flags.writeable,
    ],
    ids=["0-d", "empty", "nan", "inf", "subnormal", "huge", "small", "reversed", "strided", "read-only"],
)
def test_every_kind_of_array_is_reached(wanted):
    find(strategies.arrays(nan=True, inf=True), wanted)
