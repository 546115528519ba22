"""Sensitivity, linearity, truth without noise, the law of the noise, sources of rows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mercer.private import (
    PrivateDistanceSum,
    PrivateKernelSum,
    PrivatePartial,
    Release,
    _tree,
    exponential_sum,
    kernel_sums,
)  # fmt: skip
from mercer.private._features import KERNELS, RADIAL, trapezoid_error
from mercer.private._noise import Budget, Noise

QUIET = 1e5  # an epsilon at which noise on counts is 0
RNG = np.random.default_rng(5)


def distance(metric, p=None):
    def of(X, Y):
        u = np.abs(X[None] - Y[:, None])
        if metric == "l2":
            return np.sqrt((u**2).sum(2)).sum(1)
        return (u ** {"l1": 1, "sqeuclidean": 2, "lp": p}[metric]).sum((1, 2))

    return of


# Without noise


@pytest.mark.parametrize("n", [1, 7, 3000])
def test_l1_without_noise_is_within_a_leaf_a_row(n):
    X, Y = RNG.uniform(-2, 3, (n, 3)), RNG.uniform(-4, 5, (20, 3))
    private = PrivateDistanceSum("l1", QUIET * 100, (-2, 3), levels=12).fit(X)
    error = np.abs(private.query(Y) - distance("l1")(X, Y))
    assert (error <= 3 * n * 5 / 2**12).all()
    assert private.release_.count == n


@pytest.mark.parametrize("p", [0.5, 1.5, 2.0, 3.0])
def test_lp_without_noise_is_near_the_sum(p):
    X, Y = RNG.uniform(size=(2000, 2)), RNG.uniform(-0.5, 1.5, (10, 2))
    private = PrivateDistanceSum("lp", QUIET * 100, (0, 1), p=p, levels=12).fit(X)
    np.testing.assert_allclose(private.query(Y), distance("lp", p)(X, Y), rtol=2e-3)


def test_points_in_the_middle_of_a_leaf_away_from_the_query_are_exact():
    X = (np.arange(64)[:, None] + 0.5) / 64
    private = PrivateDistanceSum("l1", QUIET, (0, 1), levels=6).fit(X)
    Y = np.arange(65)[:, None] / 64  # edges of leaves
    np.testing.assert_allclose(private.query(Y), distance("l1")(X, Y), rtol=1e-13)


def test_shells_without_noise_are_above_the_truth_by_at_most_alpha_and_a_leaf():
    X, Y = RNG.uniform(size=(5000, 1)), RNG.uniform(size=(40, 1))
    for alpha in (0.05, 0.5):
        private = PrivateDistanceSum("l1", QUIET, (0, 1), levels=14, query="shells", alpha=alpha).fit(X)
        ratio = private.query(Y) / distance("l1")(X, Y)
        assert ((ratio > 1 - 1e-3) & (ratio < 1 + alpha + 1e-3)).all()


@pytest.mark.parametrize("norm_bound", [None, 3.0])
def test_squared_distances_without_noise_are_exact_to_the_grid(norm_bound):
    X, Y = RNG.uniform(-1, 1, (500, 4)), RNG.normal(size=(10, 4))
    for bounds in ((-1, 1), None) if norm_bound else ((-1, 1),):
        private = PrivateDistanceSum("sqeuclidean", 1e12, bounds, norm_bound=norm_bound).fit(X)
        np.testing.assert_allclose(private.query(Y), distance("sqeuclidean")(X, Y), rtol=1e-4)


def test_l2_by_its_map_is_within_its_stated_deviation():
    X, Y = RNG.uniform(size=(400, 5)), RNG.uniform(size=(30, 5))
    true, error = distance("l2")(X, Y), []
    for seed in range(10):
        private = PrivateDistanceSum("l2", 1e9, (0, 1), alpha=0.05, random_state=seed, levels=12).fit(X)
        error.append(private.query(Y) / true - 1)
    assert (
        0.005 < np.sqrt(np.mean(np.square(error))) < 0.05
    )  # alpha is the deviation of one pair; sums average some


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["pairs", "phases"])
def test_kernel_sums_without_noise_are_the_kernels_over_seeds(kernel, form):
    X, Y = RNG.normal(size=(50, 3)), RNG.normal(size=(7, 3))
    true = kernel_sums(kernel, 1.7, X, Y)
    answers = [
        PrivateKernelSum(kernel, 1.7, 1e9, n_features=2000, form=form, random_state=seed).fit(X).query(Y)
        for seed in range(8)
    ]  # fmt: skip
    # Feature variance per pair of points <= 1 (phases), fully correlated at worst: 6.5 deviations of the mean.
    assert (np.abs(np.mean(answers, 0) - true) < 6.5 * 50 / math.sqrt(8 * 2000)).all()


@pytest.mark.parametrize("kernel", ["smooth_l2", "smooth_l2sq", "smooth_l1"])
def test_the_papers_exponential_sum_gives_the_smooth_kernels_too(kernel):
    X, Y = RNG.uniform(size=(50, 2)), RNG.uniform(size=(7, 2))
    private = PrivateKernelSum(
        kernel, 0.5, 1e9, n_features=3000, smooth="exponential_sum", tol=0.01, bounds=(0, 1), random_state=0
    )
    true = kernel_sums(kernel, 0.5, X, Y)
    assert (np.abs(private.fit(X).query(Y) - true) < 0.02 * 50 + 6.5 * 50 / math.sqrt(2 * 3000)).all()
    assert len(private.release_._parameters["terms"]) > 5


def test_reducing_the_dimension_keeps_the_kernel():
    X, Y = RNG.normal(size=(60, 200)) / 14, RNG.normal(size=(5, 200)) / 14
    true = kernel_sums("gaussian", 1.5, X, Y)
    for structured in (False, True):
        private = PrivateKernelSum(
            "gaussian", 1.5, 1e9, n_features=4000, reduce_dim=128, random_state=3, structured=structured
        ).fit(X)
        np.testing.assert_allclose(private.query(Y), true, rtol=0.3)
    with pytest.raises(ValueError, match="reduce_dim must be None for kernel 'laplace'"):
        PrivateKernelSum("laplace", reduce_dim=4).fit(X)
    with pytest.raises(ValueError, match="structured must be False for kernel 'cauchy'"):
        PrivateKernelSum("cauchy", structured=True).fit(X)


@pytest.mark.parametrize("tol", [0.3, 1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("D", [0.0, 1.0, 1e4])
def test_exponential_sums_are_within_their_tolerance(tol, D):
    w, t = exponential_sum(tol, D)
    z = 1 + np.concatenate([[0.0], np.geomspace(1e-6, max(D, 1e-5), 3000)])
    z = z[z <= 1 + D]
    assert (w > 0).all() and np.abs(np.exp(-np.outer(z, t)) @ w - 1 / z).max() <= tol


def test_the_trapezoid_error_is_that_of_the_card():
    for step, bound in ((1, 6.5e-4), (3 / 4, 2.8e-5), (1 / 2, 4.8e-8), (1 / 3, 2.2e-12), (1 / 4, 1.8e-16)):
        assert trapezoid_error(step) == pytest.approx(bound, rel=0.03)


# Sensitivity


def declared(partial):
    """(l1, squared l2) by which the sums may change, from the structure's own declarations."""
    structure = partial._structure
    terms, changes = structure.terms, structure.terms.changes()
    if structure.kind == "moments":
        l1, square, scalar = structure.sensitivities
        return {
            "sum": (changes * l1, changes**2 * square),
            "squares": (changes * scalar, (changes * scalar) ** 2),
        }
    if structure.kind == "trees":
        per_level = changes, terms.rows**2 * (2 if terms.replace else 1)
        return {"leaves": per_level}
    pair, m = math.isqrt(2 << 40) + 1, structure.options["n_features"]
    paired = structure.options["form"] == "pairs"
    return {"sums": (changes * m * pair, changes**2 * m * ((2**20 + 1) ** 2 if paired else pair**2))}


ROWS = st.lists(
    st.lists(st.sampled_from([-1.0, 1.0, 0.0, -0.999999, 1e-300]) | st.floats(-1, 1), min_size=3, max_size=3),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS, other=st.lists(st.floats(-1, 1), min_size=3, max_size=3), k=st.integers(1, 3), data=st.data()
)
def test_no_neighbour_changes_the_sums_by_more_than_declared(rows, other, k, data):
    neighbor = data.draw(st.sampled_from(["add_remove", "replace"]))
    common = {"neighbor": neighbor, "max_rows_per_user": k}
    estimators = [
        PrivateDistanceSum("l1", 1.0, (-1, 1), levels=3, **common),
        PrivateDistanceSum("l2", 1.0, (-1, 1), levels=3, n_projections=2, random_state=0, **common),
        PrivateDistanceSum("sqeuclidean", 1.0, (-1, 1), **common),
        PrivateDistanceSum(
            "sqeuclidean", 1.0, ([-1, -2, -1], [1, 2, 3]), norm_bound=0.7, outside="clip", **common
        ),
        PrivateKernelSum(n_features=3, random_state=0, bandwidth=0.3, **common),
        PrivateKernelSum("smooth_l1", n_features=3, random_state=0, form="phases", **common),
        PrivateKernelSum(n_features=9, random_state=0, structured=True, **common),
    ]
    X = np.array(rows)
    alone = np.arange(len(X)) + 1000
    mine, users = np.array([other] * k), np.zeros(k, int)
    theirs = np.clip(-2 * mine, -1, 1)
    with_mine = np.concatenate([X, mine]), np.concatenate([alone, users])
    rest = (X, alone) if neighbor == "add_remove" else (np.concatenate([X, theirs]), with_mine[1])
    for estimator in estimators:
        a, b = estimator.partial(with_mine[0], users=with_mine[1]), estimator.partial(rest[0], users=rest[1])
        for name, (l1, square) in declared(a).items():
            change = (a._arrays[name] - b._arrays[name]).astype(object)
            for column in change if name == "leaves" else [change.ravel()]:
                assert np.abs(column).sum() <= l1 and (column**2).sum() <= square


def test_the_declared_sensitivity_is_reached_to_a_part_in_a_thousand():
    """Not larger than it must be: a corner of the box, an eighth of a turn."""
    corner = np.ones((1, 3))
    partial = PrivateDistanceSum("sqeuclidean", 1.0, (-1, 1)).partial(corner)
    assert np.abs(partial._arrays["sum"]).sum() > 0.999 * declared(partial)["sum"][0]
    best = max(
        np.abs(PrivateKernelSum(n_features=1, random_state=0).partial([[x]])._arrays["sums"]).sum()
        for x in np.linspace(0, 10, 400)
    )
    assert best > 0.999 * (math.isqrt(2 << 40) + 1)


# Linearity


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=4), seed=st.integers(0, 100))
def test_merged_partials_are_the_whole_whatever_the_cuts(cuts, seed):
    X = np.random.default_rng(seed).uniform(size=(300, 2)).astype(np.float32 if seed % 2 else np.float64)
    for estimator in (
        PrivateDistanceSum("l1", 1.0, (0, 1), levels=5),
        PrivateDistanceSum("l2", 1.0, (0, 1), levels=5, random_state=seed, n_projections=3),
        PrivateDistanceSum("sqeuclidean", 1.0, (0, 1)),
        PrivateKernelSum(n_features=20, random_state=seed),
        PrivateKernelSum(random_state=seed),
    ):
        whole = estimator.partial(X)
        parts = [estimator.partial(part) for part in np.split(X, sorted(cuts))]
        merged = parts[0]
        for part in parts[1:]:
            merged = PrivatePartial.from_bytes(part.to_bytes()).merge(merged)
        assert merged == whole


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads):
    X = RNG.normal(size=(5000, 9))
    for make in (
        lambda n: PrivateDistanceSum("l1", 1.0, (-9, 9), levels=8, n_jobs=n, insecure_seed=4),
        lambda n: PrivateKernelSum(n_features=300, random_state=1, n_jobs=n, insecure_seed=4),
        lambda n: PrivateKernelSum(
            n_features=300, random_state=1, n_jobs=n, structured=True, insecure_seed=4
        ),
    ):
        with pytest.warns(UserWarning, match="insecure_seed"):
            assert make(threads).fit(X).release_ == make(3).fit(X).release_


def test_bounds_move_and_stretch_with_the_data():
    X, Y = RNG.uniform(size=(300, 1)), RNG.uniform(size=(9, 1))
    plain = PrivateDistanceSum("l1", QUIET, (0, 1), levels=10).fit(X).query(Y)
    moved = PrivateDistanceSum("l1", QUIET, (-3, 5), levels=10).fit(8 * X - 3).query(8 * Y - 3)
    np.testing.assert_allclose(moved, 8 * plain, rtol=1e-12)


# The law of the noise


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: PrivateDistanceSum("l1", bounds=(0, 1), levels=3),
        lambda: PrivateDistanceSum("lp", bounds=(0, 1), levels=3, p=2.0, neighbor="replace"),
        lambda: PrivateDistanceSum("lp", bounds=(0, 1), levels=3, p=1.5),
        lambda: PrivateDistanceSum("l1", bounds=(0, 1), levels=3, query="shells", alpha=0.4),
        lambda: PrivateDistanceSum("sqeuclidean", bounds=(0, 1)),
        lambda: PrivateKernelSum(n_features=4, random_state=2),
        lambda: PrivateKernelSum(n_features=4, random_state=2, form="phases", neighbor="replace"),
        lambda: PrivateKernelSum("smooth_l2", n_features=2, smooth="exponential_sum", tol=0.2, bounds=(0, 1),
                                 random_state=1),
    ],
)  # fmt: skip
def test_answers_vary_over_releases_as_std_error_says(make, mechanism):
    X, Y = RNG.uniform(size=(40, 2)), np.array([[0.3, 0.8], [0.9, 0.1]])
    partial = make().partial(X)
    structure, arrays = partial._structure, partial._arrays
    budget = Budget.of(mechanism, 1.0, 1e-5 if mechanism == "gaussian" else None)
    n, noise = 1500, Noise(None, 1)
    releases = [structure.release(arrays, budget, noise) for _ in range(n)]
    answers = np.array([release.query(Y) for release in releases])
    # The kurtosis of a sum of Laplace variables is at most 6: seven deviations of the sample variance.
    ratio = answers.var(0) / releases[0].std_error(Y) ** 2
    assert (np.abs(ratio - 1) < 7 * math.sqrt(5 / n)).all()
    expected = make().set_params(epsilon=1e9).fit(X).query(Y)
    assert (
        np.abs(answers.mean(0) - expected)
        < 7 * releases[0].std_error(Y) / math.sqrt(n) + 1e-3 * abs(expected)
    ).all()


@given(st.floats(-3, 4), st.integers(1, 8), st.sampled_from([1.0, 2.0]))
def test_the_closed_variance_is_the_sum_over_the_nodes(y, levels, p):
    variances = np.linspace(1, 5, levels + 1)
    y = np.array([y, 0.0, 1.0, 0.5])
    weights = _tree.node_weights(-1.0, 1.5, levels, y, p)
    true = sum(v * (w**2).sum(1) for v, w in zip(variances, weights, strict=True))
    np.testing.assert_allclose(_tree.noise_variance(-1.0, 1.5, variances, y, p), true, rtol=1e-9)


def test_total_error_covers_what_the_frequencies_add():
    X, Y = RNG.normal(size=(3000, 3)), RNG.normal(size=(20, 3))
    true = kernel_sums("gaussian", 1.0, X, Y)
    z = []
    for seed in range(30):
        release = PrivateKernelSum(n_features=200, epsilon=50.0, random_state=seed).fit(X).release_
        z.append((release.query(Y) - true) / release.std_error(Y, total=True))
    assert 0.8 < np.sqrt(np.mean(np.square(z))) < 1.2


# Where rows come from


def test_every_source_of_rows_gives_the_same_sums(tmp_path):
    X = RNG.uniform(size=(500, 3))
    estimator = PrivateKernelSum(n_features=16, random_state=0)
    whole = estimator.partial(X)
    np.save(tmp_path / "x.npy", X)
    sources = {
        "memory map": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "chunks": [X[:99], X[99:]],
        "iterator": iter([X[:99], X[99:]]),
        "callable": lambda: iter([X[:99], X[99:]]),
        "fortran": np.asfortranarray(X),
        "list": X.tolist(),
    }
    for name, source in sources.items():
        assert estimator.partial(source) == whole, name


def test_arrow_and_dask_give_the_same_sums():
    pa = pytest.importorskip("pyarrow")
    X = RNG.uniform(size=(500, 3))
    estimator = PrivateDistanceSum("l1", 1.0, (0, 1), levels=6)
    whole = estimator.partial(X)
    table = pa.table({name: X[:, i] for i, name in enumerate("abc")})
    for source in (table, table.to_batches(100), table.to_reader(60), table.to_batches()[0]):
        assert estimator.partial(source) == whole
    with pytest.raises(ValueError, match="no nulls, column 'a' has 1"):
        estimator.partial(pa.table({"a": [1.0, None], "b": [0.0, 0.0], "c": [0.0, 0.0]}))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3)
    assert estimator.partial(pa.record_batch({"v": lists})) == whole
    da = pytest.importorskip("dask.array")
    for chunks in ((77, 3), (200, 2), (500, 3)):
        assert estimator.partial(da.from_array(X, chunks=chunks)) == whole
    assert estimator.fit(da.from_array(X, chunks=(100, 3))).release_.n_features == 3


def test_a_vector_is_one_column_and_no_rows_are_rows():
    ages = RNG.uniform(size=50)
    estimator = PrivateDistanceSum("l1", 1.0, (0, 1), levels=4)
    assert estimator.partial(ages) == estimator.partial(ages[:, None])
    assert estimator.fit(ages).query([0.3, 0.4]).shape == (2,)
    empty = PrivateDistanceSum("l1", 1e6, (0, 1)).fit(np.empty((0, 2)))
    assert np.abs(empty.query(np.zeros((1, 2)))).max() < 1e-3


def test_releases_survive_their_file(tmp_path):
    X, Y = RNG.uniform(size=(200, 2)), RNG.uniform(size=(9, 2))
    for kernel in KERNELS:
        for reduce in (None, 2) if kernel in RADIAL else (None,):
            release = PrivateKernelSum(kernel, n_features=11, reduce_dim=reduce).fit(X).release_
            again = Release.from_bytes(release.to_bytes())
            np.testing.assert_array_equal(again.query(Y), release.query(Y))
            assert again.statement == release.statement and again == release


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrivateDistanceSum("cosine", bounds=(0, 1)), "metric must be one of"),
        (lambda: PrivateDistanceSum("lp", bounds=(0, 1)), "p must be given"),
        (lambda: PrivateDistanceSum("l1", bounds=(0, 1), p=2.0), "p must be given"),
        (lambda: PrivateDistanceSum("l1", bounds=(0, 1), levels=0), "levels must be"),
        (lambda: PrivateDistanceSum("l1", bounds=(0, 1), query="best"), "query must be one of"),
        (lambda: PrivateDistanceSum("l1", bounds=(0, 1), alpha=0.0), "alpha must be"),
        (lambda: PrivateDistanceSum("l1", bounds=(0, 1), neighbor="swap"), "neighbor must be one of"),
        (lambda: PrivateDistanceSum("l1", bounds=(0, 1), epsilon=0.0), "epsilon must be > 0, got 0.0"),
        (lambda: PrivateKernelSum("matern"), "kernel must be one of"),
        (lambda: PrivateKernelSum(bandwidth=0.0), "bandwidth must be"),
        (lambda: PrivateKernelSum(n_features=0), "n_features must be"),
        (lambda: PrivateKernelSum(epsilon=-1.0), "epsilon must be > 0, got -1.0"),
        (lambda: PrivateKernelSum("smooth_l1", smooth="exponential_sum"), "bounds must be given"),
    ],
)
def test_parameters_out_of_range_are_refused_before_work(make, message):
    with pytest.raises(ValueError, match=message):
        make().fit(RNG.uniform(size=(10, 2)))


def test_a_row_that_is_too_long_is_named_with_what_it_may_be():
    X = np.array([[0.1, 0.2], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"norm_bound = 2, got 5 in row 1; outside='clip' shortens"):
        PrivateDistanceSum("sqeuclidean", 1.0, norm_bound=2.0, outside="raise").fit(X)
