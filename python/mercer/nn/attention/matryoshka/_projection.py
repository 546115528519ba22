"""Attention over keys and values kept in the leading coordinates of an orthonormal basis, a rank for each head."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mercer import _checks
from mercer.nn.attention.matryoshka._basis import KVMoments, cayley, check_orthogonal

__all__ = [
    "KVProjection",
    "MatryoshkaAttention",
    "fold_output_projection",
    "fold_value_projection",
    "project_attention",
]


class KVProjection(nn.Module):
    """Bases and means of the keys and values of one layer.

    The bases are ``base @ cayley(X)``: `base` is fixed (the principal axes), X starts at 0 and is what training moves,
    so any start is reached exactly and the bases stay orthogonal whatever the optimiser does.

    Parameters
    ----------
    num_heads : int
        Heads of the keys and values, H. Queries of a group use the basis of their key head.
    head_dim : int
        d.

    Attributes
    ----------
    key_weight, value_weight : (H, d, d) parameters X
    key_mean, value_mean : (H, d) parameters
    key_base, value_base : (H, d, d) buffers

    Notes
    -----
    Source: Lin et al. 2025, MatryoshkaKV. Keys are projected after the rotary embedding.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import KVProjection
    >>> projection = KVProjection(num_heads=2, head_dim=4)
    >>> k = v = torch.randn(1, 2, 7, 4)
    >>> keys, values = projection.compress(k, v, [4, 4], [2, 1])
    >>> keys.shape, values.shape
    (torch.Size([1, 7, 8]), torch.Size([1, 7, 3]))
    >>> torch.allclose(projection.expand(keys, values, [4, 4], [2, 1])[0], k)
    True
    """

    def __init__(
        self, num_heads: int, head_dim: int, *, dtype: torch.dtype = torch.float32, device: Any = None
    ) -> None:
        super().__init__()
        self.num_heads = _checks.integer("num_heads", num_heads, 1)
        self.head_dim = _checks.integer("head_dim", head_dim, 1)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be float32 or float64 (half is not orthogonal), got {dtype}")
        like: dict[str, Any] = {"dtype": dtype, "device": device}
        square, row = (num_heads, head_dim, head_dim), (num_heads, head_dim)
        for name in ("key", "value"):
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.zeros(square, **like)))
            self.register_parameter(f"{name}_mean", nn.Parameter(torch.zeros(row, **like)))
            self.register_buffer(f"{name}_base", torch.eye(head_dim, **like).repeat(num_heads, 1, 1))

    @classmethod
    def from_pca(cls, keys: KVMoments, values: KVMoments, **like: Any) -> Self:
        """The principal axes of keys and values that were seen; `like` is dtype and device."""
        made = cls(keys.num_heads, keys.head_dim, **like)
        if (values.num_heads, values.head_dim) != (keys.num_heads, keys.head_dim):
            raise ValueError(
                f"values must have {keys.num_heads} heads of {keys.head_dim}, "
                f"got {values.num_heads} of {values.head_dim}"
            )
        with torch.no_grad():
            for name, moments in (("key", keys), ("value", values)):
                mean, basis, _ = moments.finalise()
                getattr(made, f"{name}_mean").copy_(mean)
                getattr(made, f"{name}_base").copy_(basis)
        return made

    @classmethod
    def from_bases(
        cls, key: Tensor, value: Tensor, key_mean: Tensor, value_mean: Tensor, **like: Any
    ) -> Self:
        """Given bases (H, d, d), columns the axes, and means (H, d). ValueError unless orthogonal."""
        made = cls(*key.shape[:2], **like)
        with torch.no_grad():
            for name, basis, mean in (("key", key, key_mean), ("value", value, value_mean)):
                to, onto = getattr(made, f"{name}_base"), getattr(made, f"{name}_mean")
                if basis.shape != to.shape or mean.shape != onto.shape:
                    raise ValueError(
                        f"{name} must be {tuple(to.shape)} with mean {tuple(onto.shape)}, got {tuple(basis.shape)} and "
                        f"{tuple(mean.shape)}"
                    )
                check_orthogonal(name, basis)
                to.copy_(basis)
                onto.copy_(mean)
        return made

    def matrices(self) -> tuple[Tensor, Tensor]:
        """(U, V), the bases of keys and values: (H, d, d) each, columns the axes."""
        return self.key_base @ cayley(self.key_weight), self.value_base @ cayley(self.value_weight)

    def compress(self, k: Tensor, v: Tensor, key_ranks: Any, value_ranks: Any) -> tuple[Tensor, Tensor]:
        """The leading coordinates, one head's after another's.

        Parameters
        ----------
        k, v : (B, H, n, d) floating
        key_ranks, value_ranks : int or (H,) int
            In 1..d.

        Returns
        -------
        (B, n, sum of key_ranks) and (B, n, sum of value_ranks), in the dtype of `k` and `v`.
        """
        found = []
        for x, basis, mean, ranks in self._sides(k, v, key_ranks, value_ranks):
            coordinates = (x - mean[:, None]) @ basis
            found.append(coordinates.transpose(1, 2).flatten(2)[..., kept(ranks, self.head_dim)])
        return found[0], found[1]

    def expand(self, keys: Tensor, values: Tensor, key_ranks: Any, value_ranks: Any) -> tuple[Tensor, Tensor]:
        """The nearest k and v, (B, H, n, d), to what :meth:`compress` kept."""
        found = []
        for x, basis, mean, ranks in self._sides(keys, values, key_ranks, value_ranks):
            whole = x.new_zeros(*x.shape[:2], self.num_heads * self.head_dim)
            whole[..., kept(ranks, self.head_dim)] = x
            whole = whole.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
            found.append(whole @ basis.mT + mean[:, None])
        return found[0], found[1]

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}"

    def _sides(self, k: Tensor, v: Tensor, key_ranks: Any, value_ranks: Any) -> list[tuple[Tensor, ...]]:
        U, V = self.matrices()
        check = (self.num_heads, self.head_dim)
        return [
            (k, U.to(k.dtype), self.key_mean.to(k.dtype), checked_ranks("key_ranks", key_ranks, *check)),
            (
                v,
                V.to(v.dtype),
                self.value_mean.to(v.dtype),
                checked_ranks("value_ranks", value_ranks, *check),
            ),
        ]


def checked_ranks(name: str, ranks: Any, num_heads: int, head_dim: int) -> Tensor:
    """(H,) int64 on the CPU; None is d everywhere."""
    value = torch.as_tensor(head_dim if ranks is None else ranks)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers, got {value.dtype}")
    value = value.long().cpu()
    value = value.expand(num_heads) if value.ndim == 0 else value
    if value.shape != (num_heads,):
        raise ValueError(f"{name} must be one number or have shape ({num_heads},), got {tuple(value.shape)}")
    bad = (value < 1) | (value > head_dim)
    if bool(bad.any()):
        at = int(bad.nonzero()[0, 0])
        raise ValueError(f"{name} must lie in 1..{head_dim}, got {int(value[at])} for head {at}")
    return value


def kept(ranks: Tensor, head_dim: int) -> Tensor:
    """Indices, among the H d coordinates of all heads, of those below the ranks."""
    return below(ranks, head_dim).flatten().nonzero()[:, 0]


def below(ranks: Tensor, head_dim: int) -> Tensor:
    """(H, d) bool: which coordinates a head keeps."""
    return torch.arange(head_dim, device=ranks.device) < ranks[:, None]


def project_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: KVProjection,
    key_ranks: Any = None,
    value_ranks: Any = None,
    is_causal: bool = False,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
) -> Any:
    """Attention that sees only the leading coordinates of keys and values: what a compressed cache gives.

    Differentiable in everything, the parameters of `projection` included; ranks are masks here, so this is the form to
    train with. Ranks of d give ordinary attention.

    Parameters
    ----------
    q : (B, G H, n, d) floating
        Queries (after any rotary embedding), G to a key head.
    k, v : (B, H, m, d)
    projection : KVProjection
        Of H heads, or of one for each query (keys are then repeated, and a cache saves nothing by their groups).
    key_ranks, value_ranks : int or (heads,) int, optional
        In 1..d; d if not given.
    is_causal : bool
        Query i sees keys up to i + m - n.
    mask : broadcastable to (B, G H, n, m), optional
        bool (True is seen) or added to the scores.
    scale : float, optional
        1/sqrt(d) if not given, d the whole head dimension.
    dropout_p : float
        Of the attention weights.
    return_weights : bool
        Also return them, (B, G H, n, m).

    Returns
    -------
    (B, G H, n, d); with `return_weights` a pair.

    Raises
    ------
    ValueError
        Shapes, ranks, dtypes or devices that do not fit.

    Notes
    -----
    Cost: that of ordinary attention plus O((n + m) d²) a head.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import KVProjection, project_attention
    >>> q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    >>> project_attention(q, k, k, KVProjection(2, 8), key_ranks=[8, 2], is_causal=True).shape
    torch.Size([1, 4, 5, 8])
    """
    heads, d = projection.num_heads, projection.head_dim
    k, v = _fit(q, k, v, projection)
    mask = causal(q.shape[2], k.shape[2], q.device, mask) if is_causal else mask
    U, V = (m.to(q.dtype) for m in projection.matrices())
    key_ranks = checked_ranks("key_ranks", key_ranks, heads, d).to(q.device)
    value_ranks = checked_ranks("value_ranks", value_ranks, heads, d).to(q.device)
    U = U * below(key_ranks, d)[:, None]
    V = V * below(value_ranks, d)[:, None]
    groups = q.shape[1] // heads
    # The mean of the keys adds one number to all scores of a query, which the softmax does not see.
    keys = (k - projection.key_mean.to(q.dtype)[:, None]) @ U
    values = (v - projection.value_mean.to(q.dtype)[:, None]) @ V
    queries = (q.unflatten(1, (heads, groups)) @ U[:, None]).flatten(1, 2)
    scale = d**-0.5 if scale is None else scale
    weights = None
    if return_weights:
        scores = queries @ keys.repeat_interleave(groups, 1).mT * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = torch.softmax(scores.float() if scores.dtype != torch.float64 else scores, -1).to(q.dtype)
        out = F.dropout(weights, dropout_p) @ values.repeat_interleave(groups, 1)
    else:
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout_p, scale=scale, enable_gqa=groups > 1
        )
    out = out.unflatten(1, (heads, groups)) @ V.mT[:, None] + projection.value_mean.to(q.dtype)[:, None, None]
    out = out.flatten(1, 2)
    return (out, weights) if return_weights else out


def _fit(q: Tensor, k: Tensor, v: Tensor, projection: KVProjection) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the projection."""
    heads, d = projection.num_heads, projection.head_dim
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or x.shape[-1] != d or not x.is_floating_point():
            raise ValueError(
                f"{name} must be floating of shape (B, heads, n, {d}), got {x.dtype} of {tuple(x.shape)}"
            )
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} like q, got {x.dtype} on {x.device}")
    if k.shape != v.shape or k.shape[0] != q.shape[0]:
        raise ValueError(
            f"k and v must have one shape and the batch of q, got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[1] % heads or heads % k.shape[1]:
        raise ValueError(
            f"projection must have as many heads as k ({k.shape[1]}) or q ({q.shape[1]}), got {heads}"
        )
    if k.shape[1] < heads:
        repeats = heads // k.shape[1]
        return k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return k, v


def causal(n: int, m: int, device: Any, mask: Tensor | None) -> Tensor:
    """The mask that also hides what comes after a query, the last of n at the last of m keys."""
    seen = torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)
    if mask is None:
        return seen
    return seen & mask if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)


class MatryoshkaAttention(nn.Module):
    """:func:`project_attention` with a projection and ranks of its own: a drop-in for a function of (q, k, v, mask).

    Parameters
    ----------
    projection : KVProjection
    key_ranks, value_ranks : int or (H,) int, optional
        d if not given; :meth:`set_ranks` changes them.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import KVProjection, MatryoshkaAttention
    >>> attention = MatryoshkaAttention(KVProjection(2, 8), 4, [8, 2])
    >>> attention(*torch.randn(3, 1, 2, 5, 8)).shape
    torch.Size([1, 2, 5, 8])
    """

    key_ranks: Tensor
    value_ranks: Tensor

    def __init__(self, projection: KVProjection, key_ranks: Any = None, value_ranks: Any = None) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("key_ranks", torch.zeros(projection.num_heads, dtype=torch.long))
        self.register_buffer("value_ranks", torch.zeros(projection.num_heads, dtype=torch.long))
        self.set_ranks(key_ranks, value_ranks)

    def set_ranks(self, key_ranks: Any, value_ranks: Any) -> None:
        """Keep so many coordinates from now on."""
        shape = (self.projection.num_heads, self.projection.head_dim)
        new = [
            checked_ranks("key_ranks", key_ranks, *shape),
            checked_ranks("value_ranks", value_ranks, *shape),
        ]
        self.key_ranks.copy_(new[0])
        self.value_ranks.copy_(new[1])

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        """As :func:`project_attention`."""
        return project_attention(
            q, k, v, self.projection, self.key_ranks, self.value_ranks, mask=mask, **options
        )


def fold_output_projection(
    weight: Tensor, bias: Tensor | None, projection: KVProjection, value_ranks: Any
) -> tuple[Tensor, Tensor]:
    """The output projection that takes compressed values: the basis of the values costs nothing at run time.

    Parameters
    ----------
    weight : (hidden, G H d)
        As of ``nn.Linear``: the heads' outputs lie one after another.
    bias : (hidden,), optional
    projection : KVProjection
    value_ranks : int or (H,) int

    Returns
    -------
    weight : (hidden, sum of the ranks of all G H queries), bias : (hidden,)
        ``cat_h(attention_h @ v'_h) @ weight.T + bias`` is the output.
    """
    heads, d = projection.num_heads, projection.head_dim
    ranks = checked_ranks("value_ranks", value_ranks, heads, d)
    if weight.ndim != 2 or weight.shape[1] % (heads * d):
        raise ValueError(
            f"weight must have shape (hidden, a multiple of {heads * d}), got {tuple(weight.shape)}"
        )
    _, V = projection.matrices()
    parts = weight.unflatten(1, (heads, -1, d)).movedim(1, 0).to(V.dtype)  # (H, hidden, G, d)
    folded = parts @ V[:, None]
    columns = [folded[h, :, :, : int(r)].flatten(1) for h, r in enumerate(ranks)]
    shift = torch.einsum("hogd,hd->o", parts, projection.value_mean)
    shift = shift if bias is None else shift + bias
    return torch.cat(columns, 1).to(weight.dtype), shift.to(weight.dtype)


def fold_value_projection(
    weight: Tensor, bias: Tensor | None, projection: KVProjection, value_ranks: Any
) -> tuple[Tensor, Tensor]:
    """The value projection that gives compressed values, one head's after another's.

    Parameters
    ----------
    weight : (H d, hidden), as of ``nn.Linear``; bias : (H d,), optional

    Returns
    -------
    weight : (sum of ranks, hidden), bias : (sum of ranks,)
    """
    heads, d = projection.num_heads, projection.head_dim
    ranks = checked_ranks("value_ranks", value_ranks, heads, d)
    if weight.ndim != 2 or weight.shape[0] != heads * d:
        raise ValueError(f"weight must have shape ({heads * d}, hidden), got {tuple(weight.shape)}")
    _, V = projection.matrices()
    rows = V.mT @ weight.unflatten(0, (heads, d)).to(V.dtype)
    start = (
        torch.zeros_like(projection.value_mean) if bias is None else bias.unflatten(0, (heads, d)).to(V.dtype)
    )
    shift = ((start - projection.value_mean)[:, None] @ V)[:, 0]
    index = kept(ranks, d).to(weight.device)
    return rows.flatten(0, 1)[index].to(weight.dtype), shift.flatten()[index].to(weight.dtype)
