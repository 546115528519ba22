"""Which entries of the attention matrix are computed exactly: the sparse supports.

A support is a list of tiles, each some queries and some keys, and which of its pairs count. Every pair of a query and a
key may lie in several tiles (rounds of hashing); it is divided by how many.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from mercer import _checks
from mercer.lsh import E2LSH, CrossPolytope

__all__ = [
    "SUPPORTS",
    "Support",
    "block_support",
    "cluster_support",
    "local_support",
    "mask_support",
    "smyrf_clusters",
]

SUPPORTS = ("local", "smyrf", "cross_polytope", "topk", "block")
#: Queries whose scores are looked at together for the largest.
ROWS = 256


@dataclasses.dataclass(frozen=True)
class Support:
    """Tiles of pairs, for N problems (or 1, the same for all).

    Attributes:
        queries: (N or 1, tiles, a) indices.
        keys: (N or 1, tiles, b) indices.
        pairs: (N or 1, tiles, a, b) bool, which pairs count.
        count: Like `pairs`, in how many tiles each pair is; None for once.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    pairs: torch.Tensor
    count: torch.Tensor | None = None

    def dense(self, n: int, t: int, s: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The pairs as a mask (n, t, s), or that of some rows."""
        place = torch.arange(t, device=self.pairs.device)
        kept = t
        if rows is not None:
            kept = len(rows)
            place = torch.full_like(place, kept)  # one row for all that are not asked for
            place[rows] = torch.arange(kept, device=place.device)
        at = place[self.queries][..., :, None] * s + self.keys[..., None, :]
        seen = torch.zeros(n, (kept + 1) * s, dtype=torch.int32, device=self.pairs.device)
        shape = (n, math.prod(self.pairs.shape[1:]))
        index = at.expand(n, *self.pairs.shape[1:]).reshape(shape)
        seen.scatter_add_(1, index, self.pairs.expand(n, *self.pairs.shape[1:]).reshape(shape).int())
        return seen.view(n, kept + 1, s)[:, :kept] > 0


def local_support(t: int, s: int, window: int, *, causal: bool, device: Any = None) -> Support:
    """Keys i - window div 2 … i - window div 2 + window - 1 of query i, cut at the ends; causal: i - window + 1 … i."""
    left = window - 1 if causal else window // 2
    a = max(16, min(window, 128))
    tiles = -(-t // a)
    first = torch.arange(tiles, device=device)[:, None] * a
    queries = first + torch.arange(a, device=device)
    keys = first - left + torch.arange(a + window - 1, device=device)
    apart = keys[:, None, :] - queries[:, :, None] + left
    pairs = (apart >= 0) & (apart < window) & (queries[:, :, None] < t)
    pairs &= (keys[:, None, :] >= 0) & (keys[:, None, :] < s)
    return Support(queries.clamp(max=t - 1)[None], keys.clamp(0, s - 1)[None], pairs[None])


def block_support(
    t: int,
    s: int,
    block: int,
    *,
    window_blocks: int = 3,
    global_blocks: int = 0,
    random_blocks: int = 0,
    random_state: Any = 0,
    device: Any = None,
) -> Support:
    """Blocks of keys for each block of queries: a band, the first ones, and some at random (BigBird's pattern)."""
    rng = np.random.default_rng(_checks.random_seed(random_state))
    rows, columns = -(-t // block), -(-s // block)
    lists = []
    for row in range(rows):
        band = range(row - window_blocks // 2, row - window_blocks // 2 + window_blocks)
        chosen = {b for b in (*band, *range(global_blocks)) if 0 <= b < columns}
        others = [b for b in range(columns) if b not in chosen]
        more = min(random_blocks, len(others))
        chosen |= {int(b) for b in rng.choice(others, more, replace=False)} if more else set()
        lists.append(sorted(chosen))
    widest = max(map(len, lists))
    blocks = torch.tensor([[*b, *[columns] * (widest - len(b))] for b in lists], device=device)
    queries = torch.arange(rows * block, device=device).view(rows, block)
    keys = (blocks[..., None] * block + torch.arange(block, device=device)).flatten(1)
    pairs = (queries[:, :, None] < t) & (keys[:, None, :] < s)
    return Support(queries.clamp(max=t - 1)[None], keys.clamp(max=s - 1)[None], pairs[None])


def mask_support(mask: torch.Tensor, batch: int, heads: int) -> Support:
    """The pairs of a bool mask that broadcasts to (batch, heads, T, S)."""
    t, s = mask.shape[-2:]
    whole = (
        mask.expand(batch, heads, t, s).reshape(batch * heads, 1, t, s)
        if mask.dim() > 2
        else mask[None, None]
    )
    index = torch.arange(max(t, s), device=mask.device)
    return Support(index[None, None, :t], index[None, None, :s], whole)


def topk_support(
    q: torch.Tensor, k: torch.Tensor, count: int, allowed: torch.Tensor | None, causal: bool
) -> Support:
    """The largest products of each query: exact, at the cost of all of them. (N, T, E), (N, S, E)."""
    n, t, _ = q.shape
    s = k.shape[1]
    count = min(count, s)
    found, there = [], []
    with torch.no_grad():
        for first in range(0, t, ROWS):
            scores = q[:, first : first + ROWS] @ k.mT
            if allowed is not None:
                scores = scores.masked_fill(~allowed[:, None], -math.inf)
            if causal:
                rows = torch.arange(first, first + scores.shape[1], device=q.device)
                scores = scores.masked_fill(torch.arange(s, device=q.device) > rows[:, None], -math.inf)
            values, at = scores.topk(count, -1)
            found.append(at)
            there.append(values > -math.inf)
    queries = torch.arange(t, device=q.device)[None, :, None]
    return Support(queries, torch.cat(found, 1), torch.cat(there, 1)[:, :, None])


def smyrf_clusters(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    n_hashes: int = 2,
    scheme: str = "smyrf",
    random_state: Any = 0,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys sorted so that those with large products are near each other, in several rounds.

    Both are lifted to vectors of one length whose distances order the products (Daras et al. 2020, "SMYRF", XBOX+):
    q~ = [q, 0, sqrt(Mq² + Mk² - |q|²)], k~ = [k, sqrt(Mq² + Mk² - |k|²), 0] with the largest norms Mq and Mk of each
    problem. "smyrf" sorts by the projection on a Gaussian vector; "cross_polytope" by the nearest of the signed
    axes after a random rotation, which is Reformer's hash. The hashes are those of :mod:`mercer.lsh`, run in
    Rust on the CPU.

    Args:
        q, k: (N, T, E) and (N, S, E).
        n_hashes: Rounds.
        scheme: "smyrf" or "cross_polytope".
        random_state: The same int gives the same vectors.
        allowed: (N, S) bool; other keys come last.

    Returns:
        The sorted order of the queries (n_hashes, N, T), and that of the keys (n_hashes, N, S).

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import smyrf_clusters
        >>> q, k = torch.randn(2, 1, 64, 8, generator=torch.Generator().manual_seed(0))
        >>> smyrf_clusters(q, k, n_hashes=3)[0].shape
        torch.Size([3, 1, 64])
    """
    with torch.no_grad():
        # In double precision: on the lifted sphere the differences that matter are small.
        q, k = q.detach().double(), k.detach().double()
        if allowed is not None:
            k = k * allowed[..., None]
        square_q, square_k = q.square().sum(-1), k.square().sum(-1)
        most = square_q.amax(-1, keepdim=True) + square_k.amax(-1, keepdim=True)
        rest_q, rest_k = (most - square_q).clamp(min=0).sqrt(), (most - square_k).clamp(min=0).sqrt()
        zero_q, zero_k = torch.zeros_like(rest_q), torch.zeros_like(rest_k)
        lifted_q = torch.cat([q, torch.stack([zero_q, rest_q], -1)], -1)
        lifted_k = torch.cat([k, torch.stack([rest_k, zero_k], -1)], -1)
        seed = _checks.random_seed(random_state)
        hash_q, hash_k = _hashes(lifted_q, lifted_k, n_hashes, scheme, seed)
        if allowed is not None:
            hash_k = hash_k.masked_fill(~allowed, torch.iinfo(torch.int64).max)
        return hash_q.argsort(dim=-1, stable=True), hash_k.argsort(dim=-1, stable=True)


def _hashes(
    q: torch.Tensor, k: torch.Tensor, rounds: int, scheme: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, T, d) and (N, S, d) -> int64 (rounds, N, T) and (rounds, N, S)."""
    dim, found = q.shape[-1], []
    spread = max(float(q.abs().max()), float(k.abs().max()), 1e-30)
    for x in (q, k):
        rows = x.reshape(-1, dim).cpu().numpy() / spread
        if scheme == "smyrf":
            family = E2LSH(dim, 1e-9, tables=rounds, random_state=seed)
            hashed = family.values(rows)[:, :, 0]
        else:
            hashed = CrossPolytope(dim, tables=rounds, random_state=seed).hash(rows)
        found.append(torch.from_numpy(hashed.T.reshape(rounds, *x.shape[:2]).copy()).to(x.device))
    return found[0], found[1]


def cluster_support(
    queries: torch.Tensor, keys: torch.Tensor, cluster_size: int, allowed: torch.Tensor | None = None
) -> Support:
    """Equal pieces of the sorted queries with the like pieces of the sorted keys; orders as of `smyrf_clusters`."""
    rounds, n, t = queries.shape
    s = keys.shape[-1]
    pieces = -(-t // cluster_size)
    sizes = (cluster_size, -(-s // pieces))
    tiles, inside, member = [], [], []
    for order, size, length in ((queries, sizes[0], t), (keys, sizes[1], s)):
        place = torch.arange(pieces * size, device=order.device)
        tiles.append(order[..., place.clamp(max=length - 1)].view(rounds, n, pieces, size))
        inside.append((place < length).view(pieces, size))
        # Which piece a token is in, in each round: (rounds, n, length)
        own = torch.empty_like(order)
        own.scatter_(-1, order, (torch.arange(length, device=order.device) // size).expand_as(order))
        member.append(own)
    tile_q, tile_k = (x.transpose(0, 1).reshape(n, rounds * pieces, -1) for x in tiles)
    pairs = (inside[0][:, :, None] & inside[1][:, None, :]).repeat(rounds, 1, 1)[None].expand(n, -1, -1, -1)
    if allowed is not None:
        pairs = pairs & allowed.gather(1, tile_k.flatten(1)).view(tile_k.shape)[:, :, None, :]
    count = None
    if rounds > 1:
        count = torch.zeros(pairs.shape, dtype=torch.int8, device=pairs.device)
        for round_q, round_k in zip(*member, strict=True):
            a = round_q.gather(1, tile_q.flatten(1)).view(tile_q.shape)
            b = round_k.gather(1, tile_k.flatten(1)).view(tile_k.shape)
            count += a[..., :, None] == b[..., None, :]
    return Support(tile_q, tile_k, pairs, count)
