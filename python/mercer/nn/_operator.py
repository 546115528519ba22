"""Operators of torch that cost a function call where nobody looks at them.

An operator that `torch.library.custom_op` made takes a tenth of a millisecond on its way through torch's
dispatcher, and twice that with its derivative: as long as what it does to a small map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["Operator", "gradients_of", "is_bare", "is_plain"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Operator:
    """The operator of that name that does `work`, whose annotations are its schema; it changes none of its inputs.

    Plain tensors in eager mode are handed to `work` at once. Compilers, tracers, dispatch modes and profilers meet an
    ordinary operator of torch, and so do meta tensors and tensors of other classes. `torch.func` meets an
    `autograd.Function`, which it differentiates; an operator of torch it does not.
    """

    def __init__(self, name: str, work: Callable[..., Any]) -> None:
        self._known = torch.library.custom_op(name, work, mutates_args=())
        self._work = work

        def no_derivative(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError(f"{name} has no derivative")

        self._with_gradient = self._function(no_derivative, lambda ctx, inputs, output: None)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        self._known.register_fake(fake)
        return fake

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        self._known.register_autograd(backward, setup_context=setup_context)
        self._with_gradient = self._function(backward, setup_context)

    def _function(
        self, backward: Callable[..., Any], setup_context: Callable[..., Any]
    ) -> Callable[..., Any]:
        methods = {"forward": self._work, "setup_context": setup_context, "backward": backward}
        methods = {name: staticmethod(method) for name, method in methods.items()}
        function: Any = type(self._work.__name__, (torch.autograd.Function,), methods)
        return function.apply

    def __call__(self, *inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return self._with_gradient(*inputs)
        if not is_plain(*inputs):
            return self._known(*inputs)
        if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs):
            return self._with_gradient(*inputs)
        return self._work(*inputs)


def is_plain(*inputs: Any) -> bool:
    """Whether the tensors have data of their own and nothing wants to see which operators they meet."""
    watched = (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch.autograd._profiler_enabled()
    )
    return not watched and all(_has_data(x) for x in inputs)


def is_bare(*modules: torch.nn.Module) -> bool:
    """Whether what modules do may be done without calling them: no hook (of pruning, say) waits for the call."""
    return not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules
    )


def _has_data(x: Any) -> bool:
    return not isinstance(x, torch.Tensor) or (type(x) in _PLAIN and x.device.type in ("cpu", "cuda"))


def gradients_of(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """What a backward pass gives for `inputs`: torch's, of `function` of them, with a graph where one is asked for."""
    wanted, create_graph = [t for t in inputs if t.requires_grad], torch.is_grad_enabled()
    with torch.enable_grad():
        found = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=create_graph))
    return [next(found) if t.requires_grad else None for t in inputs]
