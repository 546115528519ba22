"""The projections of a whole model: calibrated, trained, searched, saved, and put in front of its attention."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mercer import _checks
from mercer._atomic import replacing
from mercer.nn.attention.matryoshka._basis import KVMoments, cayley_inverse
from mercer.nn.attention.matryoshka._projection import KVProjection, MatryoshkaAttention

__all__ = ["MatryoshkaKV"]

FORMAT = "mercer.matryoshka-kv/1"
IMPLEMENTATION = "mercer_matryoshka"
#: Keys of the official checkpoint, for a layer and "key" or "value".
_WEIGHT = "model.layers.{}.self_attn.{}_unitary_transform_weights"
_MEAN = "model.layers.{}.self_attn.mean_{}_weights"

Attention = Callable[..., Tensor]


class MatryoshkaKV(nn.Module):
    """A :class:`KVProjection` and ranks for each layer of a model.

    What a user does: :meth:`calibrate` on some text; optionally train (:class:`Distillation`) and search ranks
    (:func:`search_ranks`); then ``with kv.attached(model): model.generate(..., past_key_values=kv.new_cache())``.

    Parameters
    ----------
    projections : sequence of KVProjection
        One a layer, all of one shape.
    key_ranks, value_ranks : int or (layers, heads) int, optional
        d if not given.

    Examples
    --------
    >>> from mercer.nn.attention.matryoshka import KVProjection, MatryoshkaKV
    >>> kv = MatryoshkaKV([KVProjection(2, 8), KVProjection(2, 8)])
    >>> kv.set_ranks(4, [[8, 2], [2, 2]])
    >>> kv.budget, kv.bytes_per_token(itemsize=2)
    (0.46875, 60)
    """

    def __init__(
        self, projections: Sequence[KVProjection], key_ranks: Any = None, value_ranks: Any = None
    ) -> None:
        super().__init__()
        shapes = {(p.num_heads, p.head_dim) for p in projections}
        if len(shapes) != 1:
            raise ValueError(f"projections must be of one shape, at least one, got {sorted(shapes)}")
        self.attentions = nn.ModuleList(MatryoshkaAttention(p) for p in projections)
        (self.num_heads, self.head_dim), self._attached = shapes.pop(), 0
        self.set_ranks(key_ranks, value_ranks)

    @classmethod
    def calibrate(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        progress: Callable[[int], Any] | None = None,
        **like: Any,
    ) -> Self:
        """Principal axes of the keys and values that a model computes.

        Parameters
        ----------
        model : nn.Module
            A Hugging Face model, or one whose ``layers[i].attention.mix`` maps (q, k, v, mask), as
            :class:`mercer.text.MiniLM` has.
        batches : iterable
            What the model takes: a dict of arguments, a tuple, or a tensor. Padding that the mask hides does not count.
        progress : (batches done), optional
        like : dtype (float32 or float64) and device of the projections
        """
        recorders: list[Recorder] = []

        def recorder(i: int) -> Attention:
            recorders.append(Recorder())
            return recorders[-1]

        with torch.no_grad(), hooked(model, recorder):
            for done, batch in enumerate(batches, 1):
                run(model, batch)
                if progress is not None:
                    progress(done)
        if not recorders or any(r.keys is None for r in recorders):
            raise ValueError("batches must make every layer of the model attend, got none")
        return cls([KVProjection.from_pca(r.keys, r.values, **like) for r in recorders])  # type: ignore[arg-type]

    @property
    def projections(self) -> list[KVProjection]:
        return [attention.projection for attention in self.attentions]  # type: ignore[misc]

    @property
    def key_ranks(self) -> Tensor:
        """(layers, heads) int64."""
        return torch.stack([attention.key_ranks for attention in self.attentions])  # type: ignore[misc]

    @property
    def value_ranks(self) -> Tensor:
        """(layers, heads) int64."""
        return torch.stack([attention.value_ranks for attention in self.attentions])  # type: ignore[misc]

    def set_ranks(self, key_ranks: Any, value_ranks: Any) -> None:
        """Keep so many coordinates from now on: one number, or (layers, heads)."""
        shape = (len(self.attentions), self.num_heads)
        both = []
        for name, ranks in (("key_ranks", key_ranks), ("value_ranks", value_ranks)):
            ranks = torch.as_tensor(self.head_dim if ranks is None else ranks)
            if ranks.ndim and ranks.shape != shape:
                raise ValueError(f"{name} must be one number or have shape {shape}, got {tuple(ranks.shape)}")
            both.append(ranks.expand(shape))
        for attention, keys, values in zip(self.attentions, *both, strict=True):
            attention.set_ranks(keys, values)  # type: ignore[operator]

    def set_budget(self, budget: float) -> None:
        """One rank everywhere, the nearest to ``budget * head_dim``."""
        budget = _checks.real("budget", budget, 0.0, strict=True)
        if budget > 1:
            raise ValueError(f"budget must be in (0, 1], got {budget}")
        rank = max(1, round(budget * self.head_dim))
        self.set_ranks(rank, rank)

    @property
    def budget(self) -> float:
        """The share of all coordinates that is kept."""
        whole = 2 * len(self.attentions) * self.num_heads * self.head_dim
        return float(self.key_ranks.sum() + self.value_ranks.sum()) / whole

    def bytes_per_token(self, itemsize: int = 2) -> int:
        """Bytes of the cache for each token."""
        return int(self.key_ranks.sum() + self.value_ranks.sum()) * itemsize

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Self]:
        """While this lasts, the model attends through the projections.

        Models of transformers get a registered attention function, so masks, padding and `generate` work as ever.
        """
        with hooked(model, self._hook):
            self._attached += 1
            try:
                yield self
            finally:
                self._attached -= 1

    def new_cache(self) -> Any:
        """An empty :class:`CompressedKVCache` with the ranks as they are now."""
        from mercer.nn.attention.matryoshka._cache import CompressedKVCache

        return CompressedKVCache(self, expand=self._attached == 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; whole or not at all."""
        from safetensors.torch import save_file

        header = {
            "format": FORMAT,
            "shape": json.dumps([len(self.attentions), self.num_heads, self.head_dim]),
        }
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with replacing(path) as beside:
            save_file(state, beside, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What :meth:`save` wrote. ValueError if the file is anything else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ValueError(f"{path}: not a file of MatryoshkaKV: format {header.get('format')!r}")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from None
        layers, heads, d = json.loads(header["shape"])
        dtype = state["attentions.0.projection.key_weight"].dtype
        made = cls([KVProjection(heads, d, dtype=dtype) for _ in range(layers)])
        made.load_state_dict(state, strict=True)
        made.set_ranks(made.key_ranks, made.value_ranks)  # checked
        return made

    @classmethod
    def load_official(cls, path_or_state: str | os.PathLike[str] | Mapping[str, Tensor]) -> Self:
        """A checkpoint with the official names (``unitary_transform_weight.bin``), strictly.

        The official code keeps a basis for each query head; a model with fewer key heads is served by it (see
        :func:`project_attention`), but saves nothing by its groups.
        """
        if isinstance(path_or_state, Mapping):
            state = dict(path_or_state)
        else:
            state = torch.load(Path(path_or_state), map_location="cpu", weights_only=True)
        projections: list[KVProjection] = []
        while (first := _WEIGHT.format(len(projections), "key")) in state:
            i, (heads, d) = len(projections), state[first].shape[:2]
            dtype = torch.float64 if state[first].dtype == torch.float64 else torch.float32
            projection = KVProjection(heads, d, dtype=dtype)
            for side in ("key", "value"):
                for name, target in (
                    (_WEIGHT.format(i, side), getattr(projection, f"{side}_weight")),
                    (_MEAN.format(i, side), getattr(projection, f"{side}_mean")),
                ):
                    if name not in state:
                        raise ValueError(f"the checkpoint lacks {name}")
                    tensor = state.pop(name)
                    tensor = tensor.reshape(target.shape) if tensor.numel() == target.numel() else tensor
                    if tensor.shape != target.shape:
                        raise ValueError(
                            f"{name} must have shape {tuple(target.shape)}, got {tuple(tensor.shape)}"
                        )
                    if not bool(torch.isfinite(tensor).all()):
                        raise ValueError(f"{name} must be finite, got NaN or infinity")
                    target.data.copy_(tensor)
            projections.append(projection)
        if state or not projections:
            raise ValueError(
                f"the checkpoint must hold {_WEIGHT.format('{i}', 'key')} and its like, got {sorted(state)[:3]}"
            )
        return cls(projections)

    def official_state(self) -> dict[str, Tensor]:
        """The state under the official names; columns of a basis may be turned round, which changes no subspace."""
        state = {}
        for i, projection in enumerate(self.projections):
            for side, basis in zip(("key", "value"), projection.matrices(), strict=True):
                state[_WEIGHT.format(i, side)] = cayley_inverse(basis.detach(), flip=True)[0]
                state[_MEAN.format(i, side)] = (
                    getattr(projection, f"{side}_mean").detach()[None, :, None].clone()
                )
        return state

    def _hook(self, i: int) -> Attention:
        attention = self.attentions[i]
        return lambda q, k, v, mask=None, **options: attention(q, k, v, mask, **options)


class Recorder:
    """Ordinary attention that keeps moments of what it sees."""

    keys: KVMoments | None = None
    values: KVMoments | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        if self.keys is None or self.values is None:
            self.keys, self.values = (KVMoments(k.shape[1], k.shape[3]) for _ in range(2))
        seen = None
        if mask is not None:
            # A key counts if any query sees it: padding is seen by none.
            open_ = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            seen = open_.expand(k.shape[0], *open_.shape[1:]).any(1).any(1)
            seen = seen.expand(k.shape[0], k.shape[2])
        self.keys.update(k, seen)
        self.values.update(v, seen)
        scale = options.get("scale")
        causal = options.get("is_causal", False)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, is_causal=causal, enable_gqa=grouped
        )


def run(model: nn.Module, batch: Any) -> Any:
    """The model on a batch: keyword arguments, arguments, or one."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


@contextmanager
def hooked(model: nn.Module, hook: Callable[[int], Attention]) -> Iterator[None]:
    """Put ``hook(i)`` in the place of the attention of layer i."""
    layers = getattr(model, "layers", None)
    if layers is not None and all(hasattr(getattr(layer, "attention", None), "mix") for layer in layers):
        before = [layer.attention.mix for layer in layers]
        for i, layer in enumerate(layers):
            layer.attention.mix = hook(i)
        try:
            yield
        finally:
            for layer, mix in zip(layers, before, strict=True):
                layer.attention.mix = mix
        return
    if not hasattr(model, "set_attn_implementation"):
        raise TypeError(
            "model must be one of transformers, or have layers with .attention.mix as mercer.text.MiniLM, "
            f"got {type(model).__name__}"
        )
    _register()
    modules = [
        m for m in model.modules()
        if getattr(m, "layer_idx", None) is not None and type(m).__name__.endswith("Attention")
    ]  # fmt: skip
    if not modules:
        raise TypeError(
            f"model must have attention modules with a layer_idx, got none in {type(model).__name__}"
        )
    if any(hasattr(m, "_mercer_hook") for m in modules):
        raise ValueError("model must not be attached already: leave the other `with` first")
    before_name = model.config._attn_implementation
    for i, module in enumerate(modules):
        module._mercer_hook = hook(i)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        yield
    finally:
        model.set_attn_implementation(before_name)
        for module in modules:
            del module._mercer_hook


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(
        IMPLEMENTATION, eager_mask
    )  # always a mask, so nothing is left to conventions


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers: (B, heads, n, d) in, (B, n, heads, d) out."""
    held = hasattr(key, "attend")
    if attention_mask is None and query.shape[2] > 1:
        is_causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    else:
        is_causal = False
    if held:
        if is_causal:
            raise ValueError("attention_mask must be given with more than one new token")
        out = key.attend(query, attention_mask, scaling)
    else:
        options: dict[str, Any] = {"scale": scaling, "is_causal": is_causal}
        if dropout:
            options["dropout_p"] = dropout
        out = module._mercer_hook(query, key, value, attention_mask, **options)  # type: ignore[operator]
    return out.transpose(1, 2).contiguous(), None
