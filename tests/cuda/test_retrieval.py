"""cuda/fde.cu and cuda/chamfer.cu against the CPU's encodings and scores, under the host shim and on a GPU alike."""

from pathlib import Path

import numpy as np
import pytest

from mercer.retrieval import FixedDimensionalEncoder, chamfer_batch

CUDA = Path(__file__).parents[2] / "cuda"


def clouds(seed, lengths, d, dtype):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((sum(lengths), d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype), np.concatenate(
        [[0], np.cumsum(lengths)]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("q_lengths", "lengths", "d"), [([3], [1], 1), ([32, 0, 40], [5, 64, 70, 129], 20)])
def test_chamfer_is_that_of_the_cpu(machine, dtype, q_lengths, lengths, d):
    q, q_ends = clouds(0, q_lengths, d, dtype)
    x, ends = clouds(1, lengths, d, dtype)
    for which in (None, np.array([len(lengths) - 1, 0])):
        count = len(lengths) if which is None else len(which)
        out = np.full((count, len(q_lengths)), 7, dtype)
        name = "chamfer_f64" if dtype == np.float64 else "chamfer_f32"
        machine((CUDA / "chamfer.cu").read_text()).launch(
            name, (count, len(q_lengths)), 128, q, q_ends, x, ends, np.zeros(1, np.int64) if which is None else which,
            out, d, int(which is not None),
        )  # fmt: skip
        want = chamfer_batch(q, q_ends, x, ends, which=which)
        np.testing.assert_allclose(out.T, want, atol=1e-12 if dtype == np.float64 else 2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("k", "R", "projection", "final"), [(3, 2, "dense", None), (0, 1, "identity", None),
                                                             (2, 3, "sparse", 16), (5, 2, "identity", 7)])  # fmt: skip
def test_encodings_are_those_of_the_cpu(machine, dtype, k, R, projection, final):
    x, ends = clouds(2, [1, 9, 40], 10, dtype)
    encoder = FixedDimensionalEncoder(
        10, k, R, None if projection == "identity" else 4, projection, final_dim=final
    )
    planes = np.ascontiguousarray(encoder.partitions.transpose(0, 2, 1), dtype)
    suffix = "f64" if dtype == np.float64 else "f32"
    run = machine((CUDA / "fde.cu").read_text()).launch
    strings = np.full((R, len(x)), -1, np.int32)
    run(f"fde_partition_{suffix}", 2, 64, x, planes, strings, len(x), 10, R, k)
    codes = encoder.partition(x).T
    np.testing.assert_array_equal(strings, codes ^ (codes >> 1))
    matrices = encoder.projections
    if matrices is None:
        y, stride, step = x, 10, 0
    else:
        y = np.ascontiguousarray(np.einsum("nd,rdp->nrp", x, matrices).reshape(len(x), -1), dtype)
        stride, step = y.shape[1], encoder.d_proj
    place, sign = encoder.count_sketch if final else (np.zeros(1, np.int64), np.zeros(1))
    for queries in (True, False):
        out = np.zeros((3, encoder.n_features), dtype)
        run(
            f"fde_blocks_{suffix}", 3, 64, strings, y, ends, place, sign.astype(dtype), out, len(x), 3, R, k,
            encoder.d_proj, stride, step, encoder.n_features, int(queries), 1, int(final is not None),
        )  # fmt: skip
        encode = encoder.encode_queries if queries else encoder.encode_documents
        np.testing.assert_allclose(out, encode(x, ends), atol=1e-12 if dtype == np.float64 else 1e-5)
