"""The unfused operators of neighborhood attention: against the definition, and their gradients against differences."""

import itertools
import math

import numpy as np
import pytest
import torch

import mercer
from mercer.nn.attention.neighborhood import neighborhood_av, neighborhood_inverse, neighborhood_qk
from mercer.ops import _windows, neighbor_indices, neighborhood_mask

#: shape, window, stride, dilation, causal
GRIDS = [
    ((9,), 3, 1, 1, False),
    ((13,), 4, 1, 2, True),
    ((41,), 20, 7, 2, False),
    ((100,), 70, 1, 1, False),
    ((1,), 1, 1, 1, False),
    ((8, 10), (4, 3), (2, 1), (1, 2), (False, True)),
    ((11, 9), (3, 5), 1, (3, 1), False),
    ((14, 14), 13, 1, 1, False),
    ((7, 7), 7, 1, 1, False),
    ((5, 40), (2, 6), (2, 6), (2, 1), False),
    ((5, 6, 9), (2, 3, 4), (1, 3, 2), (2, 1, 2), (True, False, False)),
    ((4, 4, 20), (3, 2, 5), 1, (1, 2, 3), (False, True, True)),
]


def one_axis(n, k, s, d, causal, i):
    """The card's steps, one query at a time: an oracle that shares nothing with the code."""
    g, j = i % d, i // d
    m = len(range(g, n, d))
    if causal:
        leader = min((j // s) * s + s - 1, m - 1)
        return [g + d * t for t in range(max(leader - k + 1, 0), j + 1)]
    leader = min((j // s) * s + s // 2, m - 1)
    left = k // 2
    start = min(max(leader - left, 0), m - k)
    return [g + d * t for t in range(start, start + k)]


def each(value, rank):
    return value if isinstance(value, tuple) else (value,) * rank


def brute_mask(shape, window, stride, dilation, causal):
    rank = len(shape)
    per_axis = [
        [one_axis(n, k, s, d, c, i) for i in range(n)]
        for n, k, s, d, c in zip(
            shape, *(each(x, rank) for x in (window, stride, dilation, causal)), strict=True
        )
    ]
    n = math.prod(shape)
    seen = np.zeros((n, n), bool)
    for at, query in enumerate(itertools.product(*(range(x) for x in shape))):
        for key in itertools.product(*(axis[i] for axis, i in zip(per_axis, query, strict=True))):
            seen[at, np.ravel_multi_index(key, shape)] = True
    return seen


@pytest.mark.parametrize("grid", GRIDS)
def test_neighborhoods_are_those_of_the_definition(grid):
    want = brute_mask(*grid)
    assert np.array_equal(neighborhood_mask(*grid), want)
    at = neighbor_indices(*grid)
    assert [sorted(row[row >= 0]) for row in at] == [list(np.flatnonzero(row)) for row in want]


def draw(grid, d, dtype, heads=2, batch=2):
    shape, window = grid[0], grid[1]
    rng = np.random.default_rng(len(shape))
    many = math.prod(each(window, len(shape)))
    q, k, v = (torch.tensor(rng.standard_normal((batch, heads, *shape, d)), dtype=dtype) for _ in range(3))
    return q, k, v, torch.tensor(rng.standard_normal((batch, heads, *shape, many)), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 8, 33, 70])
@pytest.mark.parametrize("grid", GRIDS)
def test_operators_are_dense_products_with_the_mask(grid, d, dtype):
    q, k, v, w = draw(grid, d, dtype)
    _, *how = grid
    at = torch.from_numpy(neighbor_indices(*grid))
    there = at >= 0
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    flat = [t.flatten(2, -2).double() for t in (q, k, v, w)]
    dense = flat[0] @ flat[1].mT
    want = dense.gather(-1, at.clamp(min=0).expand(2, 2, *at.shape)).masked_fill(~there, -torch.inf)
    got = neighborhood_qk(q, k, *how).flatten(2, -2).double()
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)
    matrix = torch.zeros_like(dense)
    matrix.scatter_add_(-1, at.clamp(min=0).expand(2, 2, *at.shape), flat[3] * there)
    got = neighborhood_av(w, v, *how).flatten(2, -2).double()
    torch.testing.assert_close(got, matrix @ flat[2], atol=tolerance, rtol=tolerance)
    got = neighborhood_inverse(w, v, *how).flatten(2, -2).double()
    torch.testing.assert_close(got, matrix.mT @ flat[2], atol=tolerance, rtol=tolerance)
    with mercer.backend("reference"):
        torch.testing.assert_close(
            neighborhood_av(w, v, *how).flatten(2, -2).double(),
            matrix @ flat[2], atol=tolerance, rtol=tolerance,
        )  # fmt: skip
        torch.testing.assert_close(
            neighborhood_inverse(w, v, *how).flatten(2, -2).double(),
            matrix.mT @ flat[2], atol=tolerance, rtol=tolerance,
        )  # fmt: skip


@pytest.mark.parametrize("grid", [g for g in GRIDS if math.prod(g[0]) < 130 and g[0] != (100,)])
def test_gradients_of_first_and_second_order(grid):
    q, k, v, w = (t.requires_grad_() for t in draw(grid, 3, torch.float64, heads=1, batch=1))
    _, *how = grid
    check = torch.autograd.gradcheck
    finite = torch.from_numpy(neighbor_indices(*grid) >= 0).view(*grid[0], -1)

    def products(q, k):
        return neighborhood_qk(q, k, *how).masked_fill(~finite, 0)

    assert check(products, (q, k))
    assert check(lambda w, v: neighborhood_av(w, v, *how), (w, v))
    assert check(lambda w, v: neighborhood_inverse(w, v, *how), (w, v))
    if math.prod(grid[0]) < 20:
        assert torch.autograd.gradgradcheck(lambda w, v: neighborhood_av(w, v, *how), (w, v))
        assert torch.autograd.gradgradcheck(products, (q, k))


def test_relative_bias_is_indexed_by_key_minus_query_within_the_dilation_group():
    rng = np.random.default_rng(0)
    h, window, dilation = 2, (3, 5), (3, 1)
    q, k = (torch.tensor(rng.standard_normal((1, h, 11, 9, 4))) for _ in range(2))
    rpb = torch.tensor(rng.standard_normal((h, 5, 9)), requires_grad=True)
    got = neighborhood_qk(q, k, window, 1, dilation, rpb=rpb)
    plain = neighborhood_qk(q, k, window, 1, dilation)
    at = neighbor_indices((11, 9), window, 1, dilation)
    for i in range(99):
        for slot, j in enumerate(at[i]):
            y = j // 9 // 3 - i // 9 // 3 + 2
            x = j % 9 - i % 9 + 4
            apart = (got - plain)[0, :, i // 9, i % 9, slot]
            torch.testing.assert_close(apart, rpb[:, y, x])
    got.square().sum().backward()
    assert torch.isfinite(rpb.grad).all()


def test_constant_values_pass_and_weights_per_pixel_are_shared_by_channels():
    w = torch.rand(2, 4, 9, 17, 49).softmax(-1)
    out = neighborhood_av(w, torch.full((2, 4, 9, 17, 16), 3.0), 7)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))
    # Expanded and transposed tensors are what they mean.
    v = torch.randn(2, 16, 4, 9, 17).permute(0, 2, 3, 4, 1)
    one = torch.rand(1, 1, 9, 17, 49)
    torch.testing.assert_close(
        neighborhood_av(one.expand(2, 4, -1, -1, -1), v, 7),
        neighborhood_av(one.repeat(2, 4, 1, 1, 1), v.contiguous(), 7),
    )


def test_interior_pixels_of_equal_weights_are_a_box_filter():
    v = torch.randn(1, 1, 12, 13, 1, dtype=torch.float64)
    got = neighborhood_av(torch.full((1, 1, 12, 13, 25), 1 / 25, dtype=torch.float64), v, 5)[
        0, 0, 2:-2, 2:-2, 0
    ]
    torch.testing.assert_close(got, torch.nn.functional.avg_pool2d(v[..., 0], 5, 1)[0, 0])


def test_the_number_of_threads_changes_no_bit():
    from mercer import ops

    rng = np.random.default_rng(0)
    w = rng.standard_normal((1, 2, 30, 31, 25)).astype(np.float32)
    v = rng.standard_normal((1, 2, 30, 31, 8)).astype(np.float32)
    for f in (ops.neighborhood_av, ops.neighborhood_inverse):
        assert np.array_equal(f(w, v, 5, threads=1), f(w, v, 5, threads=3))


def test_under_compile_autocast_and_half():
    w, v = torch.rand(1, 2, 6, 7, 9, requires_grad=True), torch.randn(1, 2, 6, 7, 4, requires_grad=True)
    compiled = torch.compile(
        lambda w, v: neighborhood_av(w, v, 3).square(), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(w, v), neighborhood_av(w, v, 3).square())
    compiled(w, v).sum().backward()
    assert v.grad is not None
    q, rpb = v.detach(), torch.randn(2, 5, 5)
    for how in ({"rpb": rpb}, {"is_causal": (True, False)}):
        want = neighborhood_qk(q, q, 3, **how)
        both = torch.compile(
            lambda q, how=how: neighborhood_qk(q, q, 3, **how), backend="aot_eager", fullgraph=True
        )
        torch.testing.assert_close(both(q), want)
    half = neighborhood_av(w.bfloat16(), v.bfloat16(), 3)
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert neighborhood_av(w, v, 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size must be an integer >= 1, got 0"),
        ({"kernel_size": True}, TypeError, "kernel_size"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size"),
        ({"kernel_size": 4, "dilation": 2}, ValueError, "kernel_size x dilation must be <= the 7 tokens"),
        ({"stride": 4}, ValueError, "stride must be <= kernel_size = 3 along axis 0, got 4"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size must be one integer or 2"),
        ({"is_causal": 1}, TypeError, "is_causal"),
        ({"dilation": -1}, ValueError, "dilation must be an integer >= 1, got -1"),
    ],
)
def test_bad_windows_are_refused(change, error, message):
    w, v = torch.rand(1, 2, 7, 8, 9), torch.randn(1, 2, 7, 8, 4)
    with pytest.raises(error, match=message):
        neighborhood_av(w, v, **{"kernel_size": 3, **change})


def test_bad_tensors_are_refused():
    w, v = torch.rand(1, 2, 7, 8, 9), torch.randn(1, 2, 7, 8, 4)
    with pytest.raises(ValueError, match="weights must have shape"):
        neighborhood_av(w[..., :8], v, 3)
    with pytest.raises(TypeError, match="weights must have the dtype"):
        neighborhood_av(w.double(), v, 3)
    with pytest.raises(TypeError, match="value must be a tensor of real numbers"):
        neighborhood_av(w, v.long(), 3)
    with pytest.raises(ValueError, match="with 1 to 3 axes"):
        neighborhood_av(w, v[0, 0], 3)
    with pytest.raises(ValueError, match="must not be empty"):
        neighborhood_av(w[:, :, :0], v[:, :, :0], 3)
    with pytest.raises(ValueError, match="key must have the shape"):
        neighborhood_qk(v, v[:, :1], 3)
    with pytest.raises(ValueError, match="must be on"):
        neighborhood_av(w.to("meta"), v, 3)
    assert neighborhood_av(w[:0], v[:0], 3).shape == (0, 2, 7, 8, 4)
    assert _windows.axes((7,), 7)[0] == (7, 7, 1, 1, False)
