"""Kernel densities on tensors: values of the numpy face, gradients of finite differences."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mercer import density  # noqa: E402
from mercer.nn.density import log_kde  # noqa: E402


def tensors(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_values_are_those_of_numpy(kernel):
    X, Y = tensors((7, 5), (90, 5))
    w = torch.rand(90, dtype=torch.float64)
    for h in (0.8, [0.5, 2.0], np.linspace(1, 2, 7)[:, None], np.linspace(1, 2, 14).reshape(7, 2)):
        for weights in (None, w):
            got = log_kde(X, Y, torch.as_tensor(h, dtype=torch.float64), kernel, weights=weights)
            want = density.log_kde(
                X.numpy(), Y.numpy(), h, kernel, weights=None if weights is None else w.numpy()
            )
            assert got.shape == want.shape
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)
    half = log_kde(X.bfloat16(), Y.bfloat16(), 1.0, kernel)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_gradients_are_those_of_finite_differences(kernel, weighted, own, leave_one_out):
    X, Y = tensors((6, 3), (6, 3))
    w = torch.rand(6, dtype=torch.float64) + 0.1 if weighted else None
    h = torch.rand(6, 2, dtype=torch.float64) + 0.7 if own else torch.tensor([0.8, 1.7], dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (X, Y, h, w) if t is not None]

    def f(X, Y, h, w=None):
        return log_kde(X, Y, h, kernel, weights=w, leave_one_out=leave_one_out)

    assert torch.autograd.gradcheck(f, inputs)


def test_tiles_of_the_gradient_add_up(monkeypatch):
    X, Y = (t.requires_grad_() for t in tensors((40, 4), (30, 4)))
    grads = []
    for tile in (1 << 22, 64):
        monkeypatch.setattr("mercer.nn.density.TILE", tile)
        grads.append(torch.autograd.grad(log_kde(X, Y, 1.0).sum(), (X, Y)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_it_compiles_and_runs_under_autocast():
    X, Y = tensors((5, 3), (20, 3), dtype=torch.float32)
    want = log_kde(X, Y, 1.0)
    torch.testing.assert_close(torch.compile(log_kde, backend="aot_eager")(X, Y, 1.0), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(log_kde(X, Y, 1.0), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": "tophat"}, ValueError, "kernel must be one of"),
        ({"Y": torch.ones(3, 4)}, ValueError, "2 columns of X"),
        ({"Y": torch.ones(3, 2, dtype=torch.float64)}, TypeError, "Y must have the dtype"),
        ({"bandwidth": torch.ones(3, 2)}, ValueError, "bandwidth must be a number"),
        ({"bandwidth": -1.0}, ValueError, "bandwidth must be > 0"),
        ({"weights": torch.ones(2)}, ValueError, "weights must have shape"),
        ({"X": torch.ones(5, 2, dtype=torch.int64)}, TypeError, "X must be a tensor of real"),
        ({"leave_one_out": True}, ValueError, "leave_one_out must have X = Y"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, message):
    given = {"X": torch.ones(5, 2), "Y": torch.ones(3, 2), "bandwidth": 1.0, **change}
    with pytest.raises(error, match=message):
        log_kde(**given)


@pytest.mark.gpu
def test_on_a_gpu_values_and_gradients_are_those_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("cupy")
    X, Y = tensors((300, 70), (5000, 70))
    h = torch.linspace(0.5, 3, 40, dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        a, b, c = (t.detach().to(device).requires_grad_() for t in (X, Y, h))
        y = log_kde(a, b, c)
        results.append([t.cpu() for t in (y.detach(), *torch.autograd.grad(y.sum(), (a, b, c)))])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-9, atol=1e-9)
