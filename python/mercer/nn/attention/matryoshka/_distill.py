"""Training the bases with Lightning: the model stays as it is, the ranks change at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mercer import _checks
from mercer.nn.attention.matryoshka._model import MatryoshkaKV, run
from mercer.nn.attention.matryoshka._train import distillation_loss, rank_schedule, sample_ranks

try:
    import lightning
except ImportError as error:
    raise ModuleNotFoundError(
        "Distillation trains with Lightning: pip install 'mercer-kernels[train]'", name="lightning"
    ) from error

__all__ = ["Distillation"]

Loss = Callable[[Any, Any, Any], Tensor]


class Distillation(lightning.LightningModule):
    """Distil a model into itself with a compressed cache, at ranks drawn anew for each batch.

    Parameters
    ----------
    model : nn.Module
        Frozen here. Its output is a tensor, or has ``logits`` (a language model) or ``last_hidden_state``.
    kv : MatryoshkaKV
        What is trained: weights and means.
    schedule : ranks to draw from; None: multiples of d/8
    loss : (student output, teacher output, batch) -> scalar, optional
        None: :func:`distillation_loss` of logits, with the batch's ``labels`` if it has any (position i predicts token
        i + 1); of hidden states 1 less the mean cosine of tokens that ``attention_mask`` (or a second argument) shows.
    learning_rate : float
    warmup : int
        Steps of linear warm-up; then a cosine down to 0 over the trainer's steps.
    seed : int
        Of the ranks.

    Notes
    -----
    AdamW without weight decay; give the trainer ``gradient_clip_val=1.0`` as the paper does. Two passes of the model a
    step. Source: Lin et al. 2025, section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        kv: MatryoshkaKV,
        *,
        schedule: Sequence[int] | None = None,
        loss: Loss | None = None,
        learning_rate: float = 1e-3,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.kv = kv
        object.__setattr__(self, "model", model.eval())  # no part of the state, and no gradients
        model.requires_grad_(False)
        self.schedule = list(schedule) if schedule is not None else rank_schedule(kv.head_dim)
        if any(not 1 <= rank <= kv.head_dim for rank in self.schedule):
            raise ValueError(f"schedule must hold ranks in 1..{kv.head_dim}, got {self.schedule}")
        self.loss = default_loss if loss is None else loss
        self.learning_rate = _checks.real("learning_rate", learning_rate, 0.0, strict=True)
        self.warmup = _checks.integer("warmup", warmup, 0)
        self.ranks = torch.Generator().manual_seed(seed)

    def training_step(self, batch: Any, _: int) -> Tensor:
        with torch.no_grad():
            teacher = run(self.model, batch)
        shape = (2, len(self.kv.attentions), self.kv.num_heads)
        self.kv.set_ranks(*sample_ranks(self.schedule, shape, self.ranks))
        with self.kv.attached(self.model):
            student = run(self.model, batch)
        loss = self.loss(student, teacher, batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_end(self) -> None:
        self.kv.set_ranks(None, None)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.kv.parameters(), lr=self.learning_rate, weight_decay=0.0)
        steps = self.trainer.estimated_stepping_batches
        total = max(int(steps) if steps != float("inf") else 10_000, 1)

        def rate(step: int) -> float:
            if step < self.warmup:
                return (step + 1) / self.warmup
            done = (step - self.warmup) / max(total - self.warmup, 1)
            return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(done, 1.0)))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def default_loss(student: Any, teacher: Any, batch: Any) -> Tensor:
    """Divergence of logits, or 1 less the cosine of token states."""
    keyed = hasattr(batch, "get")
    if hasattr(student, "logits"):
        labels = batch.get("labels") if keyed else None
        ours, theirs = student.logits, teacher.logits
        if labels is not None:
            ours, theirs, labels = ours[:, :-1], theirs[:, :-1], labels[:, 1:]
        return distillation_loss(ours, theirs, labels, *((1.0, 0.0) if labels is None else ()))
    ours, theirs = (getattr(out, "last_hidden_state", out) for out in (student, teacher))
    apart = 1 - F.cosine_similarity(ours, theirs, dim=-1)
    mask = (
        batch.get("attention_mask")
        if keyed
        else batch[1]
        if isinstance(batch, (tuple, list)) and len(batch) > 1
        else None
    )
    return apart.mean() if mask is None else apart[mask.bool()].mean()
