"""Fitting and validating a classifier: Lightning's loop, checkpoints and logs; a curve and the weights beside them."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional

from mercer import _checks
from mercer._atomic import replacing
from mercer.vision.training.data import Data, open_data
from mercer.vision.training.recipes import Recipe

try:
    import lightning
    from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
except ImportError as error:
    raise ImportError(
        "mercer.vision.training needs Lightning: pip install 'mercer-kernels[train]'"
    ) from error

__all__ = ["Classifier", "Scores", "fit", "validate"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Of a validation: percentages of images whose class is the first, or among the first five; images a second."""

    top1: float
    top5: float
    images: int
    throughput: float


class Classifier(lightning.LightningModule):
    """A model and its recipe as Lightning trains them.

    Args:
        model: Gives logits (B, classes), or in training ``{"main": logits, "aux": logits}``.
        recipe: How.
        classes: How many.
        batch_size: In all, over all devices: the learning rate goes with it.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, classes: int, batch_size: int) -> None:
        super().__init__()
        self.model, self.recipe, self.classes, self.batch_size = model, recipe, classes, batch_size
        mixes = recipe.mixup > 0 or recipe.cutmix > 0
        self.mix = Mixup(
            recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=classes
        ) if mixes else None  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.model(x)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """The loss, that of a second head included."""
        x, y = batch
        if self.mix is not None:
            if len(x) % 2:
                x, y = x[:-1], y[:-1]  # images are mixed in pairs
            x, target = self.mix(x, y)
            criterion: Any = SoftTargetCrossEntropy()
        else:
            target, criterion = y, nn.CrossEntropyLoss(label_smoothing=self.recipe.smoothing)
        out = self.model(x)
        if isinstance(out, Mapping):
            loss = criterion(out["main"], target) + self.recipe.auxiliary * criterion(out["aux"], target)
        else:
            loss = criterion(out, target)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step}: lower the learning rate"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(x))
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """Loss and accuracy."""
        x, y = batch
        logits = self.model(x)
        best = logits.topk(min(5, self.classes), dim=1).indices == y[:, None]
        scores = {
            "val_loss": functional.cross_entropy(logits, y),
            "top1": 100 * best[:, 0].float().mean(),
            "top5": 100 * best.any(1).float().mean(),
        }
        self.log_dict(scores, on_epoch=True, prog_bar=True, batch_size=len(x), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW in groups, and the schedule step by step."""
        recipe = self.recipe
        rate = recipe.learning_rate * self.batch_size / recipe.batch_size
        decay = recipe.layer_decay if recipe.layer_decay < 1 else None
        optimizer = create_optimizer_v2(
            self.model, "adamw", lr=rate, weight_decay=recipe.weight_decay, layer_decay=decay
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warm = round(steps * recipe.warmup_epochs / max(recipe.epochs, 1))

        def factor(step: int) -> float:
            if step < warm:
                start = recipe.warmup_rate / rate
                return start + (1 - start) * (step + 1) / warm
            if recipe.schedule == "constant":
                return 1.0
            done = min(1.0, (step - warm) / max(steps - warm, 1))
            least = min(1.0, recipe.least_rate / rate)
            return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * done))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Curve(Callback):
    """Draws `curve.png` beside the log after every epoch, whole or not at all."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Collect the numbers of the epoch."""
        if not trainer.is_global_zero:
            return
        values = {
            name: float(trainer.callback_metrics[name])
            for name in ("train_loss", "val_loss", "top1", "top5")
            if name in trainer.callback_metrics
        }
        rows = {row["epoch"]: row for row in read_curve(self.out)}
        rows[trainer.current_epoch] = {"epoch": trainer.current_epoch, **values}
        write_curve(self.out, [rows[epoch] for epoch in sorted(rows)])


def fit(
    model: str | nn.Module,
    data: str | Path | Mapping[str, Any] | Data,
    *,
    out: str | Path,
    recipe: Recipe,
    batch_size: int | None = None,
    weights: str | Path | None = None,
    workers: int = 0,
    precision: str = "32-true",
    accelerator: str = "auto",
    devices: int | str = "auto",
    resume: bool = True,
    random_state: int = 0,
    progress: bool = True,
) -> Scores:
    """Train a classifier and save it.

    Args:
        model: A name in timm's registry, or a model with as many classes as the data.
        data: See :func:`open_data`.
        out: A folder for `last.ckpt`, `curve.csv`, `curve.png` and at the end `model.safetensors` (of the averaged
            weights where the recipe averages).
        recipe: How.
        batch_size: Of a step over all devices; the recipe's by default. The learning rate goes with it.
        weights: Where to start from: an official checkpoint, whose classifier is left out where classes differ.
        workers: Processes that read images.
        precision, accelerator, devices: Lightning's.
        resume: Go on from `out/last.ckpt` where there is one.
        random_state: Seed of everything; the same one and the same machine give the same model. A resumed run sees the
            images in another order.
        progress: Show a bar.

    Returns:
        Top-1, top-5 and throughput of the last validation.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    data = data if isinstance(data, Data) else open_data(data)
    size = recipe.batch_size if batch_size is None else _checks.integer("batch_size", batch_size, 1)
    lightning.seed_everything(random_state, workers=True, verbose=False)
    net = build(model, len(data.classes), recipe, weights)
    config = getattr(net, "default_cfg", None) or {}
    train, validation = data.loaders(
        recipe, mean=config.get("mean", (0.5,) * 3), std=config.get("std", (0.5,) * 3),
        crop_pct=recipe.crop_pct or config.get("crop_pct", 0.875), batch_size=size, workers=workers,
    )  # fmt: skip
    if train is None or not len(train):
        raise ValueError("data must have images to train on")
    checkpoint = ModelCheckpoint(
        out, filename="last", save_last=False, save_top_k=1, every_n_epochs=1, enable_version_counter=False
    )
    callbacks = [checkpoint, Curve(out)]
    if recipe.ema:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema))
    trainer = lightning.Trainer(
        max_epochs=recipe.epochs, callbacks=callbacks, logger=CSVLogger(out, name=None, version="log"),
        gradient_clip_val=recipe.clip or None, precision=precision, accelerator=accelerator, devices=devices,  # type: ignore[arg-type]
        enable_progress_bar=progress, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
        default_root_dir=out,
    )  # fmt: skip
    last = out / "last.ckpt"
    module = Classifier(net, recipe, len(data.classes), size)
    start = last if resume and last.is_file() else None
    if start is not None:
        _check_resumable(start, module)
    trainer.fit(module, train, validation, ckpt_path=start, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    save(net, out / "model.safetensors")
    return validate(net, data, recipe=recipe, batch_size=size, workers=workers)


def _check_resumable(path: Path, module: nn.Module) -> None:
    """Refuse a checkpoint that is broken or of another model before Lightning reads it."""
    from mercer.vision.backbones._checkpoint import read_state

    found, wanted = read_state(path).get("state_dict"), module.state_dict()
    if not isinstance(found, Mapping) or {name: value.shape for name, value in found.items()} != {
        name: value.shape for name, value in wanted.items()
    }:
        raise ValueError(
            f"{path} must be a run of this model with as many classes: take another folder, or begin afresh"
        )


def validate(
    model: str | nn.Module,
    data: str | Path | Mapping[str, Any] | Data,
    *,
    recipe: Recipe | None = None,
    weights: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    reparameterize: bool = False,
    device: str | None = None,
) -> Scores:
    """Top-1, top-5 and throughput of a classifier on the validation part.

    Args:
        model: A name in timm's registry, or a model.
        data: See :func:`open_data`.
        recipe: Its input size and crop are taken; the model's own by default.
        weights: An official checkpoint, or `model.safetensors` of :func:`fit`.
        batch_size, workers: Of reading.
        reparameterize: Merge branches and norms first, where the model can.
        device: By default CUDA where there is one.
    """
    data = data if isinstance(data, Data) else open_data(data, train=False)
    recipe_ = recipe or Recipe(input_size=_size_of(model))
    net = build(model, len(data.classes), recipe_, weights, ignore_head=False)
    config = getattr(net, "default_cfg", None) or {}
    _, loader = data.loaders(
        recipe_, mean=config.get("mean", (0.5,) * 3), std=config.get("std", (0.5,) * 3),
        crop_pct=recipe_.crop_pct or config.get("crop_pct", 0.875), batch_size=batch_size, workers=workers,
    )  # fmt: skip
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training = net.training
    net.to(where).eval()
    if reparameterize and hasattr(net, "reparameterize"):
        net.reparameterize()
    first = five = count = 0
    seconds = 0.0
    with torch.inference_mode():
        for x, y in loader:
            x, y = x.to(where), y.to(where)
            start = time.perf_counter()
            logits = net(x)
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            seconds += time.perf_counter() - start
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
            first, five, count = first + int(best[:, 0].sum()), five + int(best.any(1).sum()), count + len(y)
    if training and not getattr(net, "deploy", False):
        net.train()
    if not count:
        raise ValueError("data must have images to validate on")
    return Scores(100 * first / count, 100 * five / count, count, count / max(seconds, 1e-9))


def build(
    model: str | nn.Module, classes: int, recipe: Recipe, weights: Any, *, ignore_head: bool = True
) -> nn.Module:
    """The model with so many classes, and weights in it where there are some."""
    if isinstance(model, nn.Module):
        if getattr(model, "num_classes", classes) != classes:
            raise ValueError(f"model must have {classes} classes, as the data, got {model.num_classes}")
        return model
    if not timm.is_model(model):
        near = ", ".join(timm.list_models(f"*{model.removeprefix('mercer_')}*")[:5])
        raise ValueError(
            f"model must be one of `mercer models` or timm's, got {model!r}{f'; near: {near}' if near else ''}"
        )
    dropout = {"drop_rate": recipe.head_dropout} if recipe.head_dropout else {}
    net = timm.create_model(model, num_classes=classes, drop_path_rate=recipe.drop_path, **dropout)
    if weights is not None:
        from mercer.vision.backbones import load_official

        head = net.default_cfg["classifier"]
        heads = (head,) if isinstance(head, str) else tuple(head)
        load_official(
            net,
            weights,
            ignore=tuple(f"{name}." for name in heads) if ignore_head and classes != 1000 else (),
        )
    return net


def save(model: nn.Module, path: Path) -> None:
    """The weights as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(path) as beside:
        save_file(state, beside)


def read_curve(out: Path) -> list[dict[str, Any]]:
    """The rows of `curve.csv`, or none."""
    path = out / "curve.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {"epoch": int(row["epoch"]), **{k: float(v) for k, v in row.items() if k != "epoch" and v}}
            for row in csv.DictReader(file)
        ]


def write_curve(out: Path, rows: list[dict[str, Any]]) -> None:
    """`curve.csv` and, where matplotlib is installed, `curve.png`."""
    names = ["epoch", "train_loss", "val_loss", "top1", "top5"]
    with replacing(out / "curve.csv") as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, chosen, label in ((left, names[1:3], "loss"), (right, names[3:], "accuracy (%)")):
        for name in chosen:
            points = [(row["epoch"] + 1, row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(xlabel="epoch", ylabel=label)
        axes.legend()
        axes.grid(alpha=0.3)
    with replacing(out / "curve.png") as beside:
        figure.savefig(beside, dpi=120)


def _size_of(model: str | nn.Module) -> int:
    if isinstance(model, str):
        if not timm.is_model(model):
            return 224
        cfg = timm.models.get_pretrained_cfg(model)
        return cfg.input_size[-1] if cfg else 224
    return (getattr(model, "default_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
