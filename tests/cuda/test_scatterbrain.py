"""cuda/scatterbrain.cu against plain NumPy, under the host shim and on a GPU alike."""

from pathlib import Path

import numpy as np
import pytest

SOURCE = (Path(__file__).parents[2] / "cuda" / "scatterbrain.cu").read_text()


@pytest.mark.parametrize(("a", "b", "m", "own"), [(8, 8, 6, True), (40, 70, 0, False), (33, 5, 40, True)])
def test_tiles_are_their_definition(machine, a, b, m, own):
    rng = np.random.default_rng(a)
    n, t, s, d, dv, tiles, temperature = 2, 50, 80, 5, 7, 3, 0.4
    q, k, v = rng.standard_normal((n, t, d)), rng.standard_normal((n, s, d)), rng.standard_normal((n, s, dv))
    fq, fk = rng.random((n, t, max(m, 1))), rng.random((n, s, max(m, 1)))
    sets = n if own else 1
    queries = rng.integers(0, t, (sets, tiles, a))
    keys = rng.integers(0, s, (sets, tiles, b))
    count = rng.integers(0, 3, (sets, tiles, a, b)).astype(np.int8)
    count[:, 0, 0] = 0  # a query without keys
    top, exact, low = (np.zeros((n, tiles, a, *x), np.float32) for x in ((), (dv,), (dv,)))
    f32 = [np.ascontiguousarray(x, np.float32) for x in (q, k, v, fq, fk)]
    machine(SOURCE).launch(
        "tiles", (tiles * -(-a // 32), n), 128, *f32, queries, keys, count, top, exact, low,
        t, s, d, dv, m, tiles, a, b, int(own), int(own), int(own), temperature,
    )  # fmt: skip
    for i in range(n):
        j = i if own else 0
        for tile in range(tiles):
            rows, columns, times = queries[j, tile], keys[j, tile], count[j, tile].astype(float)
            share = np.where(times > 0, 1 / np.maximum(times, 1), 0)
            weights = np.exp(temperature * q[i, rows] @ k[i, columns].T) * share
            some = share.sum(1) > 0
            got = exact[i, tile] * np.exp(top[i, tile].astype(float))[:, None]
            np.testing.assert_allclose(got[some], (weights @ v[i, columns])[some], rtol=2e-4, atol=2e-4)
            assert (exact[i, tile][~some] == 0).all() and (top[i, tile][~some] < -1e29).all()
            if m:
                estimate = (fq[i, rows] @ fk[i, columns].T) * share
                np.testing.assert_allclose(low[i, tile], estimate @ v[i, columns], rtol=2e-4, atol=2e-3)
