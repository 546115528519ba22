import numpy as np
import pytest

from mercer.ops._memory import HUGE, empty


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (1 << 18, 2), (1 << 19,), (600, 1001)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_arrays_begin_at_a_large_page(shape, dtype):
    made = empty(shape, np.dtype(dtype))
    assert made.shape == shape and made.dtype == dtype
    assert made.flags.c_contiguous and made.flags.writeable and made.flags.aligned
    if made.nbytes >= HUGE:
        assert made.__array_interface__["data"][0] % HUGE == 0
    made[...] = 1
    assert made.sum() == made.size
