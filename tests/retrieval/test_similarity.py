"""Chamfer, ball carving, the heuristic, clustering and quantisation against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mercer.retrieval import (
    ProductQuantizer,
    ball_carve,
    chamfer,
    chamfer_batch,
    cluster_tokens,
    prune_spaced,
    prune_tail,
    single_vector_heuristic,
)


def clouds(seed, n, d, most=30, least=1):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(least, most, n)
    x = rng.standard_normal((int(lengths.sum()), d))
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.concatenate([[0], np.cumsum(lengths)])


def sets(x, offsets):
    return [x[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(2, 300))
def test_chamfer_is_the_sum_of_the_largest_products(seed, d, m, n, most):
    q, q_offsets = clouds(seed, m, d, most, 0 if d > 3 else 1)
    p, offsets = clouds(seed + 1, n, d, most)
    want = [[(a @ b.T).max(1).sum() for b in sets(p, offsets)] for a in sets(q, q_offsets)]
    np.testing.assert_allclose(chamfer_batch(q, q_offsets, p, offsets), want, atol=1e-12)
    single = chamfer_batch(q.astype(np.float32), q_offsets, p.astype(np.float32), offsets)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, want, atol=2e-5)
    which = np.arange(n)[::-2]
    got = chamfer_batch(q, q_offsets, p, offsets, which=which, threads=2)
    np.testing.assert_allclose(got, np.array(want)[:, which].reshape(m, -1), atol=1e-12)
    half = p.astype(np.float16)
    np.testing.assert_array_equal(
        chamfer_batch(q.astype(np.float32), q_offsets, half, offsets),
        chamfer_batch(q.astype(np.float32), q_offsets, half.astype(np.float32), offsets),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: chamfer(np.ones((2, 3)), np.ones((0, 3))),
            "documents must have tokens, document 0 has none",
        ),
        (lambda: chamfer(np.ones((2, 3)), np.ones((2, 4))), "P must have 3 columns, got 4"),
        (lambda: chamfer(np.full((2, 3), np.nan), np.ones((2, 3))), "query tokens must be finite, row 0"),
        (lambda: chamfer(np.ones((2, 3)), [[1, 1, 1], [np.inf, 0, 0]]), "tokens must be finite, row 1"),
        (lambda: chamfer_batch(np.ones((2, 3)), None, np.ones((2, 3)), [0, 2], which=[1]), "which must be"),
        (lambda: cluster_tokens(np.ones((2, 3)), None, 0), "n_clusters must be an integer >= 1, got 0"),
        (lambda: cluster_tokens(np.ones((2, 3)), None, 1.5), r"a share in \(0, 1\], got 1.5"),
        (lambda: cluster_tokens(np.ones((2, 3)), [0, 0, 2], 1), "set 0 has no tokens"),
        (lambda: cluster_tokens(np.full((2, 3), np.nan), None, 1), "tokens must be finite"),
        (lambda: ProductQuantizer(8, 9), r"block must be an integer in \[1, 8\], got 9"),
        (lambda: ProductQuantizer(8).encode(np.ones((1, 8))), "not fitted"),
        (lambda: ProductQuantizer(8).fit(np.ones((0, 8))), "X must have rows, got none"),
        (lambda: ball_carve([[np.nan]]), "Q must be finite"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_balls_are_greedy_and_their_chamfer_is_a_lower_bound():
    q, _ = clouds(1, 1, 8, 31, 30)
    p, offsets = clouds(2, 20, 8)
    np.testing.assert_array_equal(ball_carve(q, 1.1), q)
    np.testing.assert_allclose(ball_carve(q, -1.1), q.sum(0, keepdims=True))
    sums, labels = ball_carve(q, 0.4, return_labels=True)
    want = np.full(len(q), -1)
    for i in range(len(q)):
        if want[i] < 0:
            want[[j for j in range(len(q)) if want[j] < 0 and (q[i] @ q[j] >= 0.4 or i == j)]] = (
                want.max() + 1
            )
    np.testing.assert_array_equal(labels, want)
    assert (chamfer_batch(sums, None, p, offsets) <= chamfer_batch(q, None, p, offsets) + 1e-12).all()


def test_the_heuristic_goes_rank_by_rank():
    q, _ = clouds(3, 1, 6, 5, 4)
    p, offsets = clouds(4, 12, 6)
    owner = np.repeat(np.arange(12), np.diff(offsets))
    order = owner[np.argsort(-(q @ p.T), axis=1)].T.ravel()
    np.testing.assert_array_equal(single_vector_heuristic(q, p, offsets, 30, deduplicate=False), order[:30])
    want = list(dict.fromkeys(order.tolist()))
    np.testing.assert_array_equal(single_vector_heuristic(q, p, offsets, 12), want)


def test_clusters_are_lloyds_from_the_same_start():
    from sklearn.cluster import KMeans

    x, offsets = clouds(5, 6, 10, 60, 20)
    found = cluster_tokens(x, offsets, 5, n_iter=30)
    for i, tokens in enumerate(sets(x, offsets)):
        start = tokens[np.arange(5) * len(tokens) // 5]
        peer = KMeans(5, init=start, n_init=1, max_iter=30, tol=0, algorithm="lloyd").fit(tokens)
        assert found.inertia[i, -1] == pytest.approx(peer.inertia_, rel=1e-9)
    assert (np.diff(found.inertia, axis=1) <= 1e-12).all()


def test_many_clusters_keep_the_tokens_and_one_is_the_mean():
    x, offsets = clouds(6, 8, 5)
    kept = cluster_tokens(x, offsets, 1000)
    np.testing.assert_array_equal(kept.tokens, x)
    np.testing.assert_array_equal(kept.offsets, offsets)
    means = cluster_tokens(x, offsets, 1)
    np.testing.assert_allclose(means.tokens, [s.mean(0) for s in sets(x, offsets)], atol=1e-14)
    shares = cluster_tokens(x, offsets, 0.25, init="kmeans++", empty="farthest")
    np.testing.assert_array_equal(np.diff(shares.offsets), np.ceil(np.diff(offsets) * 0.25))


def test_weighted_query_centroids_of_equal_tokens_score_as_the_tokens():
    x, _ = clouds(7, 1, 5, 5, 4)
    q = np.repeat(x, [3, 1, 2, 5], axis=0)
    p, offsets = clouds(8, 9, 5)
    found = cluster_tokens(q, None, 4, init="kmeans++", n_iter=5, random_state=1)
    got = chamfer_batch(found.weighted(), None, p, offsets)
    np.testing.assert_allclose(got, chamfer_batch(q, None, p, offsets), atol=1e-12)
    y, _ = clouds(9, 1, 5, 31, 30)
    loose = cluster_tokens(y, None, 4, weighted=True)
    assert (chamfer_batch(loose.tokens, None, p, offsets) <= chamfer_batch(y, None, p, offsets) + 1e-12).all()


def test_pruning_keeps_tails_and_every_other():
    x, offsets = clouds(10, 5, 3)
    tail, t = prune_tail(x, offsets, 4)
    spaced, s = prune_spaced(x, offsets, 2)
    for i, tokens in enumerate(sets(x, offsets)):
        np.testing.assert_array_equal(tail[t[i] : t[i + 1]], tokens[-4:])
        np.testing.assert_array_equal(spaced[s[i] : s[i + 1]], tokens[::2])


def test_codes_keep_few_rows_exactly_and_scores_are_those_of_the_decoded(tmp_path):
    rng = np.random.default_rng(11)
    few = rng.standard_normal((200, 20)).astype(np.float32)
    X = few[rng.integers(0, 200, 900)]
    pq = ProductQuantizer(20, 8).fit(X)
    codes = pq.encode(X)
    assert codes.shape == (900, 3)
    np.testing.assert_array_equal(pq.decode(codes), X)
    many = rng.standard_normal((2000, 20)).astype(np.float32)
    pq = ProductQuantizer(20, 4, centers=50).fit(many, threads=2)
    codes = pq.encode(many)
    np.testing.assert_array_equal(pq.encode(many, threads=1), codes)
    q = rng.standard_normal((3, 20)).astype(np.float32)
    np.testing.assert_allclose(pq.asymmetric_scores(q, codes), q @ pq.decode(codes).T, atol=1e-4)
    assert ((pq.decode(codes) - many) ** 2).mean() < 0.35  # of variance 1; random centres leave more
    pq.save(tmp_path / "pq.npz")
    np.testing.assert_array_equal(ProductQuantizer.load(tmp_path / "pq.npz").encode(many), codes)
