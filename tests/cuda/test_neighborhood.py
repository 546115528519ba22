"""cuda/neighborhood.cu against the reference in NumPy, under the host shim and on a GPU alike."""

from pathlib import Path

import numpy as np
import pytest

from mercer.ops import _neighborhood_reference as reference
from mercer.ops import _windows

SOURCE = (Path(__file__).parents[2] / "cuda" / "neighborhood.cu").read_text()
#: shape, window, stride, dilation, causal, heads, kv heads, columns, value columns
CASES = [
    ((37,), 5, 1, 1, False, 2, 2, 8, 8),
    ((41,), 6, 2, 3, True, 2, 1, 5, 12),
    ((70,), 50, 7, 1, False, 1, 1, 33, 20),
    ((6, 9), (3, 4), (1, 2), (2, 1), (False, True), 2, 1, 4, 4),
    ((3, 4, 5), (2, 3, 3), 1, 1, (True, False, False), 1, 1, 4, 3),
]


def drawn(case):
    shape, window, stride, dilation, causal, h, hk, d, dv = case
    grid = _windows.axes(shape, window, stride, dilation, causal)
    rng = np.random.default_rng(len(shape))
    n = int(np.prod(shape))
    arrays = [rng.standard_normal((2, n, *x)) for x in ((h, d), (hk, d), (hk, dv), (h, dv), (h,))]
    missing = [(1, 1, 1, 1, 0)] * (3 - len(grid))
    geometry = np.array([2, h, hk, d, dv, *(int(x) for axis in (*missing, *grid) for x in axis)], np.int64)

    def blocks(tile):
        *leading, (last, _, _, d, _) = (*missing, *grid)
        lines = int(np.prod([axis[0] for axis in leading])) * d
        return lines * (((last + d - 1) // d + tile - 1) // tile)

    return grid, arrays, geometry, blocks


@pytest.mark.parametrize("case", CASES)
def test_attention_and_gradients_are_those_of_the_reference(machine, case):
    grid, arrays, geometry, blocks = drawn(case)
    h, hk, d = case[5:8]
    scale = d**-0.5
    q, k, v, g, gl = (a.astype(np.float32) for a in arrays)
    want, want_lse = reference.attention(*arrays[:3], grid, scale)
    run = machine(SOURCE)
    out, lse = np.full(want.shape, 7, np.float32), np.full(want_lse.shape, 7, np.float32)
    run.launch("forward_f32", (blocks(32), 2 * h), 128, q, k, v, out, lse, geometry, scale)
    np.testing.assert_allclose(out, want, atol=2e-5)
    np.testing.assert_allclose(lse, want_lse, atol=2e-5)
    truth = reference.attention_gradients(*arrays[:3], want, arrays[3], arrays[4], grid, scale)
    shift = ((want * arrays[3]).sum(-1) - arrays[4]).astype(np.float32)
    common = (q, k, v, g, lse, shift)
    found = [np.full(x.shape, 7, np.float32) for x in (q, k, v)]
    run.launch("by_query_f32", (blocks(16), 2 * h), 128, *common, found[0], geometry, scale)
    run.launch("by_key_f32", (blocks(16), 2 * hk), 128, *common, found[1], found[2], geometry, scale)
    for got, true in zip(found, truth, strict=True):
        np.testing.assert_allclose(got, true, atol=1e-4)


def brain(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision_is_that_of_rounded_inputs(machine, kind):
    grid, arrays, geometry, blocks = drawn(CASES[1])
    h, hk, d = CASES[1][5:8]
    if kind == "f16":
        to, back = (
            (lambda x: x.astype(np.float16).view(np.uint16)),
            lambda b: b.view(np.float16).astype(float),
        )
    else:
        to, back = brain, lambda b: (b.astype(np.uint32) << 16).view(np.float32).astype(float)
    q, k, v = (to(a) for a in arrays[:3])
    want, want_lse = reference.attention(*(back(a) for a in (q, k, v)), grid, d**-0.5)
    out, lse = np.zeros(want.shape, np.uint16), np.zeros(want_lse.shape, np.float32)
    machine(SOURCE).launch(f"forward_{kind}", (blocks(32), 2 * h), 128, q, k, v, out, lse, geometry, d**-0.5)
    step = 2**-11 if kind == "f16" else 2**-8
    np.testing.assert_allclose(lse, want_lse, atol=2e-5)
    assert np.abs(back(out) - want).max() <= step * np.abs(want).max() + 1e-5


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_numbers_of_half_precision_pass_unchanged(machine, kind):
    """Window 1: the output is the value, so that loading and storing meet every kind of number."""
    bits = np.array([0, 1, 3, 0x3FF, 0x400, 0x1234, 0x3C00, 0x7BFF, 0x8001, 0xC123], np.uint16)
    if kind == "bf16":
        bits = np.array([0, 0x80, 0x1234, 0x3F80, 0x7F00, 0xBF81, 0xC123, 0x4000, 0x0081, 0x3333], np.uint16)
    v = bits.reshape(1, 10, 1, 1)
    zero = np.zeros_like(v)
    geometry = np.array([1, 1, 1, 1, 1, *[1, 1, 1, 1, 0] * 2, 10, 1, 1, 1, 0], np.int64)
    out, lse = np.zeros_like(v), np.zeros((1, 10, 1), np.float32)
    machine(SOURCE).launch(f"forward_{kind}", (1, 1), 128, zero, zero, v, out, lse, geometry, 1.0)
    assert np.array_equal(out, v)
