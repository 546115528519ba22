"""Looking into a network: what a pixel of its last map sees, and where OverLoCK's overview and its focus look.

Each function returns its maps and, given an empty matplotlib figure, draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mercer import _checks

__all__ = ["draw_receptive_fields", "effective_receptive_field", "field_side", "overview_and_focus"]


def effective_receptive_field(model: nn.Module, images: torch.Tensor, *, figure: Any = None) -> np.ndarray:
    """How much each pixel of the input moves the centre of the last map.

    The gradient of the centre of the last map, summed over its channels, with respect to the images; its positive
    part, averaged over the images and summed over their channels. The sum over all pixels is 1.

    Args:
        model: Has `forward_features` as timm's models do, or returns a map (B, C, H', W') itself. Left as it was.
        images: (B, C, H, W), as the model takes them.
        figure: An empty matplotlib figure to draw into.

    Returns:
        (H, W), float64.

    Raises:
        ValueError: Images or a last map that are no maps, or a centre that no pixel moves.

    Cost: one forward and backward pass. Source: Luo, Li, Urtasun, Zemel 2016; the positive part and the sum as in Ding,
    Zhang, Han, Ding 2022 (RepLKNet), appendix.

    Example:
        >>> box = nn.Conv2d(1, 1, 3, padding=1)
        >>> _ = nn.init.ones_(box.weight)
        >>> effective_receptive_field(box, torch.zeros(1, 1, 5, 5)).round(3)[1]
        array([0.   , 0.111, 0.111, 0.111, 0.   ])
    """
    _check_images(images)
    x = images.detach().clone().requires_grad_()
    last = _evaluated(model, lambda: getattr(model, "forward_features", model)(x))
    if not isinstance(last, torch.Tensor) or last.dim() != 4:
        raise ValueError(
            f"model must end in a map (B, C, H, W), got {getattr(last, 'shape', type(last).__name__)}"
        )
    centre = last[:, :, last.shape[2] // 2, last.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(centre, x)
    field = gradient.double().clamp(min=0).mean(0).sum(0).cpu().numpy()
    total = field.sum()
    if not (np.isfinite(total) and total > 0):
        raise ValueError(
            f"model must have a centre that some pixel moves upwards, the gradient sums to {total}"
        )
    field /= total
    if figure is not None:
        draw_receptive_fields({type(model).__name__: field}, figure)
    return field


def field_side(field: np.ndarray, share: float = 0.5) -> int:
    """The side in pixels of the smallest centred square that holds a share of a receptive field.

    Args:
        field: (H, W), non-negative.
        share: In (0, 1).

    Example:
        >>> field_side(np.ones((9, 9)), 0.5)
        7
    """
    _checks.real("share", share, 0, strict=True)
    if share >= 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    height, width = field.shape
    rows, columns = (np.abs(np.arange(n) - n // 2) for n in (height, width))
    ring = np.maximum(rows[:, None], columns[None, :])
    inside = np.cumsum(np.bincount(ring.ravel(), field.ravel()))
    return 2 * int(np.searchsorted(inside, share * inside[-1])) + 1


def draw_receptive_fields(fields: Mapping[str, np.ndarray], figure: Any) -> None:
    """Fields side by side, each to the fourth root of its own largest value so that faint parts show.

    The square holds half of a field.
    """
    from matplotlib.patches import Rectangle

    for axes, (name, field) in zip(
        np.ravel(figure.subplots(1, len(fields), squeeze=False)), fields.items(), strict=True
    ):
        axes.imshow((field / field.max()) ** 0.25, cmap="magma", vmin=0, vmax=1)
        side, (height, width) = field_side(field), field.shape
        corner = (width // 2 - side / 2, height // 2 - side / 2)
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=0.8))
        axes.set(title=f"{name}\nhalf within {side} px", xticks=[], yticks=[])


def overview_and_focus(
    model: Any, image: torch.Tensor, *, target: int | None = None, figure: Any = None
) -> dict[str, np.ndarray]:
    """Where OverLoCK's overview and its focus find a class, and a kernel that the focus makes.

    For each of the two last maps at stride 32 and for the focus at stride 16: the gradient of the class's logit,
    averaged over the map, weighs the channels; what is left above zero is stretched to the image and to [0, 1].

    Args:
        model: An :class:`mercer.vision.backbones.OverLoCK` with a head. Left as it was.
        image: (3, H, W) or (1, 3, H, W), as the model takes it.
        target: The class; by default that of the highest logit.
        figure: An empty matplotlib figure to draw into.

    Returns:
        "overview", "focus16", "focus32": (H, W) in [0, 1], all 0 where nothing speaks for the class. "kernel": (k, k),
        the mean over the groups of the large dynamic kernel of the last block at stride 16, at the brightest pixel of
        "focus16"; it sums to 1.

    Raises:
        ValueError: Not one image, a model without a head, or a class that it does not have.
        TypeError: Another model.

    Source: Lou and Yu 2025, figure 1; weights as in Selvaraju et al. 2017 (Grad-CAM), eq. 1 and 2.
    """
    from mercer.vision.backbones import OverLoCK

    if not isinstance(model, OverLoCK):
        raise TypeError(f"model must be an OverLoCK, got {type(model).__name__}")
    if not model.num_classes:
        raise ValueError("model must have a head, got one without classes")
    image = image[None] if image.dim() == 3 else image
    _check_images(image)
    if len(image) != 1:
        raise ValueError(f"image must be one image, got {len(image)}")
    if target is not None and not 0 <= target < model.num_classes:
        raise ValueError(f"target must be in [0, {model.num_classes}), got {target}")
    block, seen = model.sub_blocks3[-1], []
    hook = block.weight_query.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    other = block.weight_key.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        base = model.forward_base(image.detach())[2]
        ctx = model.forward_overview(base.detach().requires_grad_())
        fine, coarse = model.forward_focus(base.detach(), ctx)
        return model.forward_head(coarse), [ctx, fine, coarse]

    try:
        logits, maps = _evaluated(model, run)
        kernel = _evaluated(model, lambda: block.kernels(*seen)[1]).detach()  # (1, g, H', W', k k)
    finally:
        hook.remove()
        other.remove()
    chosen = int(logits[0].argmax()) if target is None else target
    gradients = torch.autograd.grad(logits[0, chosen], maps, allow_unused=True)
    size = tuple(image.shape[2:])
    found = {
        name: _class_map(map_, gradient, size)
        for name, map_, gradient in zip(("overview", "focus16", "focus32"), maps, gradients, strict=True)
    }
    at = np.unravel_index(int(found["focus16"].argmax()), size)
    i, j = (int(a) * n // full for a, n, full in zip(at, kernel.shape[2:4], size, strict=True))
    found["kernel"] = kernel[0, :, i, j].mean(0).view(block.kernel_size, -1).double().cpu().numpy()
    if figure is not None:
        _draw_overview(image[0], found, figure)
    return found


def _class_map(map_: torch.Tensor, gradient: torch.Tensor | None, size: tuple[int, int]) -> np.ndarray:
    """(1, C, H', W') and its gradient -> (H, W) in [0, 1]."""
    if gradient is None:
        return np.zeros(size)
    weights = gradient.mean((2, 3), keepdim=True)
    found = (weights * map_.detach()).sum(1, keepdim=True).clamp(min=0).double()
    found = F.interpolate(found, size=size, mode="bilinear", align_corners=False)[0, 0]
    return (found / found.max().clamp(min=torch.finfo(torch.float64).tiny)).cpu().numpy()


def _draw_overview(image: torch.Tensor, found: Mapping[str, np.ndarray], figure: Any) -> None:
    panels = figure.subplots(1, 5)
    shown = image.detach().double().cpu().numpy().transpose(1, 2, 0)
    low, high = shown.min(), shown.max()
    shown = (shown - low) / max(high - low, 1e-12)
    panels[0].imshow(shown)
    panels[0].set_title("image")
    titles = {"overview": "overview, stride 32", "focus16": "focus, stride 16", "focus32": "focus, stride 32"}
    for axes, (name, title) in zip(panels[1:4], titles.items(), strict=True):
        axes.imshow(shown.mean(2), cmap="gray")
        axes.imshow(found[name], cmap="magma", alpha=0.6, vmin=0, vmax=1)
        axes.set_title(title)
    panels[4].imshow(found["kernel"], cmap="viridis")
    panels[4].set_title("a kernel of the focus")
    for axes in panels:
        axes.set(xticks=[], yticks=[])


def _check_images(images: torch.Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(f"images must be (B, C, H, W) of floats, got {images.dtype} {tuple(images.shape)}")


def _evaluated(model: nn.Module, run: Any) -> Any:
    """What `run` returns with the model in evaluation mode and gradients on; the model's modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.enable_grad():
            return run()
    finally:
        for module, training in modes:
            module.training = training
