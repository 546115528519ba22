"""The MLP with a GELU in it, against torch in double precision."""

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import mercer  # noqa: E402
from mercer.nn import _mlp  # noqa: E402
from mercer.nn._mlp import gelu_mlp  # noqa: E402


def problem(rows, c, hidden, out, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = ((*rows, c), (hidden, c), (hidden,), (out, hidden), (out,))
    inputs = [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]
    return inputs, torch.randn(*rows, out, generator=generator, dtype=dtype)


def definition(x, up, up_bias, down, down_bias):
    h = x @ up.t() + up_bias
    return (0.5 * h * (1 + torch.erf(h / 2**0.5))) @ down.t() + down_bias


@pytest.mark.parametrize("rows", [(1,), (37,), (2, 5, 7), (1500,)])
def test_values_and_gradients(rows, monkeypatch):
    monkeypatch.setattr(_mlp, "PIECE", 5000)  # 1500 rows are several pieces
    inputs, grad = problem(rows, 12, 17, 9)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    ours, truth = gelu_mlp(*inputs), definition(*wide)
    assert "GeluMlp" in type(ours.grad_fn.next_functions[0][0]).__name__ + type(ours.grad_fn).__name__
    torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)
    ours.backward(grad)
    truth.backward(grad.double())
    for t, w in zip(inputs, wide, strict=True):
        torch.testing.assert_close(t.grad.double(), w.grad, rtol=2e-5, atol=2e-5 * float(w.grad.abs().max()))


def test_only_what_needs_a_gradient_has_one():
    inputs, grad = problem((6,), 4, 5, 3)
    for at in (0, 2, 3):
        inputs[at].requires_grad_(False)
    gelu_mlp(*inputs).backward(grad)
    assert [t.grad is None for t in inputs] == [True, False, True, True, False]


def test_gradients_of_gradients_are_those_of_torch():
    inputs, grad = problem((6,), 4, 5, 3)
    wide = [t.detach().double().requires_grad_() for t in inputs]

    def penalty(f, inputs, grad):
        (by_x,) = torch.autograd.grad(f(*inputs), inputs[0], grad, create_graph=True)
        return torch.autograd.grad(by_x.square().sum(), inputs[1])[0]

    ours, truth = penalty(gelu_mlp, inputs, grad), penalty(definition, wide, grad.double())
    torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-5)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_a_backward_pass_that_is_watched_leaves_no_graph():
    inputs, grad = problem((6,), 4, 5, 3)
    plain = torch.autograd.grad(gelu_mlp(*inputs), inputs, grad)
    out = gelu_mlp(*inputs)
    with Watching():
        watched = torch.autograd.grad(out, inputs, grad)
    assert not any(t.requires_grad for t in watched)
    torch.testing.assert_close(watched, plain)


def test_double_precision_autocast_compilers_and_the_reference_are_torchs():
    inputs, grad = problem((6,), 4, 5, 3, torch.float64)
    assert torch.autograd.gradgradcheck(gelu_mlp, inputs)
    inputs, _ = problem((6,), 4, 5, 3)
    eager = gelu_mlp(*inputs)
    torch.testing.assert_close(torch.compile(gelu_mlp, backend="eager", fullgraph=True)(*inputs), eager)
    with torch.autocast("cpu", torch.bfloat16):
        assert gelu_mlp(*inputs).dtype == torch.bfloat16
    with mercer.backend("reference"):
        torch.testing.assert_close(gelu_mlp(*inputs), eager)
    by_x = torch.func.grad(lambda x: gelu_mlp(x, *inputs[1:]).sum())(inputs[0].detach())
    eager.sum().backward()
    torch.testing.assert_close(by_x, inputs[0].grad)


def test_small_values_of_negative_entries_keep_their_digits():
    one = torch.eye(1)
    x = torch.linspace(-6, -1, 501).view(-1, 1)
    ours = gelu_mlp(x, one, torch.zeros(1), one, torch.zeros(1)).double()
    wide = x.double()
    torch.testing.assert_close(ours, wide * torch.special.ndtr(wide), rtol=3e-6, atol=0)
