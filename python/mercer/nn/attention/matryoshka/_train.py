"""Training bases for every budget at once, and choosing the rank of each head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mercer import _checks

__all__ = ["distillation_loss", "rank_schedule", "sample_ranks", "search_ranks"]


def rank_schedule(head_dim: int, steps: int = 8) -> list[int]:
    """The multiples of d / `steps` up to d.

    >>> from mercer.nn.attention.matryoshka import rank_schedule
    >>> rank_schedule(128)
    [16, 32, 48, 64, 80, 96, 112, 128]
    """
    head_dim = _checks.integer("head_dim", head_dim, 1)
    steps = _checks.integer("steps", steps, 1)
    if head_dim % steps:
        raise ValueError(f"steps must divide head_dim {head_dim}, got {steps}")
    return [head_dim // steps * (i + 1) for i in range(steps)]


def sample_ranks(
    schedule: Sequence[int], shape: Sequence[int], generator: torch.Generator | None = None
) -> Tensor:
    """Independent uniform draws from a schedule of ranks: what one training step uses.

    Parameters
    ----------
    schedule : ranks, each >= 1
    shape : of the result, such as (2, layers, heads) for keys and values
    generator : torch.Generator, optional

    Returns
    -------
    int64 tensor of `shape`.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import sample_ranks
    >>> sample_ranks([16, 32], (2, 3, 4), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 4])
    """
    values = torch.as_tensor(list(schedule))
    if values.ndim != 1 or values.numel() == 0 or values.is_floating_point() or bool((values < 1).any()):
        raise ValueError(f"schedule must hold whole numbers >= 1, got {list(schedule)}")
    device = generator.device if generator is not None else None
    index = torch.randint(len(values), tuple(shape), generator=generator, device=device)
    return values.to(index.device)[index]


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    kl_weight: float = 0.25,
    ce_weight: float = 0.75,
) -> Tensor:
    """kl_weight KL(teacher || student) + ce_weight cross-entropy.

    Parameters
    ----------
    student, teacher : (..., vocabulary) logits
        No gradient flows into `teacher`.
    labels : (...) int64, optional
        The token each position should predict, aligned with the logits; -100 counts in neither term. Without labels the
        second term is absent.
    kl_weight, ce_weight : float
        >= 0.

    Returns
    -------
    Scalar. The divergence is summed over the vocabulary; both terms are means over positions.

    Notes
    -----
    Source: Lin et al. 2025, section 3, with the weights of the released trainer. Logits are compared in float32.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher must have the shape of student {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )
    kl_weight = _checks.real("kl_weight", kl_weight, 0.0)
    ce_weight = _checks.real("ce_weight", ce_weight, 0.0)
    ours = _rows(student)
    theirs = _rows(teacher.detach())
    if labels is not None:
        if labels.shape != student.shape[:-1]:
            raise ValueError(f"labels must have shape {tuple(student.shape[:-1])}, got {tuple(labels.shape)}")
        counted = labels.flatten() != -100
        ours, theirs, targets = ours[counted], theirs[counted], labels.flatten()[counted]
    log_ours, log_theirs = F.log_softmax(ours, -1), F.log_softmax(theirs, -1)
    loss = kl_weight * F.kl_div(log_ours, log_theirs, reduction="sum", log_target=True) / max(len(ours), 1)
    return loss if labels is None else loss + ce_weight * F.nll_loss(log_ours, targets)


def _rows(logits: Tensor) -> Tensor:
    logits = logits.flatten(0, -2) if logits.ndim > 1 else logits[None]
    return logits if logits.dtype == torch.float64 else logits.float()


def search_ranks(
    error_fn: Callable[[Tensor], float],
    shape: Sequence[int],
    head_dim: int,
    interval: int,
    budget: float,
    per_sweep: int = 1,
    *,
    progress: Callable[[int, float], Any] | None = None,
) -> Tensor:
    """Lower ranks greedily where it costs least, until the mean rank is at most ``budget * head_dim``.

    Parameters
    ----------
    error_fn : (ranks) -> float
        The error of a model with ranks of `shape` (int64), such as the divergence from the full model on some text.
        Must be finite.
    shape : of the ranks, such as (2, layers, heads) for keys and values
    head_dim : d, where all ranks start
    interval : int
        What one step takes off; divides d, and is the least rank.
    budget : float
        In (0, 1]; at least ``interval / head_dim``.
    per_sweep : int
        How many of the cheapest entries one sweep lowers. 1 is the exact greedy search; more are as many times cheaper.
    progress : (sweep, budget reached), optional

    Returns
    -------
    int64 ranks of `shape`.

    Notes
    -----
    Cost: a sweep calls `error_fn` once for each entry that can still be lowered. Source: Lin et al. 2025, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import search_ranks
    >>> price = torch.tensor([1.0, 5.0])  # of each coordinate that is gone
    >>> search_ranks(lambda ranks: float((price * (8 - ranks)).sum()), (2,), 8, interval=2, budget=0.75)
    tensor([4, 8])
    """
    head_dim = _checks.integer("head_dim", head_dim, 1)
    interval = _checks.integer("interval", interval, 1)
    per_sweep = _checks.integer("per_sweep", per_sweep, 1)
    if head_dim % interval:
        raise ValueError(f"interval must divide head_dim {head_dim}, got {interval}")
    budget = _checks.real("budget", budget, 0.0, strict=True)
    if budget > 1 or budget < interval / head_dim:
        raise ValueError(
            f"budget must be in [interval / head_dim, 1] = [{interval / head_dim:g}, 1], got {budget}"
        )
    ranks = torch.full(tuple(shape), head_dim, dtype=torch.long)
    if ranks.numel() == 0:
        raise ValueError(f"shape must hold at least one entry, got {tuple(shape)}")
    flat, sweep = ranks.view(-1), 0
    while flat.double().mean() > budget * head_dim * (1 + 1e-12):
        errors = []
        for i in torch.nonzero(flat > interval)[:, 0].tolist():
            flat[i] -= interval
            error = float(error_fn(ranks.clone()))
            flat[i] += interval
            if not error == error or error in (float("inf"), -float("inf")):
                raise ValueError(f"error_fn must return a finite number, got {error}")
            errors.append((error, i))
        over = int(flat.sum()) - budget * head_dim * flat.numel()
        for _, i in sorted(errors)[: min(per_sweep, -int(-over // interval))]:
            flat[i] -= interval
        sweep += 1
        if progress is not None:
            progress(sweep, float(flat.double().mean()) / head_dim)
    return ranks
