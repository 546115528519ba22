"""The papers' training settings as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mercer import _checks

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a classifier is trained: AdamW, warm-up, then cosine or constant.

    Attributes:
        epochs, batch_size, learning_rate: The rate is that of the batch size; another batch scales it in proportion.
        weight_decay: Not on parameters of one dimension.
        warmup_epochs, warmup_rate, least_rate: Linear from `warmup_rate`, down to `least_rate`.
        schedule: "cosine" or "constant" after the warm-up.
        mixup, cutmix: Their Beta parameters; 0 is off.
        auto_augment: timm's policy, such as "rand-m9-mstd0.5-inc1"; "" is off.
        erasing: Probability of random erasing.
        color_jitter: Strength where there is no `auto_augment`.
        smoothing: Of the labels.
        drop_path, head_dropout: Of the model.
        ema: Decay of the average of the weights that is validated and saved; 0 is off.
        layer_decay: Factor on the rate from each layer to the one before; 1 is off.
        clip: Norm that gradients are clipped to; 0 is off.
        auxiliary: Weight of the loss of a second head, where the model has one.
        input_size, crop_pct: Of images, and of the test crop; 0 takes the model's.
    """

    epochs: int = 300
    batch_size: int = 4096
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 20
    warmup_rate: float = 0.0
    least_rate: float = 1e-6
    schedule: str = "cosine"
    mixup: float = 0.8
    cutmix: float = 1.0
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    color_jitter: float = 0.4
    smoothing: float = 0.1
    drop_path: float = 0.0
    head_dropout: float = 0.0
    ema: float = 0.0
    layer_decay: float = 1.0
    clip: float = 0.0
    auxiliary: float = 0.4
    input_size: int = 224
    crop_pct: float = 0.0

    def __post_init__(self) -> None:
        _checks.integer("epochs", self.epochs, 1)
        _checks.integer("batch_size", self.batch_size, 1)
        _checks.integer("input_size", self.input_size, 1)
        _checks.real("learning_rate", self.learning_rate, 0, strict=True)
        _checks.choice("schedule", self.schedule, ("cosine", "constant"))
        for name in ("weight_decay", "warmup_epochs", "mixup", "cutmix", "clip", "auxiliary"):
            _checks.real(name, getattr(self, name), 0)
        for name in ("erasing", "smoothing", "drop_path", "head_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}")

    def changed(self, **values: object) -> Recipe:
        """The same recipe with other values.

        Example:
            >>> RECIPES["overlock_t"].changed(epochs=3).epochs
            3
        """
        return dataclasses.replace(self, **values)  # type: ignore[arg-type]


#: For small sets: what a day on a laptop allows.
PLAIN = Recipe(
    epochs=15, batch_size=64, learning_rate=1e-3, warmup_epochs=1, mixup=0, cutmix=0, auto_augment="", erasing=0,
    color_jitter=0, smoothing=0.1, input_size=32, crop_pct=1.0,
)  # fmt: skip

ATTO = Recipe(
    epochs=600, batch_size=1280, learning_rate=1e-3, warmup_epochs=5, mixup=0.2, erasing=0.1, color_jitter=0,
    auto_augment="rand-m5-inc1-mstd101",
)  # fmt: skip
OVERLOCK = Recipe(
    batch_size=2048,
    learning_rate=2e-3,
    warmup_epochs=5,
    warmup_rate=1e-6,
    least_rate=1e-5,
    clip=5,
    ema=0.9999,
)
FINETUNE = Recipe(
    epochs=30, batch_size=512, learning_rate=5e-5, weight_decay=1e-8, warmup_epochs=0, mixup=0, cutmix=0,
    layer_decay=0.8, input_size=384, crop_pct=1.0,
)  # fmt: skip
BASE_384 = Recipe(
    epochs=30, batch_size=1024, learning_rate=5e-5, warmup_epochs=0, schedule="constant", mixup=0, cutmix=0,
    drop_path=0.7, head_dropout=0.5, ema=0.9999, input_size=384, crop_pct=1.0,
)  # fmt: skip

#: By family and variant; "plain" is ours, for small sets. Settings are the papers'; the batch of the fine-tuning at 384
#: of InceptionNeXt is not printed: 1024 is ours.
RECIPES: dict[str, Recipe] = {
    "plain": PLAIN,
    "inceptionnext_atto": ATTO,
    "inceptionnext_tiny": Recipe(drop_path=0.1),
    "inceptionnext_small": Recipe(drop_path=0.3),
    "inceptionnext_base": Recipe(drop_path=0.4),
    "inceptionnext_base_384": BASE_384,
    **{f"unireplknet_{v}": Recipe(mixup=0.3, cutmix=0.3) for v in "af"},
    "unireplknet_p": Recipe(mixup=0.3, cutmix=0.3, drop_path=0.1),
    "unireplknet_n": Recipe(mixup=0.5, cutmix=0.5, drop_path=0.1),
    "unireplknet_t": Recipe(drop_path=0.2),
    "unireplknet_s": Recipe(drop_path=0.4),
    **{f"unireplknet_{v}_finetune_384": FINETUNE.changed(drop_path=0.2) for v in "sb"},
    **{
        f"unireplknet_{v}_finetune_384": FINETUNE.changed(drop_path=0.3, epochs=20, smoothing=0.3, ema=0.9999)
        for v in ("l", "xl")
    },
    "overlock_xt": OVERLOCK.changed(drop_path=0.1, crop_pct=0.925),
    "overlock_t": OVERLOCK.changed(drop_path=0.15, crop_pct=0.95),
    "overlock_s": OVERLOCK.changed(drop_path=0.4, crop_pct=0.95),
    "overlock_b": OVERLOCK.changed(drop_path=0.5, crop_pct=0.975),
}
