"""Hashes against their definitions in NumPy, the laws of their collisions, and what they keep on disk."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mercer
from mercer import lsh
from mercer.lsh import E2LSH, CrossPolytope, MinHash, SimHash

FAMILIES = [
    SimHash(12, 5, tables=7, numbering="gray", random_state=3),
    SimHash(12, 40, tables=2, random_state=3),
    CrossPolytope(12, hashes=2, tables=3, random_state=3),
    CrossPolytope(12, 10, rotation="hadamard", hashes=2, tables=3, random_state=3),
    E2LSH(12, 0.7, hashes=3, tables=4, random_state=3),
    E2LSH(12, 0.7, tables=4, p=1, random_state=3),
]


def points(n, d, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_buckets_are_those_of_the_plain_definition(family):
    X = points(500, 12)
    with mercer.backend("reference"):
        want = family.hash(X)
    np.testing.assert_array_equal(family.hash(X), want)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_and_neighbours_change_no_bit(family, dtype):
    X = points(4000, 12, dtype=dtype)
    whole = family.hash(X, threads=1)
    np.testing.assert_array_equal(family.hash(X, threads=3), whole)
    np.testing.assert_array_equal(np.concatenate([family.hash(X[:77]), family.hash(X[77:])]), whole)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 62), st.integers(1, 9), st.booleans())
def test_simhash_reads_signs_of_any_shape(n, d, bits, tables, gray):
    X, planes = points(n, d, bits), points(tables * d * bits, 1, tables).reshape(tables, d, bits)
    family = SimHash(d, bits, tables=tables, numbering="gray" if gray else "plain", planes=planes)
    found = family.hash(X)
    want = np.einsum("nd,tdk->ntk", X, planes) > 0
    np.testing.assert_array_equal(family.bits(found), want)
    if not gray:
        np.testing.assert_array_equal(found, want @ (2 ** np.arange(bits)[::-1]))


def test_gray_neighbours_differ_in_one_plane():
    bits = SimHash(2, 6, numbering="gray").bits(np.arange(64))
    assert (np.diff(bits.astype(int), axis=0) != 0).sum(1).max() == 1
    assert len({tuple(row) for row in bits.tolist()}) == 64


def test_simhash_collides_as_the_angle_says():
    # 40,000 bits: 6 deviations of a share are below 6 * 0.5 / 200 = 0.015, passed once in a billion.
    for angle in (0.3, 1.0, 2.5):
        X = np.array([[1.0, 0, 0], [np.cos(angle), np.sin(angle), 0]])
        a, b = SimHash(3, 1, tables=40_000, random_state=1).hash(X)
        assert abs((a == b).mean() - (1 - angle / np.pi)) < 0.015


def test_e2lsh_collides_as_the_integral_says():
    # Datar et al. 2004, section 3.2, c = 1: 1 - 2 Phi(-r) - 2 / (sqrt(2 pi) r) (1 - exp(-r^2 / 2)).
    from scipy.stats import norm

    r = 1.7
    want = 1 - 2 * norm.cdf(-r) - 2 / (np.sqrt(2 * np.pi) * r) * (1 - np.exp(-r * r / 2))
    a, b = E2LSH(3, r, tables=40_000, random_state=2).hash([[0.0, 0, 0], [0.6, 0.8, 0]])
    assert abs((a == b).mean() - want) < 0.015


def test_the_cauchy_lines_keep_manhattan_distances():
    # The median of |a.(x - y)| for Cauchy a is |x - y|_1.
    h = E2LSH(4, 1.0, tables=40_000, p=1, random_state=2, shifts=np.zeros((40_000, 1)))
    assert abs(np.median(np.abs(h.directions @ [1.0, -2.0, 0.5, 0.25])) - 3.75) < 0.15


def test_cross_polytope_buckets_are_even_and_close_points_share_them():
    X = points(2000, 16)
    for rotation in ("gaussian", "hadamard"):
        h = CrossPolytope(16, rotation=rotation, tables=300, random_state=5)
        counts = np.bincount(h.hash(X).ravel(), minlength=32)
        assert np.abs(counts / counts.mean() - 1).max() < 0.2  # seven deviations of a mean over 300 rotations
        near = (h.hash(X) == h.hash(X + 0.05 * points(2000, 16, 1))).mean()
        assert near > 0.8


def test_the_first_of_equal_axes_wins_positive_before_negative():
    h = CrossPolytope(2, rotations=np.eye(2)[None, None])
    np.testing.assert_array_equal(h.hash([[-1.0, 1.0], [1.0, 1.0], [-1, -1], [0, 0]]).ravel(), [1, 0, 2, 0])


def test_digits_of_several_rotations():
    R = points(1, 2 * 3 * 5 * 4)[0].reshape(2, 3, 5, 4)
    X = points(50, 5, 1)
    got = CrossPolytope(5, hashes=3, tables=2, rotations=R).hash(X)
    for n, t in itertools.product(range(50), range(2)):
        code = 0
        for h in range(3):
            y = X[n] @ R[t, h]
            code = code * 8 + int(np.argmax(np.concatenate([y, -y])))
        assert got[n, t] == code


def test_minhash_is_the_least_residue_and_estimates_jaccard():
    sets = [[3, 2**64 - 1, 17], [], [2**61 - 1, 0], [17]]
    h = MinHash(5, random_state=1)
    with mercer.backend("reference"):
        want = h.hash(sets)
    np.testing.assert_array_equal(h.hash(sets), want)
    assert (h.hash(sets)[1] == 2**61 - 1).all()
    flat, offsets = np.array([3, 4, 5, 4, 5, 6]), np.array([0, 3, 6])
    a, b = MinHash(40_000, random_state=1).hash(flat, offsets)
    assert abs(MinHash.similarity(a, b) - 0.5) < 0.015
    words = MinHash(64).hash([["a", "b"], {"b", "a"}, [b"a", b"b"]])
    assert (words[0] == words[1]).all() and (words[0] == words[2]).all()


@pytest.mark.parametrize("family", [*FAMILIES, MinHash(9, random_state=4)], ids=repr)
def test_a_saved_family_gives_the_same_buckets(family, tmp_path):
    family.save(tmp_path / "hash.npz")
    again = type(family).load(tmp_path / "hash.npz")
    data = [[1, 2], [9]] if isinstance(family, MinHash) else points(20, 12)
    np.testing.assert_array_equal(again.hash(data), family.hash(data))
    assert again.fingerprint == family.fingerprint
    assert type(family).from_state(family.get_state()).fingerprint == family.fingerprint


def test_given_matrices_are_kept_and_damage_is_refused(tmp_path):
    planes = points(2 * 12 * 5, 1).reshape(2, 12, 5)
    family = SimHash(12, 5, tables=2, planes=planes)
    path = tmp_path / "hash.npz"
    family.save(path)
    np.testing.assert_array_equal(SimHash.load(path).planes, planes)
    with pytest.raises(ValueError, match="holds the state of mercer.lsh.SimHash"):
        E2LSH.load(path)
    content = path.read_bytes()
    for damaged in (
        content[:-100],
        content[:300] + bytes([content[300] ^ 1]) + content[301:],
        b"",
        b"PK\3\4",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="hash.npz"):
            SimHash.load(path)


def test_the_bits_of_a_seed_are_written_down():
    # Philox is tested against its known answers; these bind the streams, so that saved states keep their meaning.
    X = np.arange(12.0)[None] - 5.3
    assert SimHash(12, 8, tables=3, random_state=7).hash(X).tolist() == [SIMHASH]
    assert E2LSH(12, 1.0, tables=3, random_state=7).hash(X).tolist() == [E2]
    assert CrossPolytope(12, tables=3, random_state=7).hash(X).tolist() == [POLYTOPE]


SIMHASH, E2, POLYTOPE = [157, 132, 88], [16, -27, 7], [6, 3, 19]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimHash(0, 1), "dim must be an integer >= 1, got 0"),
        (lambda: SimHash(3, 63), r"n_bits must be an integer in \[0, 62\], got 63"),
        (lambda: SimHash(3, 1, numbering="grey"), "numbering must be one of 'plain', 'gray', got 'grey'"),
        (lambda: SimHash(3, 2, planes=np.zeros((1, 2, 3))), r"planes must have shape \(1, 3, 2\)"),
        (lambda: SimHash(3, 1, planes=np.full((1, 3, 1), np.nan)), "planes must be finite"),
        (lambda: CrossPolytope(3, 5), "n_buckets must be even, got 5"),
        (lambda: CrossPolytope(4, hashes=30), "hashes must leave"),
        (lambda: CrossPolytope(3, 20, rotation="hadamard"), "n_buckets must be at most 8"),
        (lambda: E2LSH(3, 0.0), "width must be a finite number > 0, got 0.0"),
        (lambda: E2LSH(3, 1.0, p=3), r"p must be an integer in \[1, 2\], got 3"),
        (lambda: MinHash(2, coefficients=[[0, 1], [1, 1]]), "coefficients must lie in"),
        (lambda: MinHash(2).hash([[-1]]), "items must be an integer in"),
        (
            lambda: MinHash(2).hash(np.arange(3), [0, 2]),
            "offsets must ascend from 0 to the number of items, 3",
        ),
        (lambda: SimHash(3, 2).hash([[1.0, np.inf, 0.0]]), "X must be finite, row 0"),
        (lambda: SimHash(3, 2).hash([[1.0, 2.0]]), "X must have 3 columns, got 2"),
        (lambda: SimHash(3, 2).bits([4]), r"buckets must lie in 0 \.\.\. 3"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_families_are_the_public_names():
    assert set(lsh.__all__) == {"E2LSH", "CrossPolytope", "Family", "MinHash", "SimHash"}
