"""Attacks on private releases, each tried and each shown to fail (and, where there is a weaker way of doing things, to
succeed against that): low bits, non-finite values, bounds from data, spending twice, files, far queries, halves."""

import hashlib
import json
import math
import pickle
import struct
import warnings

import numpy as np
import pytest

from mercer.private import (
    BudgetExceeded,
    CorruptFile,
    InsecureNoiseWarning,
    PrivacyLedger,
    PrivateDistanceSum,
    PrivateKernelSum,
    PrivatePartial,
    PrivateSimilarityClassifier,
    Release,
    _container,
    load,
)  # fmt: skip
from mercer.private._noise import Budget, Law, Noise

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(300, 2))


def estimators(**kwargs):
    yield PrivateDistanceSum("l1", bounds=(0, 1), levels=4, **kwargs)
    yield PrivateDistanceSum("l2", bounds=(0, 1), levels=4, n_projections=3, **kwargs)
    yield PrivateDistanceSum("sqeuclidean", bounds=(0, 1), **kwargs)
    yield PrivateKernelSum(n_features=6, **kwargs)


EVERY = pytest.mark.parametrize("index", range(4))


def estimator(index, **kwargs):
    return list(estimators(**kwargs))[index]


# Mironov 2012: the low bits of value + floating-point noise tell the value


def test_low_bits_of_floating_noise_tell_two_data_sets_apart_and_ours_do_not():
    # All noise that a small generator can make, added to the sums of two neighbouring data sets.
    u = (np.arange(1, 2**16) / 2.0**16) - 0.5
    noise = -np.sign(u) * np.log1p(-2 * np.abs(u) + 1e-12)
    one, other = 0.3 + noise, 1.1 + noise
    told_apart = 1 - np.mean(np.isin(one, other))
    assert told_apart > 0.9  # the attack works on doubles: most outputs are possible under one data set only

    # Ours: every released number is a whole multiple of one step, whatever the data, and each is possible under both.
    law = Law.laplace(Budget.of("laplace", 1.0, None).amount, 2)
    one, other = np.full(200_000, 3, np.int64), np.full(200_000, 5, np.int64)
    noise = Noise(None, None)
    noise.add(one, [law])
    noise.add(other, [law])
    assert one.dtype == np.int64
    common = np.intersect1d(one, other)
    assert np.isin(one, common).mean() > 0.999 and np.isin(other, common).mean() > 0.999


@EVERY
def test_a_release_holds_whole_numbers_alone(index):
    release = estimator(index).fit(X).release_
    assert all(array.dtype == np.int64 for array in release._arrays.values())
    # What is computed from them is a public function of them.
    Y = RNG.uniform(size=(5, 2))
    assert np.array_equal(Release.from_bytes(release.to_bytes()).query(Y), release.query(Y))


@EVERY
def test_releases_of_neighbouring_data_have_the_same_public_part(index):
    def public(data):
        release = estimator(index, random_state=1).fit(data).release_
        shapes = {name: array.shape for name, array in release._arrays.items()}
        return json.dumps([release.statement, release._parameters, str(shapes)])

    assert public(X) == public(X[1:]) == public(X * 0.1)


def test_default_depth_and_number_of_features_follow_the_noisy_count_not_the_secret_one():
    # 1024 rows ask for 10 levels, 1025 for 11: with the secret count, one row would show.
    rows = np.linspace(0, 1, 1025)[:, None]
    for data in (rows, rows[1:]):
        levels = {PrivateDistanceSum("l1", 1.0, (0, 1)).fit(data).release_.levels for _ in range(60)}
        assert levels == {10, 11}
    counts = set()
    for _ in range(30):
        release = PrivateKernelSum(epsilon=0.5).fit(rows).release_
        counts.add(release._parameters["n_features"])
        assert release._parameters["n_features"] == max(round(0.5 * release.count / math.sqrt(8)), 8)
    assert len(counts) > 1


# Values that are no numbers


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("outside", ["raise", "clip"])
def test_a_value_that_is_not_finite_reaches_no_sum_and_spends_nothing(index, bad, outside):
    data = X.copy()
    data[77, 1] = bad
    ledger = PrivacyLedger(1.0)
    private = estimator(index, outside=outside, ledger=ledger)
    with pytest.raises(ValueError, match="X must be finite, row 77 contains NaN or infinity"):
        private.fit(data)
    with pytest.raises(ValueError, match="row 77"):
        private.partial(data)
    assert ledger.epsilon_spent == 0 and not hasattr(private, "release_")


@EVERY
def test_no_row_however_large_moves_a_sum_beyond_its_sensitivity(index):
    for value in (1e300, -1e300, 1e16, 5e-324):
        data = X.copy()
        data[0] = value
        private = estimator(index, outside="clip")
        a, b = private.partial(data), private.partial(X)
        for name, sums in a._arrays.items():
            change = np.abs(sums - b._arrays[name])
            assert change.sum() <= 2 * {"leaves": 3, "n": 1, "sum": 2**21 + 2, "squares": 2**21}.get(
                name, 6 * (math.isqrt(2 << 40) + 1)
            )


@EVERY
def test_queries_that_are_no_numbers_are_refused(index):
    release = estimator(index).fit(X).release_
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="Y must be finite, row 1"):
            release.query([[0.0, 0.0], [bad, 0.0]])
    with pytest.raises(ValueError, match="Y must have 2 columns, got 3"):
        release.query([[0.0, 0.0, 0.0]])


# Bounds from the data


@pytest.mark.parametrize("metric", ["l1", "l2", "sqeuclidean"])
def test_bounds_are_never_taken_from_the_data(metric):
    with pytest.raises(ValueError, match="bounds must be given .* would give them away"):
        PrivateDistanceSum(metric).fit(X)
    for bounds in (
        "auto",
        "data",
        None,
        (1.0, 0.0),
        (0.0, 0.0),
        (0.0, np.inf),
        (np.nan, 1.0),
        (0,),
        ([0, 0, 0], 1),
    ):
        with pytest.raises(ValueError, match="bounds"):
            PrivateDistanceSum(metric, bounds=bounds).fit(X)


def test_a_value_outside_the_bounds_is_refused_unless_clipping_was_asked_for():
    with pytest.raises(ValueError, match=r"X must lie within bounds, got 1.5 in row 3, column 0"):
        data = X.copy()
        data[3, 0] = 1.5
        PrivateDistanceSum("l1", bounds=(0, 1)).fit(data)
    clipped = PrivateDistanceSum("l1", bounds=(0, 1), outside="clip", levels=3)
    edge = np.where(data > 1, 1.0, data)
    assert clipped.partial(data) == clipped.partial(edge)


# Spending twice


@EVERY
def test_refitting_on_one_budget_is_refused_and_the_first_release_stays(index):
    private = estimator(index).fit(X)
    first = private.release_
    with pytest.raises(BudgetExceeded, match="epsilon = 1.0 has been spent"):
        private.fit(X)
    assert private.release_ is first
    # Averaging many releases would take the noise off; each has to be paid for by name.
    private.set_params(epsilon=1.0).fit(X)
    with pytest.raises(BudgetExceeded):
        private.fit(X)


@EVERY
def test_a_partial_is_released_once_and_then_neither_again_nor_merged(index):
    private = estimator(index)
    partial, more = private.partial(X), private.partial(X)
    partial.release(1.0)
    with pytest.raises(BudgetExceeded, match="needs a ledger"):
        partial.release(1.0)
    with pytest.raises(BudgetExceeded, match="cannot be merged"):
        more.merge(partial)
    with pytest.raises(BudgetExceeded):  # a copy remembers
        PrivatePartial.from_bytes(partial.to_bytes()).release(1.0)
    ledger = PrivacyLedger(1.0)
    partial.release(0.6, ledger=ledger)
    with pytest.raises(BudgetExceeded):
        partial.release(0.6, ledger=ledger)


@EVERY
def test_two_noisy_halves_cannot_be_merged(index):
    private = estimator(index)
    half = private.partial(X[:100]).release(1.0)
    assert not hasattr(half, "merge")
    with pytest.raises(TypeError, match="noise is added once, after the merge"):
        private.partial(X[100:]).merge(half)
    with pytest.raises(CorruptFile, match="not a mercer-SECRET-partial"):
        PrivatePartial.from_bytes(half.to_bytes())


@EVERY
def test_a_partial_answers_nothing_and_says_that_it_is_secret(index):
    partial = estimator(index).partial(X)
    for verb in ("query", "std_error", "mean", "density", "save"):
        with pytest.raises(TypeError, match="no noise"):
            getattr(partial, verb)([[0.0, 0.0]])
    data = partial.to_bytes()
    assert data.startswith(b"mercer-SECRET-partial 1 ") and b'"SECRET"' in data and "SECRET" in repr(partial)
    with pytest.raises(CorruptFile, match="SECRET"):
        Release.from_bytes(data)


@EVERY
def test_a_release_says_nothing_of_the_sums_before_the_noise(index):
    private = estimator(index)
    private.fit(X)
    secret = private.partial(X)
    pickled = pickle.dumps(private)
    for name, sums in secret._arrays.items():
        if sums.size > 4:
            assert sums.tobytes() not in pickled
            noisy = private.release_._arrays.get({"leaves": "trees"}.get(name, name))
            assert noisy is None or noisy.shape != sums.shape or not np.array_equal(noisy, sums)


def test_a_seed_for_the_noise_warns_marks_the_file_and_nothing_else_repeats():
    with pytest.warns(InsecureNoiseWarning, match="whoever has the seed"):
        seeded = PrivateKernelSum(n_features=4, random_state=1, insecure_seed=3).fit(X).release_
    assert "INSECURE" in seeded.statement["noise_source"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = [PrivateKernelSum(n_features=4, random_state=1).fit(X).release_ for _ in range(2)]
    assert plain[0].statement["noise_source"] == "operating system" and plain[0] != plain[1]


# Files


def release_bytes():
    return PrivateDistanceSum("l1", bounds=(0, 1), levels=3).fit(X).release_.to_bytes()


def test_every_changed_byte_and_every_cut_is_noticed():
    data = release_bytes()
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        with pytest.raises(CorruptFile):
            Release.from_bytes(bytes(changed))
    for length in range(0, len(data), 11):
        with pytest.raises(CorruptFile):
            Release.from_bytes(data[:length])
    with pytest.raises(CorruptFile):
        Release.from_bytes(data + b"\0")


def forged(change, data=None):
    """A release whose checksum fits, with other content: what a malicious author can write."""
    content, arrays = _container.unpack(_container.RELEASE, data or release_bytes())
    change(content, arrays)
    return _container.pack(_container.RELEASE, content, arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda c, a: c["parameters"].update(levels=25),
        lambda c, a: c["parameters"].update(levels=-1),
        lambda c, a: c["parameters"].update(levels="__import__('os').abort()"),
        lambda c, a: c["parameters"].update(low=[1.0, 1.0], high=[0.0, 0.0]),
        lambda c, a: c["parameters"].update(columns=10**9),
        lambda c, a: c["parameters"].update(laws=[["laplace", 0, 0]] * 3),
        lambda c, a: c["parameters"].update(laws=[["laplace", 1, 10**9]] * 3),
        lambda c, a: c["parameters"].update(laws=[]),
        lambda c, a: c["parameters"].update(p=-1.0),
        lambda c, a: c["parameters"].update(estimate="eval"),
        lambda c, a: c["parameters"].pop("p"),
        lambda c, a: c.update(kind="os.system"),
        lambda c, a: c.update(statement=None),
        lambda c, a: c.update(parameters=[]),
        lambda c, a: a.update(trees=a["trees"][:, :-1]),
        lambda c, a: a.pop("trees"),
    ],
)
def test_a_forged_file_with_a_fitting_checksum_is_refused_not_believed(change):
    with pytest.raises(CorruptFile):
        Release.from_bytes(forged(change))


def features_bytes():
    return PrivateKernelSum(n_features=4).fit(X).release_.to_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda c, a: c["parameters"].update(n_features=1 << 40),
        lambda c, a: c["parameters"].update(n_features=-4),
        lambda c, a: c["parameters"].update(seed=-1),
        lambda c, a: c["parameters"].update(terms=[[1.0, "gaussian", 0.0]]),
        lambda c, a: c["parameters"].update(terms=[[1.0, "laplace", 1.0]], structured=True),
        lambda c, a: c["parameters"].update(kernel="no such"),
        lambda c, a: c["parameters"].update(reduce={"dimensions": 0, "seed": 1}),
        lambda c, a: c["parameters"].update(steps=[]),
    ],
)
def test_forged_features_are_refused(change):
    with pytest.raises(CorruptFile):
        Release.from_bytes(forged(change, features_bytes()))


def test_lengths_beyond_the_file_are_refused_before_memory_is_asked_for():
    content, arrays = _container.unpack(_container.RELEASE, release_bytes())
    for listed in (
        [["trees", "<i8", [2, 1 << 60]]],
        [["trees", "<i8", [-1]]],
        [["trees", "O", [2]]],
        [],
        "x",
        None,
    ):
        text = json.dumps({**content, "arrays": listed}).encode()
        line = f"mercer-private-release 1 {len(text)} 0 {hashlib.sha256(text).hexdigest()}\n".encode()
        with pytest.raises(CorruptFile):
            Release.from_bytes(line + text)
    with pytest.raises(CorruptFile, match="version 2"):
        Release.from_bytes(release_bytes().replace(b"release 1 ", b"release 2 ", 1))
    for other in (
        b"",
        b"PK\x03\x04",
        b"mercer-private-release",
        pickle.dumps([1]),
        struct.pack("<Q", 1 << 63) * 40,
    ):
        with pytest.raises(CorruptFile):
            Release.from_bytes(other)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.mercer"
    release = Release.from_bytes(release_bytes())
    release.save(path)
    old = path.read_bytes()
    monkeypatch.setattr(type(release), "to_bytes", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        release.save(path)
    assert path.read_bytes() == old and load(path).statement == release.statement
    assert [p.name for p in tmp_path.iterdir()] == ["out.mercer"]


# Queries from far away


@EVERY
def test_a_query_far_outside_sees_the_noisy_count_and_no_more(index):
    release = estimator(index).fit(X).release_
    far = np.full((1, 2), 1e12)
    answer, error = release.query(far)[0], release.std_error(far)[0]
    assert np.isfinite(answer) and error > 0
    if index != 3:  # distances: |y| counts the rows; that count has noise, and the error says so
        scale = {0: 2e12, 1: math.sqrt(2) * 1e12, 2: 2e24}[index]
        assert error / scale > 0.1


def test_shells_have_no_answer_outside_the_bounds():
    release = PrivateDistanceSum("l1", bounds=(0, 1), query="shells", levels=4).fit(X).release_
    assert np.isnan(release.query([[1.5, 0.5]])).all() and np.isfinite(release.query([[0.5, 0.5]])).all()


# People with many rows


def test_a_user_with_many_rows_has_the_weight_of_the_few_that_were_declared():
    users = np.arange(300) // 3  # three rows each
    private = PrivateDistanceSum("l1", bounds=(0, 1), levels=3, max_rows_per_user=2)
    with pytest.raises(ValueError, match="users must be given"):
        private.fit(X)
    partial = private.partial(X, users=users)
    assert partial._arrays["n"][0] == 200
    without = private.partial(X[3:], users=users[3:])
    assert np.abs(partial._arrays["leaves"] - without._arrays["leaves"]).sum(1).max() <= 2
    with pytest.raises(ValueError, match="rows in the two partials together"):
        partial.merge(private.partial(X[:1], users=users[:1]))
    statement = private.fit(X, users=users).release_.statement
    assert statement["neighbouring"] == "add or remove one user" and "at most 2 rows" in statement["unit"]


def test_users_without_a_limit_and_limits_without_users_are_refused():
    with pytest.raises(ValueError, match="users must be None unless max_rows_per_user"):
        PrivateKernelSum(n_features=3).fit(X, users=np.arange(300))
    with pytest.raises(ValueError, match="one id a row"):
        PrivateKernelSum(n_features=3, max_rows_per_user=1).fit(X, users=np.arange(299))


# What was declared against what is measured


def lower_bound(a, b, confidence=1e-9):
    """An epsilon that the mechanism is proved to exceed, with this probability of being wrong: for events chosen on the
    first half of the outputs, Clopper-Pearson bounds on the second (Jagielski et al. 2020)."""
    from scipy.stats import beta

    half = len(a) // 2
    edges = np.unique(np.quantile(np.concatenate([a[:half], b[:half]]), np.linspace(0, 1, 41)))
    best = 0.0
    for first, second in ((a, b), (b, a)):
        for upper in edges:
            for event in (lambda v, u=upper: v <= u, lambda v, u=upper: v > u):
                if event(first[:half]).mean() < 0.01:
                    continue
                k, m, n = event(first[half:]).sum(), event(second[half:]).sum(), len(a) - half
                low = beta.ppf(confidence, k, n - k + 1) if k else 0.0
                high = beta.ppf(1 - confidence, m + 1, n - m) if m < n else 1.0
                best = max(best, math.log(low / high) if low > 0 else 0.0)
    return best


def outputs(partial, statistic, n, **kwargs):
    structure, arrays = partial._structure, partial._arrays
    budget = Budget.of(kwargs.get("mechanism", "laplace"), kwargs["epsilon"], kwargs.get("delta"))
    noise = Noise(None, 1)
    return np.array([statistic(structure.release(arrays, budget, noise)) for _ in range(n)])


CASES = {
    "l1": (
        lambda: PrivateDistanceSum("l1", bounds=(0, 1), levels=2),
        lambda r: r._arrays["trees"][0, [1, 3]].sum(),
    ),
    "l1, replace": (
        lambda: PrivateDistanceSum("l1", bounds=(0, 1), levels=2, neighbor="replace"),
        lambda r: r._arrays["trees"][0, 3] - r._arrays["trees"][0, 6],
    ),
    "sqeuclidean": (lambda: PrivateDistanceSum("sqeuclidean", bounds=(-1, 1)), lambda r: r._sum.sum()),
    "gaussian kernel": (
        lambda: PrivateKernelSum(n_features=1, random_state=0),
        lambda r: r._arrays["sums"][0].sum(),
    ),
    "count": (lambda: PrivateKernelSum(n_features=1, random_state=0), lambda r: r.count),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_measured_privacy_loss_stays_below_the_declared_epsilon(case, mechanism):
    make, statistic = CASES[case]
    data = np.full((4, 1), 0.9)
    neighbour = np.concatenate([data, [[0.05]]])
    if "replace" in case:
        data, neighbour = neighbour, np.concatenate([data, [[0.95]]])
    epsilon, n = 1.0, 4000
    kwargs = {"mechanism": mechanism, "epsilon": epsilon, "delta": 1e-3 if mechanism == "gaussian" else None}
    a = outputs(make().partial(data), statistic, n, **kwargs)
    b = outputs(make().partial(neighbour), statistic, n, **kwargs)
    assert lower_bound(a, b) <= epsilon


def test_the_measurement_would_see_a_mechanism_that_spends_more_than_it_says():
    make, statistic = CASES["l1, replace"]
    data = np.full((4, 1), 0.9)
    one, other = np.concatenate([data, [[0.05]]]), np.concatenate([data, [[0.95]]])
    a, b = (outputs(make().partial(d), statistic, 4000, epsilon=16.0) for d in (one, other))
    assert lower_bound(a, b) > 1.0


def test_a_classifier_spends_its_epsilon_once_over_all_classes():
    y = np.arange(300) % 3
    classifier = PrivateSimilarityClassifier(epsilon=1.0, n_features=4)
    classifier.fit(X, y)
    with pytest.raises(BudgetExceeded):
        classifier.fit(X, y)
    # Replacing a row with its label moves two classes: noise is made for two rows.
    scale = [
        PrivateSimilarityClassifier(epsilon=1.0, n_features=4, neighbor=n).fit(X, y).release_.std_error(X[:1])
        for n in ("add_remove", "replace")
    ]
    np.testing.assert_allclose(scale[1], 2 * scale[0], rtol=1e-3)
