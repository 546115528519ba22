"""A key-value cache that keeps the leading coordinates alone, each head its own number of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from mercer.nn.attention.matryoshka._projection import KVProjection, checked_ranks

try:
    from transformers.cache_utils import Cache, CacheLayerMixin
except ImportError as error:
    raise ModuleNotFoundError(
        "CompressedKVCache is a cache of Hugging Face transformers: pip install transformers",
        name="transformers",
    ) from error

__all__ = ["CompressedKVCache", "CompressedLayer"]

LEAST_ROOM = 16


class CompressedKVCache(Cache):
    """Keys and values of each layer as coordinates in its basis: r_K + r_V numbers a token and head instead of 2 d.

    A cache for `generate` of LLaMA-, Mistral- and Qwen-like models. Given to a model as it is (``past_key_values=``;
    from transformers 5.24 on ``cache=``), it hands back approximate keys and values of full width, for any kind of
    attention. To a model that a :class:`MatryoshkaKV` is attached to (:meth:`MatryoshkaKV.new_cache`), it hands itself
    over: attention then runs on the coordinates and nothing of full width is made.

    Parameters
    ----------
    projections : sequence of KVProjection, or MatryoshkaKV
        One a layer, of as many heads as the keys.
    key_ranks, value_ranks : int or (layers, heads) int, optional
        In 1..d. d if not given; those of a `MatryoshkaKV` are taken from it.
    expand : bool
        Whether `update` returns keys and values of full width.

    Attributes
    ----------
    nbytes : int
        Of the coordinates held: batch · tokens · sum of all ranks · item size.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import CompressedKVCache, KVProjection
    >>> cache = CompressedKVCache([KVProjection(2, 8)], key_ranks=[[8, 2]], value_ranks=4)
    >>> cache.append(torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8), layer=0)
    >>> cache.nbytes == 5 * (8 + 2 + 4 + 4) * 4, cache.lookup(0)[0].shape
    (True, torch.Size([1, 2, 5, 8]))
    """

    def __init__(
        self,
        projections: Any,
        key_ranks: Any = None,
        value_ranks: Any = None,
        *,
        expand: bool = True,
    ) -> None:
        if hasattr(projections, "projections"):
            key_ranks = projections.key_ranks if key_ranks is None else key_ranks
            value_ranks = projections.value_ranks if value_ranks is None else value_ranks
            projections = projections.projections
        projections = list(projections)
        if not projections:
            raise ValueError("projections must hold one a layer, got none")
        layers: list[Any] = [
            CompressedLayer(projection, keys, values, expand=expand)
            for projection, keys, values in zip(
                projections,
                by_layer("key_ranks", key_ranks, len(projections)),
                by_layer("value_ranks", value_ranks, len(projections)),
                strict=True,
            )
        ]
        super().__init__(layers=layers)

    def append(self, k: Tensor, v: Tensor, layer: int) -> None:
        """Compress and keep k and v, (B, H, n, d), of the next n tokens."""
        self._of(layer).append(k, v)

    def lookup(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of full width, (B, H, tokens, d)."""
        return self._of(layer).expanded()

    @property
    def nbytes(self) -> int:
        return sum(self._of(layer).nbytes for layer in range(len(self.layers)))

    def _of(self, layer: int) -> CompressedLayer:
        return cast(CompressedLayer, self.layers[layer])


def by_layer(name: str, ranks: Any, layers: int) -> list[Any]:
    """The ranks of each layer."""
    if ranks is None or torch.as_tensor(ranks).ndim == 0:
        return [ranks] * layers
    if len(ranks) != layers:
        raise ValueError(f"{name} must have one row for each of {layers} layers, got {len(ranks)}")
    return list(ranks)


class CompressedLayer(CacheLayerMixin):
    """The cache of one layer."""

    is_sliding = False
    is_croppable = True
    is_compileable = False

    def __init__(
        self, projection: KVProjection, key_ranks: Any, value_ranks: Any, *, expand: bool = True
    ) -> None:
        super().__init__()
        heads, d = projection.num_heads, projection.head_dim
        self.head_dim, self.expand = d, expand
        with torch.no_grad():
            U, V = projection.matrices()
            self.sides = (
                Side(U, projection.key_mean, checked_ranks("key_ranks", key_ranks, heads, d)),
                Side(V, projection.value_mean, checked_ranks("value_ranks", value_ranks, heads, d)),
            )

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def append(self, k: Tensor, v: Tensor) -> None:
        """Keep the coordinates of k and v, (B, H, n, d)."""
        heads = self.sides[0].mean.shape[0]
        for name, x in (("k", k), ("v", v)):
            if x.ndim != 4 or x.shape[1] != heads or x.shape[3] != self.head_dim:
                raise ValueError(
                    f"{name} must have shape (B, {heads}, n, {self.head_dim}), got {tuple(x.shape)}"
                )
        if k.shape != v.shape or k.dtype != v.dtype or k.device != v.device:
            raise ValueError(
                f"v must be {k.dtype} of {tuple(k.shape)} on {k.device} like k, got {v.dtype} of {tuple(v.shape)} on "
                f"{v.device}"
            )
        self.is_initialized = True
        for side, x in zip(self.sides, (k, v), strict=True):
            side.append(x)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append; keys and values of full width, or the layer itself (twice) for attention on the coordinates."""
        self.append(key_states, value_states)
        return self.expanded() if self.expand else (self, self)

    def expanded(self) -> tuple[Tensor, Tensor]:
        """Keys and values of full width, (B, H, tokens, d)."""
        keys, values = self.sides
        return keys.expanded(), values.expanded()

    def attend(self, q: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
        """Attention of queries (B, G H, n, d) on the coordinates held; `mask` is bool, or added. (B, G H, n, d)."""
        keys, values = self.sides
        heads, tokens = len(keys.mean), keys.length
        q = q.unflatten(1, (heads, -1))
        batch, _, groups, n, d = q.shape
        scores = q.new_empty(batch, heads, groups * n, tokens)
        for which, basis, held in keys.parts(q.dtype):
            scores[:, which] = (q[:, which] @ basis[:, None]).flatten(2, 3) @ held.mT
        scores *= d**-0.5 if scale is None else scale
        scores = scores.view(batch, heads, groups, n, tokens)
        if mask is not None:
            if mask.ndim == 4 and mask.shape[1] > 1:
                mask = mask.unflatten(1, (heads, groups))
            elif mask.ndim == 4:
                mask = mask[:, :, None]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = torch.softmax(scores, -1, dtype=torch.float32 if scores.dtype != torch.float64 else None)
        weights = weights.to(q.dtype).flatten(2, 3)
        out = torch.empty_like(q)
        for which, basis, held in values.parts(q.dtype):
            mixed = (weights[:, which] @ held).unflatten(2, (groups, n))
            out[:, which] = mixed @ basis.mT[:, None]
        return (out + values.mean.to(q.dtype)[:, None, None]).flatten(1, 2)

    @property
    def nbytes(self) -> int:
        return sum(side.nbytes for side in self.sides)

    def get_seq_length(self) -> int:
        return self.sides[0].length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        for side in self.sides:
            side.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens."""
        for side in self.sides:
            side.length = max(side.length - abs(tokens_to_remove), 0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        for side in self.sides:
            side.data = [data.index_select(0, indices.to(data.device)) for data in side.data]

    def batch_repeat_interleave(self, repeats: int) -> None:
        for side in self.sides:
            side.data = [data.repeat_interleave(repeats, 0) for data in side.data]

    def offload(self) -> None:
        for side in self.sides:
            side.data = [data.to("cpu", non_blocking=True) for data in side.data]

    def prefetch(self) -> None:
        for side in self.sides:
            side.data = [data.to(side.device, non_blocking=True) for data in side.data]


class Side:
    """Coordinates of the keys, or of the values: heads of one rank lie together, and nothing is padded."""

    def __init__(self, basis: Tensor, mean: Tensor, ranks: Tensor) -> None:
        self.mean, self.length, self.device = mean.detach(), 0, mean.device
        self.data: list[Tensor] = []
        # (rank, heads of that rank, their bases)
        self.groups: list[tuple[int, Any, Tensor]] = []
        for rank in sorted(set(ranks.tolist())):
            heads = (ranks == rank).nonzero()[:, 0].to(basis.device)
            which: Any = slice(None) if len(heads) == len(ranks) else heads
            self.groups.append((rank, which, basis[which][..., :rank].detach().clone()))
        self.row = int(ranks.sum())

    def append(self, x: Tensor) -> None:
        new, end = x.shape[2], self.length + x.shape[2]
        if x.device != self.mean.device:
            self.mean = self.mean.to(x.device)
            self.groups = [
                (r, w if isinstance(w, slice) else w.to(x.device), b.to(x.device)) for r, w, b in self.groups
            ]
        self.device = x.device
        fresh = not self.data or (self.length == 0 and self.data[0].shape[0] != x.shape[0])
        if fresh:
            self.data = [x.new_empty(x.shape[0], basis.shape[0], 0, rank) for rank, _, basis in self.groups]
        elif self.data[0].shape[0] != x.shape[0] or self.data[0].dtype != x.dtype:
            raise ValueError(
                f"k and v must be {self.data[0].dtype} with batch {self.data[0].shape[0]}, as what is held, "
                f"got {x.dtype} with {x.shape[0]}"
            )
        if end > self.data[0].shape[2]:
            room = max(end + end // 4, LEAST_ROOM)
            for i, old in enumerate(self.data):
                self.data[i] = old.new_empty(*old.shape[:2], room, old.shape[3])
                self.data[i][:, :, : self.length] = old[:, :, : self.length]
        for (_, which, basis), data in zip(self.groups, self.data, strict=True):
            # Centred and projected in the precision of the basis: half-precision keys have large means.
            centred = x[:, which].to(basis.dtype) - self.mean[which][:, None]
            data[:, :, self.length : self.length + new] = (centred @ basis).to(x.dtype)
        self.length = end

    def parts(self, dtype: torch.dtype) -> Iterable[tuple[Any, Tensor, Tensor]]:
        """(heads, their bases (heads, d, r), what is held (B, heads, tokens, r))."""
        for (_, which, basis), data in zip(self.groups, self.data, strict=True):
            yield which, basis.to(dtype), data[:, :, : self.length].to(dtype)

    def expanded(self) -> Tensor:
        if not self.data:
            raise ValueError("the cache must hold something to look up, got an empty one")
        held = self.data[0]
        out = held.new_empty(held.shape[0], len(self.mean), self.length, self.groups[0][2].shape[1])
        for which, basis, data in self.parts(self.mean.dtype):
            out[:, which] = (data @ basis.mT + self.mean[which][:, None]).to(held.dtype)
        return out

    @property
    def nbytes(self) -> int:
        return sum(d.shape[0] * d.shape[1] * self.length * d.shape[3] * d.element_size() for d in self.data)
