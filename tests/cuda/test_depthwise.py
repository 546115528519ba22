"""cuda/depthwise.cu and cuda/contmix.cu against NumPy, under the host shim and on a GPU alike."""

from pathlib import Path

import numpy as np
import pytest

import mercer
from mercer.ops import depthwise_convolution, depthwise_weight_gradient

CUDA = Path(__file__).parents[2] / "cuda"
DEPTHWISE, CONTMIX = ((CUDA / f"{name}.cu").read_text() for name in ("depthwise", "contmix"))


def shared(kh, kw, r, dtype, gradient):
    tile = (32 + (kw - 1) * r) * (16 + (kh - 1) * r)
    return (tile + (512 if gradient else kh * kw)) * np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("b", "c", "h", "w", "kh", "kw", "r"),
    [(1, 1, 1, 1, 1, 1, 1), (2, 3, 20, 35, 13, 5, 1), (1, 2, 9, 40, 3, 3, 4)],
)
def test_convolution_and_gradient(machine, dtype, b, c, h, w, kh, kw, r):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, b, c, h, w)).astype(dtype)
    k, bias = rng.standard_normal((c, kh, kw)).astype(dtype), rng.standard_normal(c).astype(dtype)
    kind, bar = ("f64", 1e-12) if dtype == np.float64 else ("f32", 2e-5)
    tiles = -(-h // 16) * -(-w // 32)
    for turned in (0, 1):
        out = np.full_like(x, 7)
        machine(DEPTHWISE).launch(
            f"depthwise_{kind}", (b * c, tiles), 256, x, k, bias, out, c, h, w, kh, kw, r, turned, 1,
            shared=shared(kh, kw, r, dtype, False),
        )  # fmt: skip
        with mercer.backend("reference"):
            want = depthwise_convolution(x, k, bias, turned=bool(turned), dilation=r)
        np.testing.assert_allclose(out, want, atol=bar * np.sqrt(kh * kw))
    slices = 2
    parts = np.full((slices, c, kh, kw), 7, dtype)
    machine(DEPTHWISE).launch(
        f"depthwise_weight_{kind}", (c, slices), 256, x, g, parts, b, c, h, w, kh, kw, r,
        shared=shared(kh, kw, r, dtype, True),
    )  # fmt: skip
    with mercer.backend("reference"):
        want = depthwise_weight_gradient(x, g, (kh, kw), dilation=r)
    np.testing.assert_allclose(parts.sum(0), want, atol=bar * np.sqrt(b * h * w) * 10)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("h", "w", "k", "c"), [(5, 7, 5, 3), (3, 3, 3, 40), (6, 4, 1, 2)])
def test_context_mixing(machine, dtype, h, w, k, c):
    rng = np.random.default_rng(1)
    b, groups = 2, 2
    logits = (4 * rng.standard_normal((b, groups, h, w, k * k))).astype(dtype)
    bias = rng.standard_normal((groups, 2 * k - 1, 2 * k - 1)).astype(dtype)
    value, out = (
        rng.standard_normal((b, groups, h, w, c)).astype(dtype),
        np.full((b, groups, h, w, c), 7, dtype),
    )
    pixels = b * groups * h * w
    machine(CONTMIX).launch(
        "contmix_f64" if dtype == np.float64 else "contmix_f32", -(-pixels // 4), 128, logits, bias, value, out,
        pixels, groups, h, w, k, c,
    )  # fmt: skip
    want = np.zeros((b, groups, h, w, c))
    for i in range(h):
        for j in range(w):
            top, left = min(max(i - k // 2, 0), h - k), min(max(j - k // 2, 0), w - k)
            rows, columns = top + np.arange(k) - i + k - 1, left + np.arange(k) - j + k - 1
            z = logits[:, :, i, j] + bias[:, rows[:, None], columns].reshape(groups, -1)
            e = np.exp(z - z.max(-1, keepdims=True), dtype=np.float64)
            window = value[:, :, top : top + k, left : left + k].reshape(b, groups, k * k, c)
            want[:, :, i, j] = np.einsum("bgw,bgwc->bgc", e / e.sum(-1, keepdims=True), window)
    np.testing.assert_allclose(out, want, atol=1e-12 if dtype == np.float64 else 1e-5)
