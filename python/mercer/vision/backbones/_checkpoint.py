"""Official checkpoints, by the names their authors gave the entries; strict, and nothing is unpickled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["load_official", "read_state"]

#: Where training scripts put the weights inside what they save, in order of preference.
CONTAINERS = ("state_dict", "model", "module", "model_state_dict")


def load_official(
    model: nn.Module, source: str | Path | Mapping[str, torch.Tensor], *, ignore: Iterable[str] = ()
) -> nn.Module:
    """Load an official checkpoint into a model or one of its blocks, in place and strictly.

    Args:
        model: A backbone of :mod:`mercer.vision`, or a block with the attribute `official_names`.
        source: A .safetensors file, a file of `torch.save` (only tensors are read from it: a pickle that would run
            something is refused), or the state itself.
        ignore: Beginnings of names that are left as they are, on both sides: ``("head.",)`` keeps a new classifier.

    Returns:
        The model.

    Raises:
        ValueError: An entry is missing, unknown, of another shape, or holds NaN or infinity: the first such entry is
            named, with the variant that the checkpoint is of where that is known. Nothing is loaded then.
    """
    state = source if isinstance(source, Mapping) else read_state(source)
    state = _plain(state)
    ignored = tuple(ignore)
    if getattr(model, "aux_head", True) is None:
        ignored += ("aux_head.",)
    found: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    for official, value in state.items():
        name = _ours(official, getattr(model, "official_names", ()))
        found[name], names[name] = value, official
    wanted = model.state_dict()
    form = _form(found), _form(wanted)
    kind = getattr(model, "variant_name", type(model).__name__)
    if all(form) and form[0] != form[1]:
        raise ValueError(
            f"source must be of the {form[1]} form, as the model ({kind}), got the {form[0]} form; "
            f"build the model with deploy={form[0] != 'training'}"
        )
    for name, current in wanted.items():
        if name.startswith(ignored):
            continue
        if name not in found:
            if name.endswith("num_batches_tracked"):
                continue
            raise ValueError(f"source must hold {name} for {kind}, but it is missing{_of(model, found)}")
        value = found[name]
        if value.shape != current.shape:
            raise ValueError(
                f"{names[name]} must have shape {tuple(current.shape)} for {kind}, got {tuple(value.shape)}"
                f"{_of(model, found)}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{names[name]} must be finite, got NaN or infinity")
    for name in found:
        if name not in wanted and not name.startswith(ignored):
            raise ValueError(f"source holds {names[name]}, which {kind} does not have{_of(model, found)}")
    kept = {
        name: found[name] if name in found and not name.startswith(ignored) else wanted[name]
        for name in wanted
    }
    model.load_state_dict(kept)
    return model


def read_state(path: str | Path) -> Mapping[str, Any]:
    """The tensors of a file by name: safetensors, or what `torch.save` wrote, read without running anything in it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many; none of them may look like a crash of ours
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} must be a checkpoint that holds tensors alone: {first}") from None


def _plain(content: Any) -> dict[str, torch.Tensor]:
    """The state inside its containers, by names without the wrapper's."""
    while isinstance(content, Mapping):
        inside = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inside is None:
            break
        content = content[inside]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"source must map names to tensors, got {type(content).__name__}")
    if all(str(name).startswith("module.") for name in content):  # saved from DataParallel
        content = {name[len("module.") :]: value for name, value in content.items()}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"source must map names to tensors, {name!r} is {type(value).__name__}")
    return dict(content)


def _ours(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _form(state: Mapping[str, torch.Tensor]) -> str:
    """Training or merged, told by the dilated branches; "" where there is no large kernel."""
    if any(".dil_conv_k" in f".{name}" for name in state):
        return "training"
    return "merged" if any(name.endswith("lk_origin.bias") for name in state) else ""


def _of(model: nn.Module, found: Mapping[str, torch.Tensor]) -> str:
    """Which variant of the family the checkpoint is of, if it is of one."""
    from mercer.vision.backbones._family import FAMILIES

    family = FAMILIES.get(getattr(model, "family", ""))
    if family is None:
        return ""
    shapes = {name: value.shape for name, value in found.items() if "num_batches_tracked" not in name}
    deploy = {"deploy": True} if _form(found) == "merged" else {}
    for name, variant in family.variants.items():
        with torch.device("meta"):
            other = family.model(**variant.arguments, **deploy).state_dict()
        body = [key for key in other if key in shapes and not key.startswith(("head.", "aux_head."))]
        backbone = [key for key in other if not key.startswith(("head.", "aux_head.", "norm."))]
        backbone = [key for key in backbone if not key.endswith("num_batches_tracked")]
        if len(set(backbone) - set(body)) == 0 and all(other[key].shape == shapes[key] for key in body):
            return f"; these are the weights of mercer_{family.name}_{name}"
    return ""
