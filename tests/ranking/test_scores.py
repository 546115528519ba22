"""Scores of coded columns against their definitions, mpmath-free brute force and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mercer import ranking

DTYPES = [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.bool_]


def information(a, b, weights=None):
    """Straight from the definition."""
    w = np.ones(len(a)) if weights is None else np.asarray(weights, dtype=float)
    total = w.sum()
    found = 0.0
    for x, y in set(zip(a.tolist(), b.tolist(), strict=True)):
        p = w[(a == x) & (b == y)].sum() / total
        if p > 0:
            found += p * math.log(p / (w[a == x].sum() / total * w[b == y].sum() / total))
    return found


def conditional_entropy(y, groups, w=None):
    w = np.ones(len(y)) if w is None else w
    found = 0.0
    for group in groups:
        size = w[group].sum()
        for value in set(y[group].tolist()):
            p = w[group][y[group] == value].sum() / size if size else 0.0
            if p > 0:
                found -= size / w.sum() * p * math.log(p)
    return found


def shift_corrected(x, y):
    """H(shifted y | x) - H(y | x) by the words of the paper's tool: x conditions."""
    n = len(x)
    rows = [np.flatnonzero(x == v) for v in np.unique(x)]
    noise = 0.0
    for group in rows:
        shifted = y[(group + len(group)) % n]
        p = np.unique(shifted, return_counts=True)[1] / len(group)
        noise -= len(group) / n * float(np.sum(p * np.log(p)))
    return noise - conditional_entropy(y, rows)


@st.composite
def columns(draw, count=2, most=60):
    n = draw(st.integers(1, most))
    dtypes = st.sampled_from(DTYPES)
    made = []
    for _ in range(count):
        k = draw(st.sampled_from([1, 2, 3, 10, 100, 2**40]))
        dtype = draw(dtypes)
        top = min(k, 1 if dtype == np.bool_ else np.iinfo(dtype).max)
        values = draw(st.lists(st.integers(0, top), min_size=n, max_size=n))
        array = np.array(values, dtype=dtype)
        made.append(draw(st.sampled_from([array, np.repeat(array, 2)[::2], array[::-1]])))
    return made


@given(columns())
def test_information_is_its_definition_symmetric_and_not_negative(ab):
    a, b = ab
    got = ranking.mutual_information(a, b)
    assert got == pytest.approx(information(a, b), abs=1e-13)
    assert got == pytest.approx(ranking.mutual_information(b, a), abs=1e-13)
    assert 0 <= got <= min(ranking.entropy(a), ranking.entropy(b)) + 1e-13
    assert ranking.mutual_information(a, np.zeros_like(a)) == 0.0
    assert ranking.mutual_information(a, a) == pytest.approx(ranking.entropy(a), abs=1e-13)


@given(columns(), st.integers(0, 2**32 - 1))
def test_only_the_shift_knows_the_order_of_the_rows(ab, seed):
    a, b = ab
    order = np.random.default_rng(seed).permutation(len(a))
    for score in (
        ranking.mutual_information,
        ranking.adjusted_mutual_information,
        ranking.symmetric_uncertainty,
        lambda a, b: ranking.corrected_mutual_information(a, b, correction="expected"),
        lambda a, b: ranking.corrected_mutual_information(a, b, correction="permutation"),
    ):
        assert score(a, b) == pytest.approx(score(a[order], b[order]), abs=1e-12)


@given(columns())
def test_the_shift_is_what_the_public_tool_defines(ab):
    a, b = ab
    if np.array_equal(a.astype(np.int64), b.astype(np.int64)):
        assert ranking.corrected_mutual_information(a, b) == pytest.approx(ranking.entropy(a), abs=1e-13)
        return
    by_label = ranking.corrected_mutual_information(a, b)
    by_feature = ranking.corrected_mutual_information(a, b, condition_on="feature")
    assert by_label == pytest.approx(shift_corrected(b, a), abs=1e-12)
    assert by_feature == pytest.approx(shift_corrected(a, b), abs=1e-12)


def test_compat_leaves_the_correction_out_where_the_sums_are_equal():
    a, b = np.array([0, 1, 2, 1, 1, 1] * 20), np.array([1, 2, 0, 1, 2, 0] * 20)
    assert a.sum() == b.sum()
    plain = ranking.mutual_information(a, b)
    assert ranking.corrected_mutual_information(a, b, compat=True) == pytest.approx(plain, abs=1e-13)
    assert ranking.corrected_mutual_information(a, b) != pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("k", [2, 100, 20_000])
def test_large_tables_are_counted_right(k):
    rng = np.random.default_rng(k)
    a, b = rng.integers(0, k, 30_000), rng.integers(0, 500, 30_000)
    _, joint = np.unique(a * 500 + b, return_counts=True)
    sides = [np.unique(x, return_counts=True)[1] for x in (a, b)]

    def H(c):
        return -np.sum(c / c.sum() * np.log(c / c.sum()))

    true = H(sides[0]) + H(sides[1]) - H(joint)
    assert ranking.mutual_information(a, b) == pytest.approx(true, abs=1e-12)
    pair = ranking.pairwise_mi([a, b])
    np.testing.assert_allclose(pair, [[H(sides[0]), true], [true, H(sides[1])]], atol=1e-12)
    some = ranking.pairwise_mi(np.column_stack([a, b]), pairs=[[0, 1], [1, 1]], base=2)
    np.testing.assert_allclose(some, [true / math.log(2), H(sides[1]) / math.log(2)], atol=1e-12)


def test_an_identifier_tells_everything_and_the_correction_takes_it_all():
    y = np.random.default_rng(0).integers(0, 2, 500)
    row = np.arange(500)
    assert ranking.mutual_information(row, y) == pytest.approx(ranking.entropy(y), abs=1e-13)
    for side in ("label", "feature"):
        assert ranking.corrected_mutual_information(row, y, condition_on=side) == 0.0


def test_corrections_are_centred_on_independent_columns():
    rng = np.random.default_rng(5)
    n, k, rounds = 4000, 40, 200
    y = rng.integers(0, 2, n)
    noise = rng.integers(0, k, (n, rounds))
    plain = ranking.mutual_information(noise, y)
    excess = (k - 1) / (2 * n)
    # The mean of 200 has a standard error of about sqrt(2 (k-1)) / 2n / sqrt(200) = 8e-5; bounds at ten of them.
    assert plain.mean() == pytest.approx(excess, abs=8e-4)
    for correction in ("shift", "permutation", "expected", "miller_madow"):
        got = ranking.corrected_mutual_information(noise, y, correction=correction)
        assert abs(got.mean()) < 8e-4, correction


@pytest.mark.parametrize("a, b", [
    ([0, 0, 1, 1, 2], [0, 1, 0, 1, 1]),
    ([0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2, 2]),
    ([0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1]),
])  # fmt: skip
def test_expected_information_is_the_mean_over_all_permutations(a, b):
    a, b = np.array(a), np.array(b)
    true = math.fsum(information(a, np.array(p)) for p in itertools.permutations(b)) / math.factorial(len(b))
    assert ranking.expected_mutual_information(a, b) == pytest.approx(true, abs=1e-13)
    plain = ranking.mutual_information(a, b)
    got = ranking.corrected_mutual_information(a, b, correction="expected")
    assert got == pytest.approx(plain - true, abs=1e-13)


@given(columns())
def test_adjusted_and_expected_information_are_scikit_learns(ab):
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = ab
    true = metrics.adjusted_mutual_info_score(a, b)
    chance = ranking.expected_mutual_information(a, b)
    room = (ranking.entropy(a) + ranking.entropy(b)) / 2 - chance
    if room > 1e-6:  # Below, scikit-learn's own rounding decides.
        assert ranking.adjusted_mutual_information(a, b) == pytest.approx(true, abs=1e-13 / room + 1e-12)


@given(columns(), st.data())
def test_weights_count_rows(ab, data):
    a, b = ab
    w = data.draw(hnp.arrays(np.int64, len(a), elements=st.integers(0, 4)))
    if not w.any():
        return
    repeated = [np.repeat(x, w) for x in ab]
    for score in (ranking.mutual_information, ranking.symmetric_uncertainty):
        assert score(a, b, weights=w) == pytest.approx(score(*repeated), abs=1e-12)
    ones = ranking.corrected_mutual_information(a, b, weights=np.ones(len(a)))
    assert ones == pytest.approx(ranking.corrected_mutual_information(a, b), abs=1e-12)


def test_the_stratified_sample_is_scored_as_its_own_table():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 30, 1000), rng.integers(0, 3, 1000)
    most = int(0.3 * 1000) // 3
    rows = np.sort(np.concatenate([np.flatnonzero(b == v)[:most] for v in range(3)]))
    got = ranking.corrected_mutual_information(a, b, ratio=0.3)
    assert got == pytest.approx(ranking.corrected_mutual_information(a[rows], b[rows]), abs=1e-13)


def test_relation_is_the_information_of_the_joint_column():
    rng = np.random.default_rng(2)
    X, y = rng.integers(0, 7, (300, 4)), rng.integers(0, 3, 300)
    got = ranking.relation_mi(X, y)
    for i, j in itertools.product(range(4), repeat=2):
        assert got[i, j] == pytest.approx(information(X[:, i] * 7 + X[:, j], y), abs=1e-12)


def test_the_rest_against_numpy():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 50, 400), rng.integers(0, 5, 400)
    assert ranking.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-13)
    assert ranking.pearson(a, np.zeros(400, int)) == 0.0
    pairs = np.unique(np.column_stack([a, b]), axis=0, return_counts=True)[1]
    assert ranking.max_value_coverage(a, b) == pairs.max() / 400
    buckets = np.bincount((a * 1471343 - b) % 10**6)
    assert ranking.max_value_coverage(a, b, compat=True) == buckets.max() / 400
    assert ranking.mutual_information(a, b, base=2) == pytest.approx(information(a, b) / math.log(2))


def greedy(relevance, redundancy, relation, alpha, beta, join):
    """3MR as its definition reads."""
    order = [int(np.argmax(relevance))]
    while len(order) < len(relevance):
        free = [f for f in range(len(relevance)) if f not in order]
        worth = [
            relevance[f]
            - alpha * join([redundancy[g, f] for g in order])
            + beta * join([relation[g, f] for g in order])
            for f in free
        ]
        order.append(free[int(np.argmax(worth))])
    return order


@pytest.mark.parametrize("strategy, join", [("median", np.median), ("mean", np.mean), ("sum", np.sum)])
@pytest.mark.parametrize("seed", range(5))
def test_3mr_is_greedy(strategy, join, seed):
    rng = np.random.default_rng(seed)
    f = 12
    rel, red, both = rng.random(f), rng.random((f, f)), rng.random((f, f))
    got = ranking.rank_3mr(rel, red, both, alpha=0.7, beta=1.3, strategy=strategy)
    assert got.tolist() == greedy(rel, red, both, 0.7, 1.3, join)


@pytest.mark.parametrize("bad, message", [
    (([0, -1], [0, 1]), "codes must be >= 0, got -1 at row 1"),
    (([0, 1, 2], [0, 1]), "as many rows"),
    (([], []), "at least one row|integer codes"),
    (([0.0, 1.0], [0, 1]), "integer codes"),
    (([[[0]]], [0]), "must be"),
])  # fmt: skip
def test_codes_that_are_none_are_refused(bad, message):
    for score in (ranking.mutual_information, ranking.corrected_mutual_information, ranking.pearson):
        with pytest.raises((ValueError, TypeError), match=message):
            score(*(np.array(x) for x in bad))


def test_options_are_refused_by_name():
    a = np.arange(4)
    with pytest.raises(ValueError, match="correction must be one of .* got 'bonferroni'"):
        ranking.corrected_mutual_information(a, a, correction="bonferroni")
    for ratio in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="ratio must be"):
            ranking.corrected_mutual_information(a, a, ratio=ratio)
    with pytest.raises(ValueError, match="base must be"):
        ranking.mutual_information(a, a, base=1)
    with pytest.raises(ValueError, match="weights must be None with 'expected'"):
        ranking.corrected_mutual_information(a, a, correction="expected", weights=np.ones(4))
    with pytest.raises(ValueError, match="pairs must be column numbers"):
        ranking.pairwise_mi(np.zeros((3, 2), int), pairs=[[0, 5]])
    with pytest.raises(ValueError, match="redundancy must be finite"):
        ranking.rank_3mr([1.0], [[np.nan]])
    with pytest.raises(ValueError, match="model must be one of"):
        ranking.surrogate_score(a, a, "surrogate-XGB")


def test_threads_leave_no_trace():
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 300, (5000, 20)), rng.integers(0, 2, 5000)
    one, two = (ranking.pairwise_mi(X, threads=t) for t in (1, 2))
    assert np.array_equal(one, two)
    draws = [
        ranking.corrected_mutual_information(X, y, correction="permutation", random_state=7, threads=t)
        for t in (1, 2)
    ]
    assert np.array_equal(*draws)


def test_surrogates_prefer_what_predicts():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 600)
    good, noise = np.where(rng.random(600) < 0.9, y, 1 - y), rng.integers(0, 4, 600)
    for model in ranking.SURROGATES:
        assert ranking.surrogate_score(good, y, model) > ranking.surrogate_score(noise, y, model), model
