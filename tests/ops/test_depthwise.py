"""Depthwise convolution against scipy's correlation, plane by plane, and its own bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate2d

import mercer
from mercer.ops import depthwise_convolution, depthwise_method, depthwise_weight_gradient

ODD = st.integers(0, 8).map(lambda n: 2 * n + 1)


def spread(kernel, r):
    out = np.zeros(((kernel.shape[0] - 1) * r + 1, (kernel.shape[1] - 1) * r + 1))
    out[::r, ::r] = kernel
    return out


def truth(x, kernel, bias, r):
    planes = [[correlate2d(p, spread(k, r), mode="same") for p, k in zip(m, kernel, strict=True)] for m in x]
    return np.array(planes).reshape(x.shape) + bias[:, None, None]


@given(
    st.integers(1, 3), st.integers(1, 20), st.integers(1, 24), st.integers(1, 24), ODD, ODD, st.integers(1, 4),
    st.sampled_from([np.float32, np.float64]), st.booleans(), st.sampled_from(["auto", "direct", "fourier"]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_convolution_and_gradients_are_those_of_the_definition(
    b, c, h, w, kh, kw, r, dtype, last, method, seed
):
    if method == "fourier":
        r = 1
    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((2, b, c, h, w))
    kernel, bias = rng.standard_normal((c, kh, kw)), rng.standard_normal(c)
    # scipy takes the smaller array for the kernel where the other does not hold it: give it room
    room = ((0, 0), (0, 0), (r * kh, r * kh), (r * kw, r * kw))
    inside = (..., slice(r * kh, r * kh + h), slice(r * kw, r * kw + w))
    want = truth(np.pad(x, room), kernel, bias, r)[inside]
    turned = truth(np.pad(g, room), kernel[:, ::-1, ::-1], 0 * bias, r)[inside]
    form = (
        (lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
        if last
        else (lambda a: a)
    )
    x_, g_, k_ = form(x.astype(dtype)), form(g.astype(dtype)), kernel.astype(dtype)
    scale = np.sqrt(kh * kw)
    tolerance = (1e-11 if dtype == np.float64 else 2e-4) * scale
    got = depthwise_convolution(x_, k_, bias, dilation=r, method=method)
    np.testing.assert_allclose(got, want, atol=tolerance)
    np.testing.assert_allclose(
        depthwise_convolution(g_, k_, turned=True, dilation=r, method=method), turned, atol=tolerance
    )
    by = depthwise_weight_gradient(x_, g_, (kh, kw), dilation=r, method=method)
    # <g, d conv> for a change of the kernel is <gradient, change>
    change = rng.standard_normal(kernel.shape)
    along = np.sum(g * truth(np.pad(x, room), change, 0 * bias, r)[inside])
    assert abs(np.sum(by * change) - along) <= tolerance * 10 * np.sqrt(b * c * h * w)


def test_the_reference_backend_agrees():
    rng = np.random.default_rng(0)
    x, g, k = (
        rng.standard_normal((2, 3, 9, 8)),
        rng.standard_normal((2, 3, 9, 8)),
        rng.standard_normal((3, 5, 7)),
    )
    ours = depthwise_convolution(x, k, dilation=2), depthwise_weight_gradient(x, g, (5, 7), dilation=2)
    with mercer.backend("reference"):
        plain = depthwise_convolution(x, k, dilation=2), depthwise_weight_gradient(x, g, (5, 7), dilation=2)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_any_strides_are_read():
    rng = np.random.default_rng(1)
    base, k = rng.standard_normal((4, 6, 10, 12)), rng.standard_normal((3, 3, 3))
    for x in (
        base[::2, ::2, ::2, 1::3],
        base[:, :3].transpose(0, 1, 3, 2),
        base[:, 2::-1],
        base[:1, :3, ::-1],
    ):
        plain = depthwise_convolution(np.ascontiguousarray(x), k)
        np.testing.assert_allclose(depthwise_convolution(x, k), plain, atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((1, 2, 3)), np.ones((2, 3, 3))), r"x must be \(B, C, H, W\)"),
        ((np.ones((1, 2, 3, 3)), np.ones((2, 2, 3))), r"kernel_size must be odd, got \(2, 3\)"),
        ((np.ones((1, 2, 3, 3)), np.ones((3, 3, 3))), r"kernel must be \(2, kh, kw\)"),
        ((np.ones((1, 2, 3, 3)), np.ones((2, 3, 3), np.float32)), r"kernel must be .* float64"),
        ((np.ones((1, 2, 3, 3)), np.ones((2, 3, 3)), np.ones(3)), r"bias must have shape \(2,\), got \(3,\)"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        depthwise_convolution(*arguments)


def test_large_kernels_on_large_maps_are_transformed():
    assert depthwise_method((8, 64, 28, 28), (13, 13)) == "direct"
    assert depthwise_method((4, 128, 56, 56), (31, 31)) == "fourier"
