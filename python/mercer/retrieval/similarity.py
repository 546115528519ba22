"""Chamfer similarity (MaxSim), exactly, and what is done to queries before it.

    Chamfer(Q, P) = sum over q in Q of max over p in P of <q, p>

Source: Khattab and Zaharia 2020, "ColBERT" (MaxSim); Dhulipala et al. 2024, "MUVERA" (ball carving and the
single-vector heuristic, section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mercer import _checks, _core
from mercer.retrieval._tokens import as_core, packed, tokens_array

__all__ = ["ball_carve", "chamfer", "chamfer_batch", "single_vector_heuristic"]


def chamfer(Q: Any, P: Any, *, threads: int | None = None) -> float:
    """Chamfer similarity of one query with one document.

    Parameters
    ----------
    Q : (n_query_tokens, d) array
    P : (n_document_tokens, d) array
        float16 and float32 are multiplied in float32; where either is float64, in float64.

    Raises
    ------
    ValueError
        P has no tokens; widths differ; NaN or infinity. A query without tokens gives 0.

    Examples
    --------
    >>> chamfer([[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, 2.0], [1.0, 1.0]])
    3.0
    """
    Q = tokens_array("Q", Q)
    return float(chamfer_batch(Q, None, tokens_array("P", P, Q.shape[1]), None, threads=threads)[0, 0])


def chamfer_batch(
    queries: Any,
    query_offsets: Any,
    documents: Any,
    document_offsets: Any,
    *,
    which: Any = None,
    threads: int | None = None,
) -> np.ndarray:
    """Chamfer similarity of each query with each document, the array of products never made.

    Parameters
    ----------
    queries, documents : (n_tokens, d) arrays of float16, float32 or float64, or lists of such
    query_offsets, document_offsets : (n + 1,) integers, or None for one set (or a list)
        Set i owns the rows ``offsets[i]:offsets[i + 1]``.
    which : integers, optional
        Score these documents only, in this order.
    threads : int, optional
        None: ``MERCER_NUM_THREADS``, else all cores. The bits do not depend on it.

    Returns
    -------
    (n_queries, n_documents) float32, or float64 where either side is

    Raises
    ------
    ValueError
        A document without tokens; widths differ; offsets that do not ascend; NaN or infinity.

    Notes
    -----
    Cost: (query tokens) · (document tokens) · d multiply-adds, at the rate of a matrix product.
    """
    threads = _checks.threads("threads", threads)
    q, q_offsets = packed("queries", queries, query_offsets)
    p, offsets = packed("documents", documents, document_offsets, q.shape[1])
    if np.float64 in (q.dtype, p.dtype):
        q, p = q.astype(np.float64, copy=False), p.astype(np.float64, copy=False)
    if which is not None:
        which = np.ascontiguousarray(which, np.int64)
        if which.ndim != 1 or ((which < 0) | (which >= len(offsets) - 1)).any():
            raise ValueError(f"which must be a list of numbers in 0 ... {len(offsets) - 2}")
    return _scores(q, q_offsets, p, offsets, which, threads)


def _scores(
    q: np.ndarray,
    q_offsets: np.ndarray,
    p: np.ndarray,
    offsets: np.ndarray,
    which: np.ndarray | None,
    threads: int | None,
) -> np.ndarray:
    """`chamfer_batch` of what has been checked, empty documents aside."""
    lengths = np.diff(offsets) if which is None else offsets[which + 1] - offsets[which]
    if (lengths == 0).any():
        at = int((lengths == 0).argmax())
        raise ValueError(
            f"documents must have tokens, document {at if which is None else which[at]} has none"
        )
    out = np.empty((len(lengths), len(q_offsets) - 1), np.float64 if q.dtype == np.float64 else np.float32)
    _core.chamfer(as_core(q), q_offsets, as_core(p), offsets, out, which, threads)
    return np.ascontiguousarray(out.T)


def ball_carve(Q: Any, tau: float = 0.7, *, return_labels: bool = False) -> Any:
    """Fewer query tokens for re-ranking: balls around the first that are left, each replaced by its sum.

    While tokens remain, the first of them takes all that remain and whose product with it is at least `tau`.

    Parameters
    ----------
    Q : (n, d) array
        Tokens, of unit length as a rule.
    tau : float
        Greater keeps more; above 1 leaves unit tokens as they are.
    return_labels : bool
        Also give the ball of each token, (n,) int64.

    Returns
    -------
    (n_balls, d) array of Q's dtype (float32 for float16)

    Notes
    -----
    Chamfer of the sums never exceeds that of the tokens. Source: Dhulipala et al. 2024, section 3.2; tau = 0.7 left 5.9
    of 32 tokens there without loss.

    Examples
    --------
    >>> ball_carve([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]], 0.7)
    array([[1.8, 0.6],
           [0. , 1. ]])
    """
    Q = tokens_array("Q", Q)
    Q = Q.astype(np.float32) if Q.dtype == np.float16 else Q
    tau = _checks.real("tau", tau, -np.inf)
    if not np.isfinite(Q).all():
        raise ValueError("Q must be finite, it contains NaN or infinity")
    near = Q @ Q.T >= tau
    labels = np.full(len(Q), -1, np.int64)
    balls = 0
    for i in range(len(Q)):
        if labels[i] < 0:
            member = near[i] & (labels < 0)
            member[i] = True
            labels[member] = balls
            balls += 1
    sums = np.zeros((balls, Q.shape[1]), Q.dtype)
    np.add.at(sums, labels, Q)
    return (sums, labels) if return_labels else sums


def single_vector_heuristic(
    Q: Any, documents: Any, document_offsets: Any, candidates: int, *, deduplicate: bool = True
) -> np.ndarray:
    """The baseline of MUVERA: candidates by the nearest document tokens of each query token.

    First the nearest token of every query token, then the second nearest of each, and so on; a document comes as often
    as its tokens do, unless `deduplicate`.

    Parameters
    ----------
    Q : (n_query_tokens, d) array
    documents, document_offsets
        As in `chamfer_batch`.
    candidates : int
        How many to give, at most.

    Returns
    -------
    (candidates,) int64
        Numbers of documents; fewer where the corpus has no more.

    Notes
    -----
    Exact search: (query tokens) · (tokens of the corpus) · d multiply-adds.
    """
    Q = tokens_array("Q", Q)
    p, offsets = packed("documents", documents, document_offsets, Q.shape[1])
    candidates = _checks.integer("candidates", candidates, 1)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    dtype = np.float64 if np.float64 in (Q.dtype, p.dtype) else np.float32
    products = Q.astype(dtype) @ p.astype(dtype, copy=False).T
    if not np.isfinite(products).all():
        raise ValueError("Q and documents must be finite, one contains NaN or infinity")
    depth = min(len(p), max(1, -(-candidates // max(len(Q), 1))) if not deduplicate else 16)
    while True:
        top = _largest(products, depth)  # (n_query_tokens, depth), nearest first
        order = owner[top].T.ravel()  # all first ones, all second ones, ...
        if deduplicate:
            _, first = np.unique(order, return_index=True)
            order = order[np.sort(first)]
        if len(order) >= candidates or depth == len(p):
            return order[:candidates]
        depth = min(len(p), 4 * depth)


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest of each row, largest first, the first among equals first."""
    if k < scores.shape[1]:
        part = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    else:
        part = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    values = np.take_along_axis(scores, part, 1)
    return np.take_along_axis(part, np.argsort(-values, axis=1, kind="stable"), 1)
