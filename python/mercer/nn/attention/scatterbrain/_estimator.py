"""The estimator: exact where the support is, random features elsewhere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from mercer import _checks
from mercer.nn import _dispatch
from mercer.nn.attention.neighborhood._products import _real, _same
from mercer.nn.attention.scatterbrain import _supports
from mercer.nn.attention.scatterbrain._features import KINDS, orthogonal_gaussian, performer_features
from mercer.nn.attention.scatterbrain._supports import SUPPORTS, Support

__all__ = ["approximation_error", "estimated_matrix", "scatterbrain_attention"]

#: Steps of a causal prefix sum.
CHUNK = 128


def scatterbrain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    n_features: int | None = None,
    support: str | torch.Tensor | None = "local",
    *,
    window: int = 64,
    cluster_size: int = 32,
    n_hashes: int = 2,
    topk: int = 32,
    block: int = 32,
    window_blocks: int = 3,
    global_blocks: int = 0,
    random_blocks: int = 0,
    temperature: float | None = None,
    features: str = "cosh",
    ortho_scaling: int = 0,
    projection: torch.Tensor | None = None,
    clusters: tuple[torch.Tensor, torch.Tensor] | None = None,
    causal: bool = False,
    key_padding_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    shrinkage: bool = False,
    centre: bool = False,
    random_state: Any = 0,
    need_weights: bool = False,
) -> Any:
    """Softmax attention in linear time: exact on a sparse support, positive random features elsewhere.

    With A_ij = exp(t q_i·k_j), weights are A_ij on the support S and phi(q_i)·phi(k_j) off it, divided by their sum
    over j. Before that division they are unbiased, S being independent of the features.

    Args:
        query: (B, H, T, E), key: (B, H, S, E), value: (B, H, S, D), of one dtype and device; float16 and bfloat16 are
            computed in float32 and returned as they came.
        n_features: m numbers a token; even for "cosh". None: E log E, rounded; 0: only the support (SMYRF,
            Reformer, local attention).
        support: "local": `window` keys around each query (the last `window` if causal); "smyrf" and "cross_polytope":
            `n_hashes` rounds of clusters of `cluster_size`; "topk": the `topk` largest products, found exactly in
            quadratic time; "block": `window_blocks` blocks of `block` keys around each block of queries, the first
            `global_blocks` and `random_blocks` others; a bool tensor that broadcasts to (B, H, T, S); None: only
            features (Performer).
        temperature: t > 0; default E^(-1/2).
        features: "cosh", or "positive" (its one-sided form).
        ortho_scaling: As `scaling` of :func:`orthogonal_gaussian`.
        projection: The W of the features, given instead of drawn.
        clusters: Orders of queries (n_hashes, B H, T) and keys (n_hashes, B H, S), given instead of hashed.
        causal: Query i sees keys up to i; T = S. Clusters and "topk" choose their pairs with an eye on all tokens: use
            "local" or "block" where a token must not depend on later ones in any way.
        key_padding_mask: (B, S) bool, True for keys that are not there. A query without any key gets 0.
        dropout: Probability with which an exact weight is left out; the estimated part is kept whole.
        shrinkage: Ours, not the paper's: multiply the estimated part of each row by c_i in [0, 1] that fits it to the
            exact values on the support by least squares; 0 is only the support, 1 the paper's form.
        centre: Ours: subtract the mean key, which changes exact attention by nothing, and the mean query, whose part is
            put back into the keys' features exactly. Less variance; not for causal attention.
        random_state: Of features, hashes and random blocks. Dropout uses torch's own generator.
        need_weights: Also give the weights (B, H, T, S): quadratic, to look at.

    Returns:
        (B, H, T, D), and with `need_weights` the weights.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not agree, sizes out of range.

    Cost: T (m (E + D) + |S_i| (E + D + m)) multiply-adds; m + |S_i| numbers a token of memory instead of S. Chen, Dao,
    Winsor, Song, Rudra and Ré, "Scatterbrain" (NeurIPS 2021), section 4.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import scatterbrain_attention
        >>> q, k, v = torch.randn(3, 1, 2, 200, 16, generator=torch.Generator().manual_seed(0))
        >>> scatterbrain_attention(q, k, v, n_features=32, support="local", window=32).shape
        torch.Size([1, 2, 200, 16])
        >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        >>> every = scatterbrain_attention(q, k, v, 32, torch.ones(200, 200, dtype=torch.bool))
        >>> torch.allclose(every, exact, atol=1e-5)
        True
    """
    form = _checked(
        query=query, key=key, value=value, n_features=n_features, support=support, window=window,
        cluster_size=cluster_size, n_hashes=n_hashes, topk=topk, block=block, window_blocks=window_blocks,
        global_blocks=global_blocks, random_blocks=random_blocks, temperature=temperature, features=features,
        ortho_scaling=ortho_scaling, projection=projection, causal=causal, key_padding_mask=key_padding_mask,
        dropout=dropout, shrinkage=shrinkage, centre=centre, random_state=random_state,
    )  # fmt: skip
    b, h, t, _ = query.shape
    s, dtype = key.shape[2], query.dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (x.flatten(0, 1).to(work) for x in (query, key, value))
        allowed = None
        if key_padding_mask is not None:
            allowed = ~key_padding_mask[:, None].expand(b, h, s).reshape(b * h, s)
        pairs = _support(form, q, k, allowed, (b, h), clusters)
        low = _low_rank(form, q, k, allowed)
        out = _assemble(form, q, k, v, low, pairs, allowed)
        out = out.view(b, h, t, value.shape[-1]).to(dtype)
        if not need_weights:
            return out
        weights = _dense(form, q, k, low, pairs, allowed, normalise=True)
    return out, weights.view(b, h, t, s)


def estimated_matrix(
    query: torch.Tensor,
    key: torch.Tensor,
    n_features: int | None = None,
    support: Any = "local",
    **options: Any,
) -> torch.Tensor:
    """The unnormalised estimate of exp(t q_i·k_j), (B, H, T, S): quadratic, to measure with.

    Arguments as for :func:`scatterbrain_attention`. On the support it is exact; off it, unbiased.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import estimated_matrix
        >>> q = torch.ones(1, 1, 4, 2)
        >>> estimated_matrix(q, q, 8, "local", window=1)[0, 0].diagonal().log().round(decimals=4)
        tensor([1.4142, 1.4142, 1.4142, 1.4142])
    """
    clusters = options.pop("clusters", None)
    form = _checked(
        query=query, key=key, value=key, n_features=n_features, support=support, **_DEFAULTS | options
    )
    b, h, t, _ = query.shape
    q, k = query.flatten(0, 1), key.flatten(0, 1)
    mask = options.get("key_padding_mask")
    allowed = None if mask is None else ~mask[:, None].expand(b, h, -1).reshape(b * h, -1)
    pairs = _support(form, q, k, allowed, (b, h), clusters)
    return _dense(form, q, k, _low_rank(form, q, k, allowed), pairs, allowed, normalise=False).view(
        b, h, t, -1
    )


def approximation_error(
    query: torch.Tensor,
    key: torch.Tensor,
    n_features: int | None = None,
    support: Any = "local",
    *,
    rows: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the weights are from those of exact attention, and how good the support is.

    Args:
        query, key, n_features, support, options: As for :func:`scatterbrain_attention`.
        rows: Queries to look at; None for all.

    Returns:
        The relative error |W - W_exact| / |W_exact| in the Frobenius norm, (B, H); and the recall of the
        support, the sum of the exact weights on it over that of as many largest ones in each row, (B, H), 0
        without a support.

    Cost: len(rows) x S numbers.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import approximation_error
        >>> q, k = torch.randn(2, 1, 1, 100, 8, generator=torch.Generator().manual_seed(0))
        >>> error, recall = approximation_error(q, k, 32, "topk", topk=16)
        >>> bool(error < 1), round(float(recall), 6)
        (True, 1.0)
    """
    form = _checked(
        query=query, key=key, value=key, n_features=n_features, support=support, **_DEFAULTS | options
    )
    b, h = query.shape[:2]
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        q, k = (x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key))
        mask = options.get("key_padding_mask")
        allowed = None if mask is None else ~mask[:, None].expand(b, h, -1).reshape(b * h, -1)
        pairs = _support(form, q, k, allowed, (b, h), None)
        low = _low_rank(form, q, k, allowed)
        weights = _dense(form, q, k, low, pairs, allowed, normalise=True, rows=rows)
        every = _supports.mask_support(
            torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device), b, h
        )
        exact_form = dataclasses.replace(form, support=None)
        every = _visible(exact_form, every, allowed)
        exact = _dense(exact_form, q, k, None, every, allowed, normalise=True, rows=rows)
        error = (weights - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
        recall = torch.zeros_like(error)
        if pairs is not None:
            on = pairs.dense(len(q), q.shape[1], k.shape[1], rows)
            best = exact.sort(-1, descending=True).values.cumsum(-1)
            count = on.sum(-1, keepdim=True)
            most = torch.where(count > 0, best.gather(-1, (count - 1).clamp(min=0)), 0.0)
            recall = torch.where(on, exact, 0.0).sum((1, 2)) / most.sum((1, 2)).clamp(min=1e-30)
    return error.view(b, h), recall.view(b, h)


_DEFAULTS: dict[str, Any] = {
    name: default
    for name, default in (scatterbrain_attention.__kwdefaults__ or {}).items()
    if name not in ("need_weights", "clusters")
}


@dataclasses.dataclass(frozen=True, eq=False)
class _Form:
    n_features: int
    support: str | torch.Tensor | None
    temperature: float
    projection: torch.Tensor | None
    options: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.options[name]


@torch.compiler.disable
def _checked(**given: Any) -> _Form:
    """Refuse what does not fit, before any work."""
    query, key, value = given.pop("query"), given.pop("key"), given.pop("value")
    _real("query", query)
    for name, x in (("key", key), ("value", value)):
        _same(name, x, "query", query)
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != 4 or 0 in x.shape[1:]:
            raise ValueError(
                f"{name} must be (B, H, tokens, columns), none of them 0, got shape {tuple(x.shape)}"
            )
    b, h, t, e = query.shape
    if key.shape[:2] != (b, h) or key.shape[3] != e:
        raise ValueError(f"key must be ({b}, {h}, S, {e}) like query, got shape {tuple(key.shape)}")
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value must be {tuple(key.shape[:3])} like key, got shape {tuple(value.shape)}")
    causal = _checks.flag("causal", given["causal"])
    if causal and key.shape[2] != t:
        raise ValueError(f"key must have the {t} tokens of query for causal attention, got {key.shape[2]}")
    for name in ("window", "cluster_size", "n_hashes", "topk", "block", "window_blocks"):
        given[name] = _checks.integer(name, given[name], 1)
    for name in ("global_blocks", "random_blocks"):
        given[name] = _checks.integer(name, given[name], 0)
    for name in ("shrinkage", "centre"):
        given[name] = _checks.flag(name, given[name])
    if given["centre"] and causal:
        raise ValueError("centre must be False for causal attention, whose mean would look ahead, got True")
    given["dropout"] = _checks.real("dropout", given["dropout"], 0)
    if given["dropout"] >= 1:
        raise ValueError(f"dropout must be in [0, 1), got {given['dropout']}")
    temperature = given.pop("temperature")
    temperature = e**-0.5 if temperature is None else _checks.real("temperature", temperature, 0, strict=True)
    kind = _checks.choice("features", given["features"], KINDS)
    _checks.integer("ortho_scaling", given["ortho_scaling"], 0, high=1)
    n_features, projection, support = given.pop("n_features"), given.pop("projection"), given.pop("support")
    sides = 2 if kind == "cosh" else 1
    if n_features is None:
        drawn = sides * round(e * math.log(max(e, 2)) / sides)
        n_features = drawn if projection is None else sides * len(projection)
    n_features = _checks.integer("n_features", n_features, 0)
    if n_features % sides:
        raise ValueError(f"n_features must be even for 'cosh' features, got {n_features}")
    if projection is not None and projection.shape != (n_features // sides, e):
        raise ValueError(
            f"projection must have shape {(n_features // sides, e)}, got {tuple(projection.shape)}"
        )
    if isinstance(support, torch.Tensor):
        if support.dtype != torch.bool or support.device != query.device:
            raise ValueError(f"support must be a bool tensor on {query.device}, got {support.dtype}")
        if support.dim() not in (2, 3, 4) or support.shape[-2:] != (t, key.shape[2]):
            raise ValueError(
                f"support must broadcast to {(b, h, t, key.shape[2])}, got shape {tuple(support.shape)}"
            )
    elif support is not None:
        _checks.choice("support", support, SUPPORTS)
    if n_features == 0 and support is None:
        raise ValueError("n_features must be > 0 where support is None, got 0")
    mask = given["key_padding_mask"]
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (b, key.shape[2])):
        raise ValueError(
            f"key_padding_mask must be bool {(b, key.shape[2])}, got {mask.dtype} {tuple(mask.shape)}"
        )
    return _Form(n_features, support, temperature, projection, given)


@torch.compiler.disable
def _support(
    form: _Form,
    q: torch.Tensor,
    k: torch.Tensor,
    allowed: torch.Tensor | None,
    heads: tuple[int, int],
    clusters: tuple[torch.Tensor, torch.Tensor] | None,
) -> Support | None:
    """The pairs that are exact, those of absent keys and of the future left out."""
    t, s = q.shape[1], k.shape[1]
    if form.support is None:
        return None
    if isinstance(form.support, torch.Tensor):
        found = _supports.mask_support(form.support, *heads)
    elif form.support == "local":
        found = _supports.local_support(t, s, min(form.window, 2 * s), causal=form.causal, device=q.device)
    elif form.support == "block":
        found = _supports.block_support(
            t, s, form.block, window_blocks=form.window_blocks, global_blocks=form.global_blocks,
            random_blocks=form.random_blocks, random_state=form.random_state, device=q.device,
        )  # fmt: skip
    elif form.support == "topk":
        found = _supports.topk_support(q, k, form.topk, allowed, form.causal)
    else:
        if clusters is None:
            clusters = _supports.smyrf_clusters(
                q,
                k,
                n_hashes=form.n_hashes,
                scheme=form.support,
                random_state=form.random_state,
                allowed=allowed,
            )
        found = _supports.cluster_support(*clusters, form.cluster_size)
    return _visible(form, found, allowed)


def _visible(form: _Form, found: Support, allowed: torch.Tensor | None) -> Support:
    """Without the keys that are not there and those of the future."""
    pairs = found.pairs
    if allowed is not None:
        index = found.keys.expand(len(allowed), -1, -1)
        pairs = pairs & allowed.gather(1, index.flatten(1)).view(index.shape)[:, :, None]
    if form.causal:
        pairs = pairs & (found.keys[:, :, None, :] <= found.queries[:, :, :, None])
    return dataclasses.replace(found, pairs=pairs)


@dataclasses.dataclass(frozen=True, eq=False)
class _LowRank:
    """Features of queries and keys, and the logarithm of the factor of each query, (N, T)."""

    queries: torch.Tensor
    keys: torch.Tensor
    log: torch.Tensor


def _low_rank(form: _Form, q: torch.Tensor, k: torch.Tensor, allowed: torch.Tensor | None) -> _LowRank | None:
    if form.n_features == 0:
        return None
    w = form.projection
    if w is None:
        rows = form.n_features // (2 if form.features == "cosh" else 1)
        w = orthogonal_gaussian(
            rows,
            q.shape[-1],
            scaling=form.ortho_scaling,
            random_state=form.random_state,
            dtype=q.dtype,
            device=q.device,
        )
    log_keys = None if allowed is None else torch.where(allowed, 0.0, -math.inf).to(q.dtype)
    log_queries = None
    if form.centre:
        # exp(t q·k) = exp(t q·m) exp(t (q - n)·(k - m)) exp(t n·(k - m)), m and n the mean key and query.
        mean_k, mean_q = _mean(k, allowed), _mean(q, None)
        log_queries = form.temperature * (q @ mean_k.mT)[..., 0]
        k, q = k - mean_k, q - mean_q
        extra = form.temperature * (k @ mean_q.mT)[..., 0]
        log_keys = extra if log_keys is None else extra + log_keys
    how = {"temperature": form.temperature, "kind": form.features}
    queries, log_q = performer_features(q, w, is_query=True, log_factors=log_queries, **how)
    keys, log_k = performer_features(k, w, is_query=False, log_factors=log_keys, **how)
    return _LowRank(queries, keys, (log_q + log_k)[..., 0])


def _mean(x: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    x = x.detach()
    if allowed is None:
        return x.mean(1, keepdim=True)
    there = allowed[..., None].to(x.dtype)
    return (x * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)


def _assemble(
    form: _Form,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    low: _LowRank | None,
    pairs: Support | None,
    allowed: torch.Tensor | None,
) -> torch.Tensor:
    """sum over S of A v + c (sum of all phi·phi v - sum over S of phi·phi v), divided by the same with v = 1.

    Everything is relative to exp(top_i), top_i the largest exponent of a row, so that nothing overflows.
    """
    n, t = q.shape[:2]
    ones = v.new_ones(*v.shape[:-1], 1)
    v = torch.cat([v, ones], -1)  # the last column adds up the weights themselves
    if allowed is not None:
        v = v.masked_fill(~allowed[..., None], 0.0)
    top = q.new_full((n, t), -math.inf) if low is None else low.log
    exact = on_support = None
    if pairs is not None:
        exact, on_support, top, shares = _on_support(form, q, k, v, low, pairs, top)
    if low is None:
        assert exact is not None
        return _divided(exact)
    rest = _prefix_sums(low, v) if form.causal else low.queries @ (low.keys.mT @ v)
    if on_support is not None:
        # What is left of a sum that the support exhausts is rounding.
        noise = rest[..., -1:] * (64 * torch.finfo(q.dtype).eps)
        rest = rest - on_support
        rest = torch.where(rest[..., -1:] > noise, rest, 0.0)
        rest = rest * shares[..., None]
    rest = rest * (low.log - top).exp()[..., None]
    both = rest if exact is None else exact + rest
    return _divided(both)


def _divided(sums: torch.Tensor) -> torch.Tensor:
    """All columns by the last; 0 where that is 0."""
    total = sums[..., -1:].detach()
    there = total > 1e-36
    # First by what has no gradient: that of a quotient has the square of a small total below it.
    sums = sums / torch.where(there, total, 1.0)
    return torch.where(there, sums[..., :-1] / torch.where(there, sums[..., -1:], 1.0), 0.0)


def _on_support(
    form: _Form,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    low: _LowRank | None,
    pairs: Support,
    top: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Of the pairs of the support: sums of A v relative to exp(top), sums of phi·phi v, top, and the share c of
    a row."""
    n, t = q.shape[:2]
    at_q, at_k = pairs.queries.expand(n, -1, -1), pairs.keys.expand(n, -1, -1)

    if not form.dropout and not form.shrinkage:
        count = pairs.pairs if pairs.count is None else pairs.count * pairs.pairs
        features = None if low is None else (low.queries, low.keys)
        done = _dispatch.scatterbrain_tiles(
            q, k, v, features, pairs.queries, pairs.keys, count, form.temperature
        )
        if done is not None:
            return _gathered(form, at_q, top, *done, low is not None)
    v_tiles = _take(v, at_k)
    log = form.temperature * (_take(q, at_q) @ _take(k, at_k).mT)  # (N, tiles, a, b)
    if pairs.count is not None:
        log = log - pairs.count.clamp(min=1).to(log.dtype).log()
    log = log.masked_fill(~pairs.pairs, -math.inf)
    rows = at_q.flatten(1)
    top = top.detach().scatter_reduce(1, rows, log.detach().amax(-1).flatten(1), "amax")
    top = torch.where(torch.isneginf(top), 0.0, top)
    weights = (log - top.gather(1, rows).view(at_q.shape)[..., None]).exp()

    def by_query(x: torch.Tensor) -> torch.Tensor:  # (N, tiles, a, d) -> (N, T, d)
        index = rows[..., None].expand(-1, -1, x.shape[-1])
        return x.new_zeros(n, t, x.shape[-1]).scatter_add(1, index, x.flatten(1, 2))

    kept = torch.nn.functional.dropout(weights, form.dropout) if form.dropout else weights
    exact = by_query(torch.cat([kept @ v_tiles[..., :-1], weights.sum(-1, keepdim=True)], -1))
    shares = q.new_ones(n, t)
    if low is None:
        return exact, None, top, shares
    products = (_take(low.queries, at_q) @ _take(low.keys, at_k).mT).masked_fill(~pairs.pairs, 0.0)
    if form.shrinkage:
        times = 1.0 if pairs.count is None else pairs.count.clamp(min=1).to(log.dtype)
        whole = products / times
        fit = by_query(torch.stack([(weights * whole * times).sum(-1), (whole.square() * times).sum(-1)], -1))
        least = fit[..., 1] * (low.log - top).exp()
        there = least.detach() > 1e-18  # else the fit is beyond 1, and its gradient beyond all numbers
        shares = torch.where(there, (fit[..., 0] / torch.where(there, least, 1.0)).clamp(0, 1), 1.0)
    if pairs.count is not None:
        products = products / pairs.count.clamp(min=1)
    return exact, by_query(products @ v_tiles), top, shares


def _gathered(
    form: _Form,
    at: torch.Tensor,
    top: torch.Tensor,
    of_tile: torch.Tensor,
    exact: torch.Tensor,
    estimate: torch.Tensor,
    has_features: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """What tiles gave each of their queries (largest score, sums, estimates), added up query by query."""
    n, t = top.shape
    rows = at.flatten(1)
    top = top.scatter_reduce(1, rows, of_tile.flatten(1), "amax")
    none = top < -1e29  # no pair and no features
    top = torch.where(none, 0.0, top)
    scale = (of_tile - top.gather(1, rows).view(of_tile.shape)).exp()
    index = rows[..., None].expand(-1, -1, exact.shape[-1])

    def by_query(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(n, t, x.shape[-1]).scatter_add(1, index, x.flatten(1, 2))

    whole = by_query(exact * scale[..., None])
    return whole, by_query(estimate) if has_features else None, top, top.new_ones(n, t)


def _take(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """(N, n, d) at (N, tiles, a) -> (N, tiles, a, d)."""
    index = at.flatten(1)[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index).view(*at.shape, x.shape[-1])


def _prefix_sums(low: _LowRank, v: torch.Tensor) -> torch.Tensor:
    """sum over j <= i of phi(q_i)·phi(k_j) v_j, chunk by chunk: (N, T, d)."""
    n, t, m = low.queries.shape
    more = -t % CHUNK
    q, k, v = (
        torch.nn.functional.pad(x, (0, 0, 0, more)).view(n, -1, CHUNK, x.shape[-1])
        for x in (low.queries, low.keys, v)
    )
    sums = k.mT @ v  # (N, chunks, m, d)
    before = sums.cumsum(1) - sums
    out = (q @ k.mT).tril() @ v + q @ before
    return out.flatten(1, 2)[:, :t]


def _dense(
    form: _Form,
    q: torch.Tensor,
    k: torch.Tensor,
    low: _LowRank | None,
    pairs: Support | None,
    allowed: torch.Tensor | None,
    *,
    normalise: bool,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """The matrix, or some rows of it, by its definition."""
    n, t, s = len(q), q.shape[1], k.shape[1]
    index = torch.arange(t, device=q.device) if rows is None else rows
    if low is not None and rows is not None:
        low = _LowRank(low.queries[:, rows], low.keys, low.log[:, rows])
    log = form.temperature * (q[:, index] @ k.mT)
    seen = torch.ones(log.shape, dtype=torch.bool, device=q.device)
    if allowed is not None:
        seen &= allowed[:, None]
    if form.causal:
        seen &= torch.arange(s, device=q.device) <= index[:, None]
    on = torch.zeros_like(seen) if pairs is None else pairs.dense(n, t, s, rows)
    top = torch.where(on, log, -math.inf).amax(-1, keepdim=True)
    if low is not None:
        top = torch.maximum(top, low.log[..., None])
    top = torch.where(torch.isneginf(top), 0.0, top) if normalise else torch.zeros_like(top)
    exact = torch.where(on, (log - top).exp(), 0.0)
    if low is None:
        matrix = exact
    else:
        estimate = (low.queries @ low.keys.mT) * (low.log[..., None] - top).exp()
        if form.shrinkage:
            product = torch.where(on, exact * estimate, 0.0).sum(-1, keepdim=True)
            square = torch.where(on, estimate.square(), 0.0).sum(-1, keepdim=True)
            estimate = estimate * torch.where(square > 0, (product / square).clamp(0, 1), 1.0)
        matrix = torch.where(on, exact, torch.where(seen, estimate, 0.0))
    if not normalise:
        return matrix
    total = matrix.sum(-1, keepdim=True)
    return torch.where(total > 0, matrix / torch.where(total > 0, total, 1.0), 0.0)
