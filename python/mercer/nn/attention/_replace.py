"""Other attention inside models that exist: torch's, timm's, those of Hugging Face, and mercer's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from mercer import _checks
from mercer.nn.attention.neighborhood import na1d
from mercer.nn.attention.scatterbrain import MultiheadAttention, ScatterbrainAttention
from mercer.nn.attention.scatterbrain._layers import padding_of

__all__ = ["Replaced", "replace"]

METHODS = ("scatterbrain", "sparse", "low_rank", "neighborhood")


@dataclasses.dataclass
class Replaced:
    """What :func:`replace` did to a model.

    Attributes:
        names: The modules whose attention was replaced.
        numbers_per_token: Numbers that stand for a row of the attention matrix.
        undo: Call it to put everything back.
    """

    names: list[str]
    numbers_per_token: Callable[[int], int]
    undo: Callable[[], None]

    def memory(self, tokens: int, heads: int = 1, bytes_per_number: int = 4) -> tuple[int, int]:
        """Bytes that stand for the attention matrices of a sequence, all layers: before and now."""
        rows = len(self.names) * heads * tokens * bytes_per_number
        return rows * tokens, rows * min(tokens, self.numbers_per_token(tokens))


def replace(
    model: nn.Module,
    method: str = "scatterbrain",
    *,
    only: Callable[[str, nn.Module], bool] | None = None,
    n_features: int | None = None,
    support: str = "local",
    **options: Any,
) -> Replaced:
    """Put another attention into every attention layer of a model, without changing its parameters.

    :class:`torch.nn.MultiheadAttention` is exchanged for one with the same parameters. Other modules whose class has
    "attention" in its name, timm's and those of Hugging Face among them, are left as they are, but what they call
    `scaled_dot_product_attention` is ours (`model.set_attn_implementation("sdpa")` is called where it exists).

    Args:
        model: Changed in place.
        method: "scatterbrain"; "sparse", its support alone; "low_rank", its features alone; "neighborhood", the
            `window` nearest tokens, exactly.
        only: (name, module) -> whether to replace it.
        n_features, support, options: As for :class:`mercer.nn.attention.scatterbrain.ScatterbrainAttention`.

    Returns:
        What was replaced, the memory it saves, and how to undo it.

    Raises:
        ValueError: An unknown method; a model without attention.

    Example:
        >>> import torch
        >>> from mercer.nn.attention import replace
        >>> layer = torch.nn.TransformerEncoderLayer(32, 4, batch_first=True)
        >>> done = replace(layer, "scatterbrain", n_features=16, window=16)
        >>> layer(torch.zeros(2, 100, 32)).shape, done.names
        (torch.Size([2, 100, 32]), ['self_attn'])
        >>> done.memory(tokens=100, heads=4)
        (160000, 51200)
    """
    method = _checks.choice("method", method, METHODS)
    kernels: dict[int, Callable[..., torch.Tensor]] = {}

    def kernel(head_dim: int) -> Any:
        if head_dim not in kernels:
            kernels[head_dim] = _kernel(method, head_dim, n_features, support, options)
        return kernels[head_dim]

    numbers = kernel(32).numbers_per_token
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("sdpa")
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = any(
            name.startswith(f"{other}.") and isinstance(m, nn.MultiheadAttention) for other, m in found
        )
        is_one = isinstance(module, nn.MultiheadAttention) or "attention" in type(module).__name__.lower()
        if is_one and not inside and (only is None or only(name, module)):
            found.append((name, module))
    # The innermost: what holds another attention is its wrapper.
    found = [
        (n, m) for n, m in found if not any(o.startswith(f"{n}." if n else "") and o != n for o, _ in found)
    ]
    if not found:
        raise ValueError(f"model must have attention layers, got {type(model).__name__} without any")
    undo: list[Callable[[], None]] = []
    for name, module in found:
        if isinstance(module, nn.MultiheadAttention):
            parent = model.get_submodule(name.rpartition(".")[0])
            ours = MultiheadAttention.from_torch(module, kernel(module.head_dim))
            setattr(parent, name.rpartition(".")[2], ours)
            undo.append(functools.partial(setattr, parent, name.rpartition(".")[2], module))
            for layer in [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]:
                undo.append(
                    functools.partial(setattr, layer, "enable_nested_tensor", layer.enable_nested_tensor)
                )
                layer.enable_nested_tensor = False
        elif getattr(module, "mix", None) is F.scaled_dot_product_attention:  # mercer's own encoders
            module.mix = lambda q, k, v, mask=None, **more: kernel(q.shape[-1])(q, k, v, mask, **more)
            undo.append(functools.partial(setattr, module, "mix", F.scaled_dot_product_attention))
        else:
            if hasattr(module, "fused_attn"):  # timm
                undo.append(functools.partial(setattr, module, "fused_attn", module.fused_attn))
                module.fused_attn = True
            module.forward = _intercepted(module.forward, kernel)  # type: ignore[method-assign]
            undo.append(functools.partial(delattr, module, "forward"))

    def put_back() -> None:
        while undo:
            undo.pop()()

    return Replaced([name for name, _ in found], numbers, put_back)


def _kernel(method: str, head_dim: int, n_features: int | None, support: str, options: dict[str, Any]) -> Any:
    if method == "neighborhood":
        return _Neighborhood(options.get("window", 64))
    if method == "sparse":
        return ScatterbrainAttention(head_dim, 0, support, **options)
    return ScatterbrainAttention(head_dim, n_features, None if method == "low_rank" else support, **options)


class _Neighborhood(nn.Module):
    """Neighborhood attention on a sequence, called like `scaled_dot_product_attention`."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = _checks.integer("window", window, 1)

    def numbers_per_token(self, tokens: int) -> int:
        return min(self.window, tokens)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        *,
        key_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn_mask is not None:
            key_padding_mask, causal = padding_of(attn_mask, query, key)
            is_causal = is_causal or causal
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        if key_padding_mask is None:
            return na1d(q, k, v, min(self.window, k.shape[1]), is_causal=is_causal, scale=scale).transpose(
                1, 2
            )
        # Sequence by sequence: padding is behind what is there.
        lengths = (~key_padding_mask).sum(1)
        if bool((key_padding_mask.long().diff(dim=1) < 0).any()):
            raise ValueError("attn_mask must hide keys at the end only for method 'neighborhood'")
        out = v.new_zeros(*q.shape[:-1], v.shape[-1])
        for i, n in enumerate(lengths.tolist()):
            if n:
                a, b, c = (x[i : i + 1, :n] for x in (q, k, v))
                out[i, :n] = na1d(a, b, c, min(self.window, n), is_causal=is_causal, scale=scale)[0]
        return out.transpose(1, 2)


class _Instead(TorchFunctionMode):
    """Calls of `scaled_dot_product_attention` go to the kernel."""

    def __init__(self, kernel: Callable[[int], Any]) -> None:
        super().__init__()
        self.kernel = kernel

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.kernel(args[0].shape[-1] if args else kwargs["query"].shape[-1])(
                *args, **(kwargs or {})
            )
        return func(*args, **(kwargs or {}))


def _intercepted(forward: Callable[..., Any], kernel: Callable[[int], Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def instead(*args: Any, **kwargs: Any) -> Any:
        with _Instead(kernel):
            return forward(*args, **kwargs)

    return instead
