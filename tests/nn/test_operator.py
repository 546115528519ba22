"""Operators are called straight where nobody looks, and seen by everything that wants to look."""

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from mercer.nn._operator import Operator  # noqa: E402

calls: list[str] = []


def _scale(x: torch.Tensor, by: float) -> torch.Tensor:
    calls.append("work")
    return torch.from_numpy(x.numpy(force=True) * by).to(x)


scale = Operator("mercer_tests::scale", _scale)


@scale.register_fake
def _(x, by):
    return torch.empty_like(x)


def _keep(ctx, inputs, output):
    _, ctx.by = inputs


scale.register_autograd(lambda ctx, grad: (scale(grad, ctx.by), None), setup_context=_keep)


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        calls.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


def test_plain_tensors_go_straight_to_the_work_and_have_gradients():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = scale(scale(x, 3.0), 2.0)
    assert "scale" in type(y.grad_fn).__name__
    y.sum().backward()
    assert x.grad.tolist() == [6.0, 6.0] and calls == ["work"] * 4
    with torch.no_grad():
        assert scale(x, 2.0).grad_fn is None
    assert not scale(x.detach(), 2.0).requires_grad


def test_gradients_of_gradients_and_checkpoints():
    from torch.utils.checkpoint import checkpoint

    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: scale(x.square(), 3.0), x)
    (checkpoint(lambda x: scale(x * x, 3.0), x, use_reentrant=False)).sum().backward()
    assert x.grad.tolist() == [6.0, 12.0]


def test_modes_tracers_and_transforms_meet_the_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.tensor([1.0, 2.0])
    with Seen():
        scale(x, 2.0)
    assert any("mercer_tests.scale" in call for call in calls)
    graph = make_fx(lambda x: scale(x, 2.0))(x)
    assert any("mercer_tests.scale" in str(node.target) for node in graph.graph.nodes)
    assert torch.func.grad(lambda x: scale(x * x, 2.0).sum())(x).tolist() == [4.0, 8.0]
    with torch.profiler.profile() as profile:
        scale(x, 2.0)
    assert any("mercer_tests::scale" in event.key for event in profile.key_averages())
    traced = torch.jit.trace(lambda x: scale(x, 2.0), x, check_trace=False)
    assert "mercer_tests::scale" in str(traced.graph)
    compiled = torch.compile(lambda x: scale(x, 2.0) + 1, fullgraph=True, backend="eager")
    assert compiled(x).tolist() == [3.0, 5.0]


def test_without_a_derivative_it_says_so():
    shift = Operator("mercer_tests::shift", _scale)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(NotImplementedError, match="mercer_tests::shift has no derivative"):
        shift(x, 2.0).sum().backward()


def test_tensors_without_data_meet_its_shape_rule():
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert scale(torch.empty(3, device="meta"), 2.0).device.type == "meta"
    with FakeTensorMode():
        fake = torch.empty(3)
    assert scale(fake, 2.0).shape == (3,)
    assert calls == []
