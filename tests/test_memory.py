import gc
import threading

import numpy as np
import pytest

from mercer import _memory
from mercer._memory import HUGE, _Shelf, empty


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


@pytest.fixture
def shelf(monkeypatch):
    shelf = _Shelf(4 * HUGE)
    monkeypatch.setattr(_memory, "_shelf", shelf)
    return shelf


def kept(shelf):
    gc.collect()
    return sorted(room.nbytes // HUGE for room in shelf._rooms)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_with_the_last_view_of_an_array(shelf):
    made = empty((1 << 19,), np.dtype(np.float32))
    where, view = address(made), made.reshape(2, -1)[1]
    del made
    assert kept(shelf) == []
    assert address(empty((3 << 18,), np.dtype(np.float32))) != where
    del view
    assert kept(shelf) == [1, 2]
    again = empty((1 << 18,), np.dtype(np.float64))
    assert address(again) == where and kept(shelf) == [2]


def test_two_arrays_never_share_memory(shelf):
    made = [empty((1 << 19,), np.dtype(np.float32)) for _ in range(5)]
    for i, array in enumerate(made):
        array[:] = i
    made.pop(2)
    made.append(empty((1 << 19,), np.dtype(np.float32)))
    made[-1][:] = 5
    assert [set(array.tolist()) for array in made] == [{0.0}, {1.0}, {3.0}, {4.0}, {5.0}]


def test_a_bounded_number_of_bytes_is_kept(shelf):
    made = [empty((n * HUGE,), np.dtype(np.uint8)) for n in (1, 2, 1, 1, 6)]
    for i in range(len(made) - 1):
        made[i] = None
    assert kept(shelf) == [1, 1, 2]  # the first made way
    made.clear()
    assert kept(shelf) == []  # the last alone is more than is kept


def test_a_shelf_that_is_held_is_done_without(shelf):
    del_me = empty((1 << 19,), np.dtype(np.float32))
    with shelf._lock:
        del del_me
        assert kept(shelf) == []
        assert empty((1 << 19,), np.dtype(np.float32)).size == 1 << 19
    assert kept(shelf) == []


def test_threads(shelf):
    def work():
        for i in range(200):
            made = empty((1 << 19,), np.dtype(np.float32))
            made[::1024] = i
            if not (made[::1024] == i).all():
                failures.append(i)

    failures: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and sum(kept(shelf)) <= 4


def test_a_tensor_gives_it_back(shelf):
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(empty((1 << 19,), np.dtype(np.float32)))[5:]
    assert kept(shelf) == []
    del tensor
    assert kept(shelf) == [1]
