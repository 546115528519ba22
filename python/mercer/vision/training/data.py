"""Images and labels: a folder of folders, or arrays in memory, through timm's transforms."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

from mercer.vision.training.recipes import Recipe

__all__ = ["Data", "open_data"]


class Images(Dataset):
    """Arrays (N, H, W, 3) or (N, H, W) of uint8 with labels, as PIL images through a transform."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform: Callable[[Any], torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.fromarray(self.images[index]).convert("RGB")
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


@dataclass(slots=True)
class Data:
    """A training part (or none) and a validation part with the names of the classes."""

    train: Any
    validation: Any
    classes: tuple[str, ...]

    def loaders(
        self, recipe: Recipe, *, mean: Any, std: Any, crop_pct: float, batch_size: int, workers: int
    ) -> tuple[DataLoader | None, DataLoader]:
        """Shuffled and augmented by the recipe, and in order through the test crop."""
        size, plain = recipe.input_size, recipe.input_size < 64
        same = {"input_size": size, "interpolation": "bicubic", "mean": mean, "std": std}
        self.validation.transform = create_transform(is_training=False, crop_pct=crop_pct, **same)
        validation = DataLoader(self.validation, batch_size, num_workers=workers)
        if self.train is None:
            return None, validation
        self.train.transform = create_transform(
            is_training=True, auto_augment=recipe.auto_augment or None, re_prob=recipe.erasing, re_mode="pixel",
            color_jitter=recipe.color_jitter or None, scale=(0.7, 1.0) if plain else None, **same,
        )  # fmt: skip
        train = DataLoader(
            self.train, batch_size, shuffle=True, num_workers=workers, drop_last=len(self.train) > batch_size,
            persistent_workers=workers > 0,
        )  # fmt: skip
        return train, validation


def open_data(source: str | Path | Mapping[str, Any], *, train: bool = True) -> Data:
    """Images and labels of a source.

    Args:
        source: A folder with ``train/CLASS/*`` and ``val/CLASS/*`` (or ``test``); a .npz, or a mapping, with `x_train`,
            `y_train`, `x_test` (or `x_val`), `y_test`: uint8 (N, H, W, 3) or (N, H, W), labels from 0.
        train: Whether the training part is needed.

    Raises:
        FileNotFoundError: No such file or folder, or a part is missing.
        ValueError: Arrays that are no images or labels, or of different lengths.
    """
    if isinstance(source, Mapping):
        return _from_arrays(source, train)
    source = Path(source)
    if source.is_file():
        if source.suffix != ".npz":
            raise ValueError(f"data must be a folder or a .npz file, got {source}")
        try:
            with np.load(source, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file}
        except (ValueError, EOFError, BadZipFile, zlib.error, TypeError, AttributeError) as error:
            raise ValueError(f"{source} must be a .npz of plain arrays: {error}") from None
        return _from_arrays(arrays, train)
    if not source.is_dir():
        raise FileNotFoundError(f"no such data: {source}")
    from torchvision.datasets import ImageFolder

    held = next((source / name for name in ("val", "test", "validation") if (source / name).is_dir()), None)
    if held is None or (train and not (source / "train").is_dir()):
        raise FileNotFoundError(f"{source} must have the folders train and val, each with a folder a class")
    validation = ImageFolder(str(held))
    images = ImageFolder(str(source / "train")) if train else None
    if images is not None and images.classes != validation.classes:
        raise ValueError(f"{source}/train and {held} must have the same classes")
    return Data(images, validation, tuple(validation.classes))


def _from_arrays(arrays: Mapping[str, Any], train: bool) -> Data:
    test = "test" if "x_test" in arrays else "val"
    parts = {}
    for part in ("train", test) if train else (test,):
        for name in (f"x_{part}", f"y_{part}"):
            if name not in arrays:
                raise ValueError(f"data must hold x_train, y_train, x_test and y_test, {name} is missing")
        x, y = np.asarray(arrays[f"x_{part}"]), np.asarray(arrays[f"y_{part}"]).reshape(-1)
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] != 3):
            raise ValueError(f"x_{part} must be uint8 (N, H, W, 3) or (N, H, W), got {x.dtype} {x.shape}")
        if not x.size:
            raise ValueError(f"x_{part} must hold images, got {x.shape}")
        if len(x) != len(y) or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
            raise ValueError(f"y_{part} must be {len(x)} labels from 0, got {y.dtype} {y.shape}")
        parts[part] = Images(x, y.astype(np.int64))
    labels = max(int(part.labels.max()) for part in parts.values()) + 1
    names = np.asarray(arrays.get("classes", np.arange(labels))).reshape(-1)
    if len(names) < labels:
        raise ValueError(f"classes must name all {labels} classes, got {len(names)} names")
    return Data(parts.get("train"), parts[test], tuple(str(name) for name in names))
