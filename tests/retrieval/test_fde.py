"""Fixed dimensional encodings against their definition, their bounds and their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mercer.retrieval import FixedDimensionalEncoder, chamfer, chamfer_batch


def unit(rng, n, d):
    x = rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clouds(rng, n_docs, d, most=40):
    lengths = rng.integers(1, most, n_docs)
    return unit(rng, int(lengths.sum()), d), np.concatenate([[0], np.cumsum(lengths)])


def brute(encoder, x, queries):
    """One set, block after block, from the matrices that the encoder tells of."""
    planes, matrices = encoder.partitions, encoder.projections
    R, blocks = encoder.repetitions, 1 << encoder.k_sim
    out = np.zeros((R, blocks, encoder.d_proj))
    for r in range(R):
        bits = x @ planes[r] > 0  # (n, k)
        y = x if matrices is None else x @ matrices[r]
        for block in range(blocks):
            gray = block ^ (block >> 1)
            code = np.array([(gray >> (encoder.k_sim - 1 - j)) & 1 for j in range(encoder.k_sim)], bool)
            apart = (bits != code).sum(1)
            member = apart == 0
            if member.any():
                out[r, block] = y[member].sum(0) if queries else y[member].mean(0)
            elif not queries and encoder.fill_empty and encoder.k_sim > 0:
                out[r, block] = y[np.argmin(apart)]
    flat = out.ravel()
    if encoder.final_dim is None:
        return flat
    place, sign = encoder.count_sketch
    brought = np.zeros(encoder.final_dim)
    np.add.at(brought, place, sign * flat)
    return brought


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 24), st.integers(0, 6), st.integers(1, 4), st.sampled_from(["dense", "sparse", "identity"]),
    st.sampled_from([None, 7, 16, 48]), st.booleans(), st.integers(0, 2**32), st.integers(1, 90),
)  # fmt: skip
def test_an_encoding_is_that_of_the_definition(d, k, R, projection, final, fill, seed, most):
    rng = np.random.default_rng(seed)
    d_proj = None if projection == "identity" else int(rng.integers(1, d + 1))
    encoder = FixedDimensionalEncoder(
        d, k, R, d_proj, projection, final_dim=final, fill_empty=fill, seed=seed
    )
    x, offsets = clouds(rng, 5, d, most + 1)
    for queries in (True, False):
        encode = encoder.encode_queries if queries else encoder.encode_documents
        want = np.stack(
            [brute(encoder, x[a:b], queries) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        )
        scale = np.abs(want).max()
        assert np.abs(encode(x, offsets) - want).max() <= 1e-12 * max(scale, 1) * 10
        # In single precision a token may lie on the other side of a plane that runs through it: not these.
        clear = np.abs(np.einsum("nd,rdk->nrk", x, encoder.partitions)).min(initial=1) > 1e-5
        if clear:
            got = encode(x.astype(np.float32), offsets)
            assert got.dtype == np.float32
            assert np.abs(got - want).max() <= 1e-5 * max(scale, 1)


def test_half_precision_tokens_are_encoded_as_the_floats_they_are():
    rng = np.random.default_rng(0)
    x, offsets = clouds(rng, 6, 32)
    half = x.astype(np.float16)
    encoder = FixedDimensionalEncoder(32, 4, 5, 8)
    np.testing.assert_array_equal(
        encoder.encode_documents(half, offsets), encoder.encode_documents(half.astype(np.float32), offsets)
    )


def test_without_projections_the_estimate_never_exceeds_chamfer():
    rng = np.random.default_rng(1)
    docs, offsets = clouds(rng, 200, 24)
    queries, q_offsets = clouds(rng, 20, 24, 12)
    for k in (0, 2, 5):
        encoder = FixedDimensionalEncoder(24, k, 8, projection="identity")
        q, d = encoder.encode_queries(queries, q_offsets), encoder.encode_documents(docs, offsets)
        assert (encoder.score(q, d) <= chamfer_batch(queries, q_offsets, docs, offsets) + 1e-12).all()


def test_the_estimate_is_exact_where_a_document_is_one_token_and_where_each_token_is_alone():
    rng = np.random.default_rng(2)
    q, p = unit(rng, 9, 16), unit(rng, 1, 16)
    for k in (0, 3, 7):
        encoder = FixedDimensionalEncoder(16, k, 4, projection="identity")
        got = encoder.score(encoder.encode_queries(q), encoder.encode_documents(p))[0, 0]
        assert got == pytest.approx(chamfer(q, p), abs=1e-12)
    alone = FixedDimensionalEncoder(16, 16, 3, projection="identity", seed=3)
    few = q[:6]
    assert all(len(np.unique(column)) == 6 for column in alone.partition(few).T)
    got = alone.score(alone.encode_queries(few), alone.encode_documents(few))[0, 0]
    assert got == pytest.approx(chamfer(few, few), abs=1e-12)


def test_one_block_without_projection_is_the_sum_and_the_mean():
    x = unit(np.random.default_rng(3), 11, 5)
    encoder = FixedDimensionalEncoder(5, 0, 1, projection="identity")
    np.testing.assert_allclose(encoder.encode_queries(x)[0], x.sum(0), atol=1e-14)
    np.testing.assert_allclose(encoder.encode_documents(x)[0], x.mean(0), atol=1e-14)


def test_queries_add_up_and_order_and_copies_do_not_matter():
    rng = np.random.default_rng(4)
    x = unit(rng, 30, 12)
    for final in (None, 64):
        encoder = FixedDimensionalEncoder(12, 3, 4, 6, final_dim=final)
        both = encoder.encode_queries(x)
        parts = encoder.encode_queries(x[:13]) + encoder.encode_queries(x[13:])
        np.testing.assert_allclose(both, parts, atol=1e-13)
        shuffled = x[rng.permutation(30)]
        np.testing.assert_allclose(encoder.encode_queries(shuffled), both, atol=1e-13)
        documents = encoder.encode_documents(x)
        np.testing.assert_allclose(encoder.encode_documents(np.concatenate([x, x])), documents, atol=1e-13)


def test_threads_and_company_change_no_bit():
    rng = np.random.default_rng(5)
    x, offsets = clouds(rng, 60, 24)
    x = x.astype(np.float32)
    for final in (None, 96, 50):
        encoder = FixedDimensionalEncoder(24, 4, 3, 8, final_dim=final)
        whole = encoder.encode_documents(x, offsets, threads=1)
        np.testing.assert_array_equal(encoder.encode_documents(x, offsets, threads=3), whole)
        alone = [encoder.encode_documents(x[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        np.testing.assert_array_equal(np.concatenate(alone), whole)


def test_sparse_queries_are_the_dense_ones():
    rng = np.random.default_rng(6)
    q, offsets = clouds(rng, 7, 16, 9)
    encoder = FixedDimensionalEncoder(16, 6, 4, 5)
    sparse = encoder.encode_queries(q, offsets, sparse=True)
    np.testing.assert_allclose(sparse.toarray(), encoder.encode_queries(q, offsets), atol=1e-14)
    assert sparse.nnz <= len(q) * 5 * 4
    docs = encoder.encode_documents(q, offsets)
    np.testing.assert_allclose(
        encoder.score(sparse, docs), encoder.score(encoder.encode_queries(q, offsets), docs)
    )
    huge = FixedDimensionalEncoder(16, 30, 2, 4)
    assert huge.encode_queries(q, offsets, sparse=True).shape == (7, 2**33)


@pytest.mark.parametrize("final", ["count_sketch", "dense"])
@pytest.mark.parametrize("size", [32, 33])
def test_final_projections_keep_products_on_average(final, size):
    # 400 seeds of a variance of about 2 |x|^2 |y|^2 / size: seven deviations of the mean.
    rng = np.random.default_rng(7)
    q, p = unit(rng, 3, 8), unit(rng, 10, 8)
    planes = rng.standard_normal((2, 8, 3))
    full = FixedDimensionalEncoder(8, 3, 2, projection="identity", partitions=planes)
    x, y = full.encode_queries(q)[0], full.encode_documents(p)[0]
    got = []
    for seed in range(400):
        e = FixedDimensionalEncoder(
            8, 3, 2, projection="identity", partitions=planes, final_dim=size, final=final, seed=seed
        )
        got.append(e.encode_queries(q)[0] @ e.encode_documents(p)[0])
    bound = 7 * np.sqrt(2 * (x @ x) * (y @ y) / size / 400)
    assert abs(np.mean(got) - x @ y) < bound


def test_the_runs_of_a_sketch_meet_as_rarely_as_single_coordinates_do():
    place, sign = FixedDimensionalEncoder(16, 5, 40, 16, final_dim=64).count_sketch
    runs = place.reshape(-1, 16)
    assert all(len(np.unique(run)) == 16 for run in runs)
    counts = np.bincount(place, minlength=64)
    assert np.abs(counts / counts.mean() - 1).max() < 0.2
    met = (runs[:-1:2, :, None] == runs[1::2, None, :]).mean((0, 1, 2))
    assert abs(met - 1 / 64) < 0.004
    assert abs(sign.mean()) < 0.05


def test_a_dense_final_projection_is_the_matrix_that_is_given():
    rng = np.random.default_rng(8)
    x, offsets = clouds(rng, 20, 8)
    matrix = rng.standard_normal((2 * 4 * 8, 10))
    planes = rng.standard_normal((2, 8, 2))
    e = FixedDimensionalEncoder(
        8,
        2,
        2,
        projection="identity",
        partitions=planes,
        final_dim=10,
        final="dense",
        final_projection=matrix,
    )
    full = FixedDimensionalEncoder(8, 2, 2, projection="identity", partitions=planes)
    np.testing.assert_allclose(
        e.encode_documents(x, offsets), full.encode_documents(x, offsets) @ matrix, atol=1e-12
    )


def test_inner_projections_are_what_they_are_called():
    dense = FixedDimensionalEncoder(32, 2, 3, 8).projections
    assert np.allclose(np.abs(dense), 8**-0.5) and abs(dense.mean()) < 0.1
    sparse = FixedDimensionalEncoder(32, 2, 3, 8, "sparse").projections
    assert (np.abs(sparse).sum(2) == 1).all() and ((sparse == 0) | (np.abs(sparse) == 1)).all()


def test_repetitions_of_neighbouring_seeds_are_not_shared():
    a, b = (FixedDimensionalEncoder(8, 3, 4, seed=s).partitions for s in (1, 2))
    assert not np.isin(a, b).any()


def test_a_saved_encoder_is_the_same_and_another_is_refused(tmp_path):
    rng = np.random.default_rng(9)
    x = unit(rng, 20, 8)
    length = 2 * 8 * 4
    for extra in (
        {}, {"final_dim": 32}, {"partitions": rng.standard_normal((2, 8, 3))},
        {"final_dim": 5, "final_projection": (rng.integers(0, 5, length), rng.choice([-1.0, 1.0], length))},
    ):  # fmt: skip
        e = FixedDimensionalEncoder(8, 3, 2, 4, **extra)
        e.save(tmp_path / "e.npz")
        for again in (
            FixedDimensionalEncoder.load(tmp_path / "e.npz"),
            FixedDimensionalEncoder.from_state(e.get_state()),
        ):
            np.testing.assert_array_equal(again.encode_documents(x), e.encode_documents(x))
            again.require_same(e.fingerprint)
    with pytest.raises(ValueError, match="encoder must be the one of the documents"):
        e.require_same(FixedDimensionalEncoder(8, 3, 2, 4, seed=2).fingerprint)


ENCODER = FixedDimensionalEncoder(4, 2, 2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedDimensionalEncoder(4, 31), r"k_sim must be an integer in \[0, 30\], got 31"),
        (lambda: FixedDimensionalEncoder(4, -1), "k_sim"),
        (lambda: FixedDimensionalEncoder(4, d_proj=0), "d_proj must be an integer >= 1, got 0"),
        (lambda: FixedDimensionalEncoder(4, d_proj=3, projection="identity"), "d_proj must be dim = 4"),
        (lambda: FixedDimensionalEncoder(4, d_proj=5), "d_proj must be at most dim = 4, got 5"),
        (lambda: FixedDimensionalEncoder(4, final_dim=0), "final_dim must be an integer"),
        (lambda: FixedDimensionalEncoder(4, 30, 20), "at most 2\\*\\*34"),
        (lambda: ENCODER.encode_queries(np.ones((2, 5))), "tokens must have 4 columns, got 5"),
        (lambda: ENCODER.encode_documents(np.ones((2, 4)), [0, 0, 2]), "document 0 has no tokens"),
        (lambda: ENCODER.encode_documents(np.ones((2, 4)), [0, 2, 1]), "offsets must not decrease, got 2, 1"),
        (lambda: ENCODER.encode_documents(np.ones((2, 4)), [1, 2]), "offsets must begin at 0, got 1"),
        (lambda: ENCODER.encode_documents(np.ones((2, 4)), [0, 1]), "offsets must end at the number of rows"),
        (lambda: ENCODER.encode_documents(np.full((2, 4), np.nan)), "tokens must be finite, row 0"),
        (lambda: ENCODER.encode_queries([[0, 0, 0, 0], [0, np.inf, 0, 0]]), "tokens must be finite, row 1"),
        (lambda: ENCODER.encode_queries(np.full((1, 4), np.inf, np.float16)), "tokens must be finite, row 0"),
        (lambda: FixedDimensionalEncoder(4, final_dim=8).encode_queries(np.ones((2, 4)), sparse=True), "sparse must"),
        (lambda: FixedDimensionalEncoder(4, 2, 2, partitions=np.ones((2, 2, 4))), "partitions must have shape"),
        (lambda: ENCODER.score(np.ones((1, 24)), np.ones((1, 23))), "documents must be"),
    ],
)  # fmt: skip
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_empty_sets_are_zero_where_that_means_something():
    assert not ENCODER.encode_queries(np.ones((2, 4)), [0, 0, 2])[0].any()
    open_blocks = FixedDimensionalEncoder(4, 2, 2, 3, fill_empty=False)
    assert not open_blocks.encode_documents(np.ones((2, 4)), [0, 0, 2])[0].any()
    assert ENCODER.encode_documents(np.ones((0, 4)), [0]).shape == (0, 24)
