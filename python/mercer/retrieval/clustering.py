"""Fewer vectors a set: k-means of its tokens (CRISP), or fixed choices among them.

Source: Veneroso, Jayaram, Rao, Hernandez Abrego, Hadian, Cer 2025, "CRISP: Clustering Multi-Vector Representations for
Denoising and Pruning" (arXiv 2505.11471). A model that was trained with the clustering keeps its quality; for any other
weight the query's centroids by their counts: sum over q of max <q, x> ~ sum over j of n_j max <c_j, x>. The layer to
train with is `mercer.nn.retrieval.TokenClustering`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mercer import _checks, _core
from mercer.retrieval._tokens import as_core, packed

__all__ = ["PRESETS", "TokenClusters", "cluster_tokens", "prune_spaced", "prune_tail"]

#: Clusters of queries and of documents in the paper: numbers, or shares of the tokens.
PRESETS: dict[str, tuple[int | float, int | float]] = {
    "c4x8": (4, 8),
    "c8x32": (8, 32),
    "c25": (0.25, 0.25),
    "c50": (0.5, 0.5),
}


@dataclass(frozen=True)
class TokenClusters:
    """What `cluster_tokens` gives for n sets.

    Attributes
    ----------
    tokens : (n_clusters, d)
        Centroids, set by set, of the tokens' dtype (float32 for float16).
    offsets : (n + 1,) int64
        Set i owns the centroids ``offsets[i]:offsets[i + 1]``.
    assignments : (n_tokens,) int64
        The cluster of each token, counted within its set.
    counts : (n_clusters,) int64
        Tokens of each cluster.
    inertia : (n, n_iter) float64
        Sum of squared distances at each assignment.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    assignments: np.ndarray
    counts: np.ndarray
    inertia: np.ndarray

    def weighted(self) -> np.ndarray:
        """Centroids times counts: sums, for the query side of a model that was not trained with clusters."""
        return self.tokens * self.counts[:, None].astype(self.tokens.dtype)


def cluster_tokens(
    tokens: Any,
    offsets: Any,
    n_clusters: int | float,
    *,
    init: str = "spaced",
    n_iter: int = 10,
    empty: str = "keep",
    normalize: bool = False,
    weighted: bool = False,
    initial: Any = None,
    random_state: Any = 0,
    threads: int | None = None,
) -> TokenClusters:
    """k-means of each set on its own.

    Parameters
    ----------
    tokens, offsets
        Packed sets, or a list of arrays and None; float16 is computed in float32.
    n_clusters : int or float
        Clusters of a set; a float in (0, 1] is a share: ceil(share · tokens). A set with no more tokens keeps them.
    init : {"spaced", "random", "kmeans++"}
        Tokens floor(j T / k); different random tokens; far ones (Arthur and Vassilvitskii 2007).
    n_iter : int
        Rounds of assignment and means.
    empty : {"keep", "farthest"}
        What an empty cluster does: stay, or go to the token that is farthest from its centroid.
    normalize : bool
        Scale centroids to unit length. Off in the paper: a loose cluster's short centroid rarely wins.
    weighted : bool
        Give centroids times counts (see `TokenClusters.weighted`).
    initial : (sum of clusters, d) array, optional
        First centroids, set by set, instead of `init`.
    random_state : int, None or numpy generator
        For "random" and "kmeans++"; set i has draws of its own.

    Raises
    ------
    ValueError
        n_clusters < 1 or a share outside (0, 1]; a set without tokens; NaN or infinity.

    Notes
    -----
    Cost: n_iter · tokens · clusters · d multiply-adds, sets in parallel.

    Examples
    --------
    >>> import numpy as np
    >>> found = cluster_tokens(np.array([[0.0], [0.2], [5.0], [5.2], [9.0]]), [0, 4, 5], 2)
    >>> found.tokens.ravel(), found.offsets, found.counts
    (array([0.1, 5.1, 9. ]), array([0, 2, 3]), array([2, 2, 1]))
    """
    threads = _checks.threads("threads", threads)
    rows, offsets = packed("tokens", tokens, offsets)
    n_iter = _checks.integer("n_iter", n_iter, 1)
    init = _checks.choice("init", init, ("spaced", "random", "kmeans++"))
    reseed = _checks.choice("empty", empty, ("keep", "farthest")) == "farthest"
    seed = _checks.random_seed(random_state)
    lengths = _lengths(offsets)
    clusters = clusters_of(lengths, n_clusters)
    ends = np.concatenate([[0], np.cumsum(clusters)]).astype(np.int64)
    if initial is not None:
        initial = np.ascontiguousarray(_checks.real_array("initial", initial), np.float64)
        if initial.shape != (int(ends[-1]), rows.shape[1]) or not np.isfinite(initial).all():
            raise ValueError(
                f"initial must be finite of shape ({ends[-1]}, {rows.shape[1]}), got shape {initial.shape}"
            )
    flat, assignments, counts, inertia = _core.cluster_sets(
        as_core(rows), offsets, clusters, init, seed, n_iter, reseed, initial, threads
    )
    centroids = flat.reshape(-1, rows.shape[1])
    if _checks.flag("normalize", normalize):
        norms = np.linalg.norm(centroids, axis=1, keepdims=True)
        centroids = centroids / np.where(norms > 0, norms, 1.0)
    found = TokenClusters(centroids, ends, assignments, counts, inertia.reshape(len(lengths), n_iter))
    if _checks.flag("weighted", weighted):
        return TokenClusters(found.weighted(), ends, assignments, counts, found.inertia)
    return found


def prune_tail(tokens: Any, offsets: Any, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `keep` tokens of each set, packed: (tokens, offsets).

    >>> import numpy as np
    >>> prune_tail(np.arange(5.0)[:, None], [0, 3, 5], 2)[0].ravel()
    array([1., 2., 3., 4.])
    """
    rows, offsets = packed("tokens", tokens, offsets)
    keep = _checks.integer("keep", keep, 1)
    from_end = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(rows))
    return _kept(rows, offsets, from_end <= keep)


def prune_spaced(tokens: Any, offsets: Any, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens 0, every, 2 every, … of each set, packed: (tokens, offsets).

    >>> import numpy as np
    >>> prune_spaced(np.arange(5.0)[:, None], [0, 3, 5], 2)[0].ravel()
    array([0., 2., 3.])
    """
    rows, offsets = packed("tokens", tokens, offsets)
    every = _checks.integer("every", every, 1)
    place = np.arange(len(rows)) - np.repeat(offsets[:-1], np.diff(offsets))
    return _kept(rows, offsets, place % every == 0)


def clusters_of(lengths: np.ndarray, n_clusters: int | float) -> np.ndarray:
    """Clusters of sets of these lengths, int64."""
    if isinstance(n_clusters, float | np.floating):
        share = float(n_clusters)
        if not 0 < share <= 1:
            raise ValueError(f"n_clusters must be an integer >= 1 or a share in (0, 1], got {share}")
        return np.array([max(1, math.ceil(share * n - 1e-9)) for n in lengths.tolist()], np.int64)
    return np.minimum(lengths, _checks.integer("n_clusters", n_clusters, 1)).astype(np.int64)


def _lengths(offsets: np.ndarray) -> np.ndarray:
    lengths = np.diff(offsets)
    if (lengths == 0).any():
        raise ValueError(f"offsets must leave no set empty, set {int((lengths == 0).argmax())} has no tokens")
    return lengths


def _kept(rows: np.ndarray, offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows[keep], np.concatenate([[0], np.cumsum(keep)])[offsets].astype(np.int64)
