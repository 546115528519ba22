"""Scatterbrain as a layer: in place of `scaled_dot_product_attention`, of `MultiheadAttention`, packed, and
step by step."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mercer import _checks
from mercer.nn.attention.scatterbrain._estimator import scatterbrain_attention
from mercer.nn.attention.scatterbrain._features import orthogonal_gaussian

__all__ = ["DecodeState", "MultiheadAttention", "ScatterbrainAttention", "scatterbrain_packed"]


class ScatterbrainAttention(nn.Module):
    """Called like :func:`torch.nn.functional.scaled_dot_product_attention`, in linear time.

    Args:
        head_dim: Columns E of queries and keys.
        n_features: As for :func:`scatterbrain_attention`; the projection is drawn once and saved with the state.
        support: As there, but no tensor.
        dropout: Of exact weights, while training; a call's `dropout_p` is added to nothing: the larger counts.
        options: `window`, `cluster_size`, `n_hashes`, `topk`, `shrinkage`, `centre`, `features`, … as there.

    Shape: (B, H, T, E), (B, H, S, E), (B, H, S, D) -> (B, H, T, D).

    Raises:
        TypeError, ValueError: As :func:`scatterbrain_attention`; an `attn_mask` that is neither a key padding mask nor
            the causal one.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import ScatterbrainAttention
        >>> attend = ScatterbrainAttention(16, n_features=32, window=32)
        >>> q, k, v = torch.randn(3, 1, 2, 100, 16)
        >>> attend(q, k, v, is_causal=True).shape
        torch.Size([1, 2, 100, 16])
    """

    projection: torch.Tensor | None

    def __init__(
        self,
        head_dim: int,
        n_features: int | None = None,
        support: str | None = "local",
        *,
        dropout: float = 0.0,
        random_state: Any = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.head_dim = _checks.integer("head_dim", head_dim, 1)
        seed = _checks.random_seed(random_state)
        self.options = {**options, "support": support, "random_state": seed}
        sides = 2 if options.get("features", "cosh") == "cosh" else 1
        if n_features is None:
            n_features = sides * round(head_dim * math.log(max(head_dim, 2)) / sides)
        self.n_features, self.dropout = n_features, dropout
        # A small call refuses what does not fit, here rather than in the middle of a forward pass.
        probe = torch.zeros(1, 1, 2, head_dim)
        drawn = None
        if n_features:
            rows = _checks.integer("n_features", n_features, 0) // sides
            drawn = orthogonal_gaussian(
                max(rows, 1), head_dim, scaling=options.get("ortho_scaling", 0), random_state=seed
            )
        scatterbrain_attention(
            probe, probe, probe, n_features, dropout=dropout, projection=drawn, **self.options
        )
        self.register_buffer("projection", drawn)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        *,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
    ) -> Any:
        """Attention; `key_padding_mask` (B, S) is True for keys that are not there."""
        if enable_gqa:
            share = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
        if attn_mask is not None:
            from_mask, causal = padding_of(attn_mask, query, key)
            is_causal = is_causal or causal
            if from_mask is not None:
                key_padding_mask = from_mask if key_padding_mask is None else key_padding_mask | from_mask
        options = self.options
        if is_causal and options.get("centre"):
            options = {**options, "centre": False}
        return scatterbrain_attention(
            query,
            key,
            value,
            self.n_features,
            temperature=scale,
            projection=self.projection,
            causal=is_causal,
            key_padding_mask=key_padding_mask,
            dropout=max(dropout_p, self.dropout) if self.training or dropout_p else 0.0,
            need_weights=need_weights,
            **options,
        )

    def numbers_per_token(self, tokens: int) -> int:
        """Numbers of memory a token and head that stand for a row of the attention matrix: m + |S_i|."""
        options = self.options
        support = {
            None: 0,
            "local": options.get("window", 64),
            "topk": options.get("topk", 32),
            "smyrf": options.get("cluster_size", 32) * options.get("n_hashes", 2),
            "cross_polytope": options.get("cluster_size", 32) * options.get("n_hashes", 2),
            "block": options.get("block", 32)
            * (
                options.get("window_blocks", 3)
                + options.get("global_blocks", 0)
                + options.get("random_blocks", 0)
            ),
        }[options["support"]]
        return self.n_features + min(support, tokens)

    def start(
        self, batch: int, heads: int, value_dim: int | None = None, *, scale: float | None = None
    ) -> DecodeState:
        """The state of a causal attention that goes token by token; only for the support "local" or none."""
        return DecodeState(self, batch, heads, self.head_dim if value_dim is None else value_dim, scale)

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"{self.head_dim}, n_features={self.n_features}, support={self.options['support']!r}"


class DecodeState:
    """Causal attention one token at a time: what it keeps does not grow with the tokens seen.

    Made by :meth:`ScatterbrainAttention.start`. It holds the last `window` keys and values with their features, and the
    sums over all keys of features times values.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import ScatterbrainAttention
        >>> attend = ScatterbrainAttention(8, n_features=16, window=4)
        >>> q, k, v = torch.randn(3, 1, 2, 10, 8, generator=torch.Generator().manual_seed(0))
        >>> state = attend.start(1, 2)
        >>> steps = [state.step(q[:, :, i], k[:, :, i], v[:, :, i]) for i in range(10)]
        >>> torch.allclose(torch.stack(steps, 2), attend(q, k, v, is_causal=True), atol=1e-5)
        True
    """

    def __init__(
        self, layer: ScatterbrainAttention, batch: int, heads: int, value_dim: int, scale: float | None
    ) -> None:
        if layer.options["support"] not in ("local", None):
            raise ValueError(f"support must be 'local' or None to decode, got {layer.options['support']!r}")
        self.layer, self.seen = layer, 0
        self.temperature = layer.head_dim**-0.5 if scale is None else scale
        self.window = layer.options.get("window", 64) if layer.options["support"] else 0
        self.shape = (batch, heads, value_dim)
        self.keys = self.values = self.logs = None
        self.sums: torch.Tensor | None = None
        self.shift: torch.Tensor | None = None

    def step(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The output (B, H, D) of the next token, from its query, key (B, H, E) and value (B, H, D)."""
        b, h, d = self.shape
        for name, x, last in (("query", query, None), ("key", key, None), ("value", value, d)):
            wanted = (b, h, self.layer.head_dim if last is None else last)
            if tuple(x.shape) != wanted:
                raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")
        dtype = query.dtype
        work = torch.float64 if dtype == torch.float64 else torch.float32
        query, key, value = (x.to(work) for x in (query, key, value))
        value = torch.cat([value, value.new_ones(b, h, 1)], -1)
        top: torch.Tensor | None = None
        exact: torch.Tensor | float = 0.0
        scores = query.new_zeros(b, h, 0)
        if self.window:
            self.keys = self._push(self.keys, key)
            self.values = self._push(self.values, value)
            scores = self.temperature * (self.keys @ query[..., None])[..., 0]  # (B, H, window)
            top = scores.amax(-1)
        if not self.layer.n_features:
            assert top is not None
            weights = (scores - top[..., None]).exp()
            out = (weights[..., None] * self.values).sum(-2)
            return (out[..., :-1] / out[..., -1:]).to(dtype)
        log_k = self._logs(key)
        shift = log_k.amax(-1, keepdim=True)
        if self.sums is None:
            self.sums = key.new_zeros(b, h, log_k.shape[-1], value.shape[-1])
        else:
            shift = torch.maximum(self.shift, shift)
            self.sums = self.sums * (self.shift - shift).exp()[..., None]
        self.shift = shift
        self.sums = self.sums + (log_k - shift).exp()[..., None] * value[..., None, :]
        log_q = self._logs(query)
        most = log_q.amax(-1, keepdim=True)
        features = (log_q - most).exp()
        rest = (features[..., None, :] @ self.sums)[..., 0, :]
        log = (most + shift)[..., 0]
        top = log if top is None else torch.maximum(top, log)
        if self.window:
            self.logs = self._push(self.logs, log_k)
            weights = (scores - top[..., None]).exp()
            exact = (weights[..., None] * self.values).sum(-2)
            products = ((self.logs - shift[..., None, :]).exp() @ features[..., None])[..., 0]
            noise = rest[..., -1:] * (64 * torch.finfo(work).eps)
            rest = rest - (products[..., None] * self.values).sum(-2)
            rest = torch.where(rest[..., -1:] > noise, rest, 0.0)
            if self.layer.options.get("shrinkage"):
                square = products.square().sum(-1) * (log - top).exp()
                share = (weights * products).sum(-1) / torch.where(square > 0, square, 1.0)
                rest = rest * torch.where(square > 0, share.clamp(0, 1), 1.0)[..., None]
        both = exact + rest * (log - top).exp()[..., None]
        self.seen += 1
        return (both[..., :-1] / both[..., -1:]).to(dtype)

    def _push(self, kept: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        new = new[..., None, :]
        return new if kept is None else torch.cat([kept, new], -2)[..., -self.window :, :]

    def _logs(self, x: torch.Tensor) -> torch.Tensor:
        """Logarithms of the features of (B, H, E)."""
        along = (x * math.sqrt(self.temperature)) @ self.layer.projection.to(x).mT  # type: ignore[union-attr]
        if self.layer.options.get("features", "cosh") == "cosh":
            along = torch.cat([along, -along], -1)
        shift = x.square().sum(-1, keepdim=True) * (self.temperature / 2) + math.log(along.shape[-1]) / 2
        return along - shift


class MultiheadAttention(nn.Module):
    """In place of :class:`torch.nn.MultiheadAttention`: the same parameters, names and call, another attention inside.

    Args:
        embed_dim, num_heads, bias, batch_first: As there.
        attention: What replaces `scaled_dot_product_attention`; default a :class:`ScatterbrainAttention` with
        `options`.

    Raises:
        ValueError: `embed_dim` is no multiple of `num_heads`; masks that are neither key padding nor causal.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import MultiheadAttention
        >>> ours = MultiheadAttention(32, 4, batch_first=True, n_features=16, window=16)
        >>> theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        >>> _ = ours.load_state_dict(theirs.state_dict(), strict=False)
        >>> ours(*[torch.zeros(1, 50, 32)] * 3)[0].shape
        torch.Size([1, 50, 32])
    """

    #: What torch's encoder layers ask before they leave out the attention module altogether: they must not.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        batch_first: bool = False,
        *,
        attention: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads = {num_heads}, got {embed_dim}")
        self.embed_dim, self.num_heads, self.batch_first = embed_dim, num_heads, batch_first
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.attention = (
            ScatterbrainAttention(embed_dim // num_heads, **options) if attention is None else attention
        )

    @classmethod
    def from_torch(cls, layer: nn.MultiheadAttention, attention: nn.Module) -> MultiheadAttention:
        """One with the parameters of `layer` (shared, not copied)."""
        if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
            raise ValueError("layer must have one width and no added keys")
        made = cls(
            layer.embed_dim,
            layer.num_heads,
            layer.in_proj_bias is not None,
            layer.batch_first,
            attention=attention,
        )
        made.in_proj_weight, made.in_proj_bias, made.out_proj = (
            layer.in_proj_weight,
            layer.in_proj_bias,
            layer.out_proj,
        )
        return made.train(layer.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(output, weights or None); weights cost the memory that the layer is there to save."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, c).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, c in zip((query, key, value), self.in_proj_weight.chunk(3), biases, strict=True)
        )
        if key_padding_mask is not None and key_padding_mask.dtype != torch.bool:
            key_padding_mask = torch.isneginf(key_padding_mask)
        more = {"need_weights": True} if need_weights else {}
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # here True means not to attend
        found = self.attention(
            q, k, v, attn_mask, is_causal=is_causal, key_padding_mask=key_padding_mask, **more
        )
        out, weights = found if need_weights else (found, None)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        return out if self.batch_first else out.transpose(0, 1), weights


@torch.compiler.disable
def padding_of(
    mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> tuple[torch.Tensor | None, bool]:
    """What a mask of `scaled_dot_product_attention` hides: keys (B, S) or None, and whether it is causal beside
    that."""
    b, t, s = query.shape[0], query.shape[2], key.shape[2]
    seen = mask if mask.dtype == torch.bool else mask > -1e4
    if mask.dtype != torch.bool and bool((torch.where(seen, mask, 0) != 0).any()):
        raise ValueError("attn_mask must hide keys and not weigh them, got finite entries other than 0")
    if seen.dim() < 2 or seen.dim() > 4 or (seen.dim() > 2 and seen.shape[-3] not in (1, query.shape[1])):
        raise ValueError(f"attn_mask must broadcast to {(b, query.shape[1], t, s)}, got {tuple(mask.shape)}")
    while seen.dim() < 4:
        seen = seen[None]
    if bool((seen != seen[:, :1]).any()):
        raise ValueError("attn_mask must be the same for all heads")
    seen = seen[:, 0]  # (B or 1, T or 1, S)
    causal = seen.shape[1] > 1 and t == s and not bool(seen.triu(1).any())
    keys = seen.any(1)  # (B or 1, S)
    whole = keys[:, None, :].expand(-1, seen.shape[1], -1)
    if causal:
        whole = whole & torch.ones(t, s, dtype=torch.bool, device=mask.device).tril()
    # A row without any key is one that nobody reads.
    if bool(((whole != seen) & seen.any(-1, keepdim=True)).any()):
        raise ValueError("attn_mask must be a key padding mask, the causal mask or both")
    return (None if bool(keys.all()) else ~keys.expand(b, s)), causal


def scatterbrain_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor, n_features: int | None = None,
    support: Any = "local", **options: Any,
) -> torch.Tensor:  # fmt: skip
    """Attention within each of several sequences of different lengths that lie one after the other.

    Args:
        query, key: (tokens, H, E), value: (tokens, H, D).
        offsets: int (B + 1,), rising from 0 to the number of tokens; sequence i is offsets[i] … offsets[i + 1] - 1.
        n_features, support, options: As for :func:`scatterbrain_attention`.

    Returns:
        (tokens, H, D).

    Raises:
        ValueError: Offsets that do not rise from 0 to the number of tokens.

    Cost: as that of each sequence on its own; sequences of like lengths are run together.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import scatterbrain_packed
        >>> q, k, v = torch.randn(3, 30, 2, 8)
        >>> scatterbrain_packed(q, k, v, torch.tensor([0, 10, 30]), 16, window=8).shape
        torch.Size([30, 2, 8])
    """
    ends = offsets.tolist()
    if (
        offsets.dim() != 1
        or ends[0] != 0
        or ends[-1] != len(query)
        or any(a >= b for a, b in zip(ends, ends[1:], strict=False))
    ):
        raise ValueError(f"offsets must rise from 0 to the {len(query)} tokens, got {ends}")
    lengths = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    out = value.new_empty(len(query), query.shape[1], value.shape[-1])
    # Sequences within a factor of 1.25 of each other share a batch: little is padded.
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    while order:
        group = [i for i in order if lengths[i] <= max(1.25 * lengths[order[0]], lengths[order[0]])]
        order = order[len(group) :]
        longest = max(lengths[i] for i in group)
        place = torch.arange(longest, device=query.device)
        own = torch.tensor([lengths[i] for i in group], device=query.device)[:, None]
        index = torch.tensor([ends[i] for i in group], device=query.device)[:, None] + place.clamp(
            max=longest
        )
        index = torch.minimum(
            index, torch.tensor([ends[i + 1] - 1 for i in group], device=query.device)[:, None]
        )
        there = place < own
        q, k, v = (x[index].transpose(1, 2) for x in (query, key, value))
        mask = None if bool(there.all()) else ~there
        done = scatterbrain_attention(q, k, v, n_features, support, key_padding_mask=mask, **options)
        done = done.transpose(1, 2)
        parts.append((index[there], done[there]))
    rows = torch.cat([rows for rows, _ in parts])
    return out.index_copy(0, rows, torch.cat([values for _, values in parts]))
