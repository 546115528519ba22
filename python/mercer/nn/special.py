"""Logarithms and ratios of modified Bessel functions on tensors, differentiable.

The torch faces of :mod:`mercer.special`, which documents the functions themselves. They broadcast, keep float32 and
float64 (float16 and bfloat16 are computed in float32 and returned as they came), run on the CPU without a copy and on
CUDA, and work under ``torch.compile``, autocast and ``torch.func``.

Gradients in x may be taken twice, gradients in v once, mixed ones once each (a second one in v is NaN):

- d/dx log I_v = v/x + R_v with R_v = I_{v+1}/I_v, d/dx log K_v = v/x - K_{v+1}/K_v (DLMF 10.29.2);
- d/dx R_v = 1 - R_v² - (2v+1)/x R_v;
- d/dv log I_v, d/dv log K_v by :func:`mercer.special.dlog_iv_dv`, :func:`mercer.special.dlog_kv_dv`.

Every function takes ``(v, x)``: orders v and arguments x >= 0, tensors or numbers (at least one a tensor), and
raises ``ValueError`` naming the first negative x. NaN gives NaN. On CUDA that check waits for the device; it is left
out while a CUDA graph is captured.

Example:
    >>> import torch
    >>> from mercer.nn import special
    >>> x = torch.tensor([0.5, 50.0, 5000.0], dtype=torch.float64, requires_grad=True)
    >>> special.log_iv(191.0, x).sum().backward()  # I_191(0.5) is 1e-470, I_191(5000) is 1e2168
    >>> x.grad
    tensor([382.0013,   3.9481,   1.0006], dtype=torch.float64)
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import TypeAlias

import torch

from mercer.nn import _dispatch

__all__ = [
    "iv_ratio",
    "iv_ratio_complement",
    "iv_ratio_inverse",
    "kv_ratio",
    "log_iv",
    "log_ive",
    "log_kv",
    "log_kv_ratio",
    "log_kve",
]

Number: TypeAlias = torch.Tensor | float


def log_iv(v: Number, x: Number) -> torch.Tensor:
    """log I_v(x).

    Example:
        >>> log_iv(0.5, torch.tensor(2.0, dtype=torch.float64))  # log(sqrt(1/pi) sinh 2)
        tensor(0.7160, dtype=torch.float64)
    """
    return _apply("log_iv", v, x)


def log_ive(v: Number, x: Number) -> torch.Tensor:
    """log(I_v(x) e^-x).

    Example:
        >>> log_ive(0.0, torch.tensor(1e300, dtype=torch.float64))
        tensor(-346.3067, dtype=torch.float64)
    """
    return _apply("log_ive", v, x)


def log_kv(v: Number, x: Number) -> torch.Tensor:
    """log K_v(x).

    Example:
        >>> log_kv(0.5, torch.tensor(2.0, dtype=torch.float64))  # log(sqrt(pi/4) e^-2)
        tensor(-2.1208, dtype=torch.float64)
    """
    return _apply("log_kv", v, x)


def log_kve(v: Number, x: Number) -> torch.Tensor:
    """log(K_v(x) e^x).

    Example:
        >>> log_kve(0.5, torch.tensor(2.0, dtype=torch.float64))
        tensor(-0.1208, dtype=torch.float64)
    """
    return _apply("log_kve", v, x)


def iv_ratio(v: Number, x: Number) -> torch.Tensor:
    """I_{v+1}(x) / I_v(x), in [0, 1): the mean resultant length of a von Mises-Fisher law where v = d/2 - 1.

    Example:
        >>> iv_ratio(0.5, torch.tensor(2.0, dtype=torch.float64))  # coth 2 - 1/2
        tensor(0.5373, dtype=torch.float64)
    """
    return _apply("iv_ratio", v, x)


def iv_ratio_complement(v: Number, x: Number) -> torch.Tensor:
    """1 - I_{v+1}(x) / I_v(x), with its own digits where the ratio is near 1.

    Example:
        >>> iv_ratio_complement(0.5, torch.tensor(1e9, dtype=torch.float64))
        tensor(1.0000e-09, dtype=torch.float64)
    """
    return _apply("iv_ratio_complement", v, x)


def kv_ratio(v: Number, x: Number) -> torch.Tensor:
    """K_{v+1}(x) / K_v(x).

    Example:
        >>> kv_ratio(0.5, torch.tensor(2.0, dtype=torch.float64))  # 1 + 1/x
        tensor(1.5000, dtype=torch.float64)
    """
    return _apply("kv_ratio", v, x)


def log_kv_ratio(v: Number, x: Number) -> torch.Tensor:
    """log(K_{v+1}(x) / K_v(x)).

    Example:
        >>> log_kv_ratio(0.5, torch.tensor(2.0, dtype=torch.float64))
        tensor(0.4055, dtype=torch.float64)
    """
    return _apply("log_kv_ratio", v, x)


def iv_ratio_inverse(v: Number, ratio: Number, *, complement: Number | None = None) -> torch.Tensor:
    """The x with I_{v+1}(x) / I_v(x) = ratio, ratio in [0, 1].

    Its gradient is that of the implicit function: dx/d ratio = 1 / R', dx/dv = -(dR/dv) / R'.

    Args:
        v: Orders.
        ratio: Values of the ratio.
        complement: 1 - ratio, where it is known to more digits than the ratio says. The gradient goes through
            `ratio`.

    Example:
        >>> iv_ratio_inverse(0.5, torch.tensor(0.5373147207, dtype=torch.float64))
        tensor(2.0000, dtype=torch.float64)
    """
    v, ratio, dtype = _prepare(v, ratio, "ratio")
    if complement is None:
        return _ratio_inverse(v, ratio, None).to(dtype)
    c = torch.as_tensor(complement, dtype=ratio.dtype, device=ratio.device).detach().expand_as(ratio)
    return _ratio_inverse(v, ratio, c).to(dtype)


def _apply(name: str, v: Number, x: Number) -> torch.Tensor:
    v, x, dtype = _prepare(v, x, "x")
    return _log_bessel(name, v, x).to(dtype)


def _prepare(v: Number, x: Number, what: str) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """Both as tensors of one shape and of float32 or float64, and the dtype of the result."""
    given = {"v": v, what: x}
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            if value.is_complex() or value.dtype == torch.bool:
                raise TypeError(f"{name} must be real, got {value.dtype}")
        elif isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a tensor or a real number, got {type(value).__name__}")
    tensors = [t for t in given.values() if isinstance(t, torch.Tensor)]
    if not tensors:
        raise TypeError(f"v or {what} must be a tensor: mercer.special takes numbers and arrays")
    dtype = _result_type(tensors)
    work = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    # A tensor without dimensions may live on the CPU beside others on a device.
    device = next((t.device for t in tensors if t.dim() > 0), tensors[-1].device)
    v, x = (
        t.to(dtype=work, device=device if t.dim() == 0 else t.device)
        if isinstance(t, torch.Tensor)
        else torch.full((), float(t), dtype=work, device=device)
        for t in (v, x)
    )
    v, x = torch.broadcast_tensors(v, x)
    return v, x, dtype


def _result_type(tensors: list[torch.Tensor]) -> torch.dtype:
    """torch.result_type for real functions, in words that torch.compile follows: a tensor of no dimensions gives way
    to one that has some, a number to any tensor, whole numbers to the default dtype."""
    floats = [t for t in tensors if t.is_floating_point()]
    if not floats:
        return torch.get_default_dtype()
    dtypes = [t.dtype for t in floats if t.dim() > 0] or [t.dtype for t in floats]
    return torch.promote_types(dtypes[0], dtypes[-1])


def _log_bessel(name: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The function of that name over tensors of one shape and dtype, differentiable."""
    return _LogBessel.apply(name, v, x)


@torch.library.custom_op("mercer::log_bessel", mutates_args=())
def _log_bessel_op(name: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _dispatch.log_bessel(name, v, x)


@_log_bessel_op.register_fake
def _(name: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _ratio_inverse(v: torch.Tensor, ratio: torch.Tensor, complement: torch.Tensor | None) -> torch.Tensor:
    return _RatioInverse.apply(v, ratio, complement)


@torch.library.custom_op("mercer::iv_ratio_inverse", mutates_args=())
def _ratio_inverse_op(v: torch.Tensor, ratio: torch.Tensor, complement: torch.Tensor | None) -> torch.Tensor:
    return _dispatch.ratio_inverse(v, ratio, complement)


@_ratio_inverse_op.register_fake
def _(v: torch.Tensor, ratio: torch.Tensor, complement: torch.Tensor | None) -> torch.Tensor:
    return torch.empty(ratio.shape, dtype=ratio.dtype, device=ratio.device)


# Gradients: formulas made of the operations above, so that they can be differentiated in their turn.


def _ratio_dx(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """R' where R = I_{v+1} / I_v. Each form loses digits where the other keeps them."""
    ratio = _log_bessel("iv_ratio", v, x)
    near_0 = torch.where(x > 0, ratio / x, 0.5 / (v + 1))  # R / x, and its limit
    below = near_0 + ratio * (_log_bessel("iv_ratio", v + 1, x) - ratio)
    far = x > v
    safe = torch.where(far, x, 1.0)
    above = _log_bessel("log_iv_dx2", torch.where(far, v, 0.0), safe) + v / safe**2
    return torch.where(far, above, below)


def _iv_dx(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _log_bessel("log_iv_dx1", v, x)


def _ive_dx(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # v/x less the complement keeps its digits where log_iv_dx1 - 1 does not.
    over = torch.where(x > 0, v / x, torch.where(v == 0, 0.0, torch.inf))
    return over - _log_bessel("iv_ratio_complement", v, x)


def _kve_dx(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _log_bessel("log_kv_dx1", v, x) + 1


def _log_kv_ratio_dx(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _log_bessel("log_kv_dx1", v + 1, x) - _log_bessel("log_kv_dx1", v, x)


def _kv_ratio_dx(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _log_bessel("kv_ratio", v, x) * _log_kv_ratio_dx(v, x)


def _di_dv(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _log_bessel("dlog_iv_dv", v, x)


def _dk_dv(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _log_bessel("dlog_kv_dv", v, x)


def _ratio_dv(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _log_bessel("iv_ratio", v, x) * (_di_dv(v + 1, x) - _di_dv(v, x))


def _log_kv_ratio_dv(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _dk_dv(v + 1, x) - _dk_dv(v, x)


def _kv_ratio_dv(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _log_bessel("kv_ratio", v, x) * _log_kv_ratio_dv(v, x)


def _negative(f: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda v, x: -f(v, x)


def _next_order(name: str) -> Callable[..., torch.Tensor]:
    return lambda v, x: _log_bessel(name, v, x)


Derivative = Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None

#: name -> (derivative in x, derivative in v); None where there is none.
_DERIVATIVES: dict[str, tuple[Derivative, Derivative]] = {
    "log_iv": (_iv_dx, _di_dv),
    "log_ive": (_ive_dx, _di_dv),
    "log_kv": (_next_order("log_kv_dx1"), _dk_dv),
    "log_kve": (_kve_dx, _dk_dv),
    "iv_ratio": (_ratio_dx, _ratio_dv),
    "iv_ratio_complement": (_negative(_ratio_dx), _negative(_ratio_dv)),
    "kv_ratio": (_kv_ratio_dx, _kv_ratio_dv),
    "log_kv_ratio": (_log_kv_ratio_dx, _log_kv_ratio_dv),
    # d/dv log I_v = v/x + R_v differentiated in v, and the same for K.
    "dlog_iv_dv": (lambda v, x: 1 / x + _ratio_dv(v, x), None),
    "dlog_kv_dv": (lambda v, x: 1 / x - _kv_ratio_dv(v, x), None),
    "log_iv_dx1": (_next_order("log_iv_dx2"), lambda v, x: 1 / x + _ratio_dv(v, x)),
    "log_kv_dx1": (_next_order("log_kv_dx2"), lambda v, x: 1 / x - _kv_ratio_dv(v, x)),
    **{
        f"log_{f}v_dx{k}": (_next_order(f"log_{f}v_dx{k + 1}") if k < 4 else None, None)
        for f in "ik"
        for k in (2, 3, 4)
    },
}


class _LogBessel(torch.autograd.Function):
    """A Function around the operator, not the operator's own autograd: torch.func takes only this."""

    @staticmethod
    def forward(name: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return _log_bessel_op(name, v, x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.name, v, x = inputs
        ctx.save_for_backward(v, x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[no-untyped-def, override]
        v, x = ctx.saved_tensors
        dx, dv = _DERIVATIVES[ctx.name]
        grads: list[torch.Tensor | None] = []
        for needed, derivative in ((ctx.needs_input_grad[1], dv), (ctx.needs_input_grad[2], dx)):
            if not needed:
                grads.append(None)
            elif derivative is None:
                # Autograd asks for both gradients even where the caller wants the other one: no place to raise.
                grads.append(torch.full_like(x, torch.nan))
            else:
                # The chain rule's 0 times an infinite slope (at x = 0) is 0: nothing depends on that element.
                grads.append(torch.where(grad == 0, 0.0, grad * derivative(v, x)))
        return None, *grads

    @staticmethod
    def vmap(info, in_dims, name: str, v: torch.Tensor, x: torch.Tensor):  # type: ignore[no-untyped-def]
        return _LogBessel.apply(name, *_same_batch(info, in_dims[1:], (v, x))), 0


class _RatioInverse(torch.autograd.Function):
    @staticmethod
    def forward(v: torch.Tensor, ratio: torch.Tensor, complement: torch.Tensor | None) -> torch.Tensor:
        return _ratio_inverse_op(v, ratio, complement)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        v, _, _ = inputs
        ctx.save_for_backward(v, output)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[no-untyped-def, override]
        v, x = ctx.saved_tensors
        by_ratio = grad / _ratio_dx(v, x)
        by_v = -by_ratio * _ratio_dv(v, x) if ctx.needs_input_grad[0] else None
        return by_v, by_ratio if ctx.needs_input_grad[1] else None, None

    @staticmethod
    def vmap(info, in_dims, v: torch.Tensor, ratio: torch.Tensor, complement):  # type: ignore[no-untyped-def]
        if complement is None:
            return _RatioInverse.apply(*_same_batch(info, in_dims[:2], (v, ratio)), None), 0
        return _RatioInverse.apply(*_same_batch(info, in_dims, (v, ratio, complement))), 0


def _same_batch(info, dims, tensors):  # type: ignore[no-untyped-def]
    """Every tensor with the batch in front, expanded where it had none."""
    moved = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    return [t.expand(info.batch_size, *t.shape) if d is None else t for t, d in zip(moved, dims, strict=True)]
