"""Structural re-parameterisation: parallel branches with batch norms, and the one kernel that they are.

A depthwise convolution, a dilated one and a batch norm in evaluation mode are linear in the input, so a sum of them is
one convolution (Ding et al. 2021, RepVGG; Ding et al. 2024, UniRepLKNet, section 3.1). Arithmetic is in float64 and
cast at the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mercer import _checks
from mercer.nn.conv._depthwise import DepthwiseConv2d

__all__ = [
    "BRANCHES",
    "DilatedReparamBlock",
    "dilate_kernel",
    "fold_norm",
    "fuse_bn",
    "merge_branches",
    "warn_if_unseen",
]

Branches = Sequence[tuple[int, int]]

#: Kernel size: (size, dilation) of the parallel branches; UniRepLKNet, table in its code.
BRANCHES: dict[int, Branches] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def fuse_bn(
    weight: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5, bias: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """One convolution out of a convolution and the batch norm after it.

    W' = W s, b' = beta + (b - mean) s, s = gamma / sqrt(var + eps) per output channel.

    Args:
        weight: (C, ...), output channels first; arrays or tensors.
        gamma, beta, mean, var: (C,) of the batch norm.
        eps: Of the batch norm.
        bias: (C,) of the convolution; None is 0.

    Returns:
        Kernel like `weight` and bias (C,), float64.

    Example:
        >>> w, b = fuse_bn(np.ones((2, 1, 1, 1)), gamma=[2, 2], beta=[0, 1], mean=[1, 1], var=[4, 4], eps=0)
        >>> w.ravel(), b
        (array([1., 1.]), array([-1.,  0.]))
    """
    weight, gamma, beta, mean, var = (_double(value) for value in (weight, gamma, beta, mean, var))
    if weight.ndim < 1 or any(a.shape != weight.shape[:1] for a in (gamma, beta, mean, var)):
        raise ValueError(
            f"gamma, beta, mean, var must have shape {weight.shape[:1]}, one entry an output channel"
        )
    scale = gamma / np.sqrt(var + eps)
    start = 0.0 if bias is None else _double(bias)
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), beta + (start - mean) * scale


def dilate_kernel(kernel: Any, dilation: int) -> np.ndarray:
    """The kernel with `dilation` - 1 zeros between its taps: what a dilated convolution does, without dilation.

    Args:
        kernel: (..., k, k), depthwise, grouped or dense.
        dilation: >= 1.

    Returns:
        (..., (k - 1) dilation + 1, (k - 1) dilation + 1), float64.

    Example:
        >>> dilate_kernel(np.ones((1, 2, 2)), 2)[0]
        array([[1., 0., 1.],
               [0., 0., 0.],
               [1., 0., 1.]])
    """
    kernel, dilation = _double(kernel), _checks.integer("dilation", dilation, 1)
    if kernel.ndim < 2:
        raise ValueError(f"kernel must be (..., k, k), got shape {kernel.shape}")
    size = tuple((k - 1) * dilation + 1 for k in kernel.shape[-2:])
    out = np.zeros(kernel.shape[:-2] + size)
    out[..., ::dilation, ::dilation] = kernel
    return out


def merge_branches(kernel: Any, branches: Iterable[tuple[Any, int]]) -> np.ndarray:
    """The one kernel of parallel convolutions with "same" padding.

    Args:
        kernel: (..., K, K), K odd.
        branches: Pairs (smaller kernel, dilation), each at most K wide when dilated.

    Returns:
        Like `kernel`, float64.

    Raises:
        ValueError: A branch wider than K, or even.
    """
    total = _double(kernel).copy()
    whole = total.shape[-1]
    for i, (branch, dilation) in enumerate(branches):
        wide = dilate_kernel(branch, dilation)
        size = wide.shape[-1]
        if size > whole or (whole - size) % 2:
            raise ValueError(
                f"branches must be odd and at most {whole} wide, branch {i} (dilation {dilation}) is {size} wide"
            )
        edge = (whole - size) // 2
        total[..., edge : edge + size, edge : edge + size] += wide
    return total


def outside_autograd(function: Callable[..., Any]) -> Any:
    """Without gradients, and with parameters that can have some later: inference mode is left meanwhile."""
    return torch.inference_mode(False)(torch.no_grad()(function))


def leave_inference(module: nn.Module) -> None:
    """Make parameters and buffers that were made in inference mode ordinary ones, in place."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and p.is_inference():
                part._parameters[name] = nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None and b.is_inference():
                part._buffers[name] = b.clone()


class DilatedReparamBlock(nn.Module):
    """A large depthwise kernel trained beside small dilated ones, merged into one for inference.

    Train form: BN(dw_K(x)) + sum over branches of BN(dw_{k, dilation r}(x)), "same" zero padding, no biases. Merged
    form: one depthwise K x K convolution with bias (Ding et al. 2024, UniRepLKNet, section 3.1). Both ways:
    :meth:`merge` and :meth:`from_kernel`. State names are the authors'.

    Args:
        channels: C of maps (B, C, H, W).
        kernel_size: K, odd and >= 5.
        branches: (size, dilation) pairs; by default UniRepLKNet's table, which has K = 5, 7, ..., 17.
        deploy: Build the merged form.

    Raises:
        ValueError: K even, < 5, or without branches in the table; a branch wider than K.

    Example:
        >>> block = DilatedReparamBlock(8, 13).eval()
        >>> x = torch.randn(1, 8, 20, 20)
        >>> before, params = block(x), sum(p.numel() for p in block.parameters())
        >>> torch.allclose(block.merge()(x), before, atol=1e-5), params, sum(p.numel() for p in block.parameters())
        (True, 2256, 1360)
    """

    def __init__(
        self, channels: int, kernel_size: int, branches: Branches | None = None, *, deploy: bool = False
    ) -> None:
        super().__init__()
        size = _checks.integer("kernel_size", kernel_size, 5)
        if size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {size}")
        if branches is None:
            if size not in BRANCHES:
                raise ValueError(
                    f"kernel_size must be one of {sorted(BRANCHES)} where branches is None, got {size}"
                )
            branches = BRANCHES[size]
        for k, r in branches:
            if k % 2 == 0 or k < 1 or r < 1 or (k - 1) * r + 1 > size:
                raise ValueError(f"branches must be odd and at most {size} wide when dilated, got {(k, r)}")
        self.channels, self.kernel_size = channels, size
        self.branches = tuple((int(k), int(r)) for k, r in branches)
        self.lk_origin = DepthwiseConv2d(channels, size, bias=deploy)
        self.deploy = deploy
        if not deploy:
            self.origin_bn = nn.BatchNorm2d(channels)
            for k, r in self.branches:
                self.add_module(f"dil_conv_k{k}_{r}", DepthwiseConv2d(channels, k, bias=False, dilation=r))
                self.add_module(f"dil_bn_k{k}_{r}", nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.deploy:
            return self.lk_origin(x)
        out = self.origin_bn(self.lk_origin(x))
        for conv, norm in self._pairs():
            out = out + norm(conv(x))
        return out

    def kernel(self) -> tuple[np.ndarray, np.ndarray]:
        """The one kernel (C, 1, K, K) and bias (C,) that the block is in evaluation mode, float64."""
        if self.deploy:
            return _double(self.lk_origin.weight), _double(self.lk_origin.bias)
        weight, bias = fuse_bn(self.lk_origin.weight, *_statistics(self.origin_bn))
        small = []
        for (conv, norm), (_, dilation) in zip(self._pairs(), self.branches, strict=True):
            branch, shift = fuse_bn(conv.weight, *_statistics(norm))
            small.append((branch, dilation))
            bias = bias + shift
        return merge_branches(weight, small), bias

    @outside_autograd
    def merge(self) -> DilatedReparamBlock:
        """Become one convolution, in place; the second time nothing is left to do.

        Warns where the block is in training mode and has seen no batch: its statistics say nothing yet.
        """
        if self.deploy:
            return self
        warn_if_unseen(self)
        weight, bias = self.kernel()
        old, training = self.lk_origin, self.training
        merged = DepthwiseConv2d(self.channels, self.kernel_size, bias=True).to(old.weight)
        merged.weight.copy_(torch.from_numpy(weight))
        merged.bias.copy_(torch.from_numpy(bias))
        for k, r in self.branches:
            delattr(self, f"dil_conv_k{k}_{r}")
            delattr(self, f"dil_bn_k{k}_{r}")
        del self.origin_bn
        self.lk_origin, self.deploy = merged.train(training), True
        return self

    @classmethod
    @outside_autograd
    def from_kernel(
        cls, weight: torch.Tensor, bias: torch.Tensor | None = None, branches: Branches | None = None
    ) -> DilatedReparamBlock:
        """The other direction: a block in train form that is this convolution in evaluation mode.

        The small branches start at random, as in training from scratch; the large kernel is what is left of
        `weight` when they are taken out, and every batch norm starts as the identity.

        Args:
            weight: (C, 1, K, K).
            bias: (C,) or None for 0.
            branches: As in the class.
        """
        if weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[2] != weight.shape[3]:
            raise ValueError(f"weight must be (C, 1, K, K), got {tuple(weight.shape)}")
        block = cls(weight.shape[0], weight.shape[-1], branches).to(weight)
        for _, norm in [(None, block.origin_bn), *block._pairs()]:
            norm.weight.fill_((1 + norm.eps) ** 0.5)  # var starts at 1
        block.lk_origin.weight.zero_()
        rest = _double(weight) - block.kernel()[0]
        block.lk_origin.weight.copy_(torch.from_numpy(rest))
        if bias is not None:
            block.origin_bn.bias.copy_(bias)
        return block

    def _pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        return [
            (getattr(self, f"dil_conv_k{k}_{r}"), getattr(self, f"dil_bn_k{k}_{r}")) for k, r in self.branches
        ]


@outside_autograd
def fold_norm(conv: nn.Module, norm: nn.Module) -> None:
    """Put the batch norm after a convolution or linear layer with bias into it, in place and in float64."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    conv.bias.copy_(norm.bias + (conv.bias - norm.running_mean) * scale)
    conv.weight.copy_(conv.weight * scale.view(-1, *[1] * (conv.weight.dim() - 1)))


def warn_if_unseen(module: nn.Module) -> None:
    """Warn where a batch norm in training mode has seen no batch: merging keeps its starting statistics."""
    for norm in module.modules():
        if (
            isinstance(norm, nn.modules.batchnorm._BatchNorm)
            and norm.training
            and not int(norm.num_batches_tracked)
        ):
            warnings.warn(
                "merging a block in training mode whose batch norms have seen no batch: their statistics "
                "are still the initial ones",
                stacklevel=3,
            )
            return


def _statistics(norm: nn.Module) -> tuple[Any, Any, Any, Any, float]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps


def _double(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)
