"""Arrow batches, Dask bags and LanceDB tables hold what an index in memory holds."""

import numpy as np
import pytest

from mercer.retrieval import FixedDimensionalEncoder, MultiVectorIndex, ProductQuantizer
from mercer.retrieval.partitions import add_arrow, index_bag

ENCODER = FixedDimensionalEncoder(8, 3, 8)


def documents(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((int(rng.integers(2, 9)), 8)).astype(np.float16).astype(np.float32)
        for _ in range(n)
    ]


def whole(docs, **options):
    index = MultiVectorIndex(ENCODER, **options)
    index.add(range(len(docs)), docs)
    return index


def test_arrow_batches_are_added_with_their_columns():
    import pyarrow as pa

    docs = documents()
    vectors = pa.array([d.tolist() for d in docs], pa.list_(pa.list_(pa.float32(), 8)))
    table = pa.table({"id": range(60), "tokens": vectors, "even": [i % 2 == 0 for i in range(60)]})
    index = MultiVectorIndex(ENCODER)
    assert add_arrow(index, table.to_batches(max_chunksize=17)) == 60
    for i in range(60):
        np.testing.assert_array_equal(index.tokens(i), docs[i].astype(np.float16))
    assert index.search(docs[3], k=1, filter={"even": False}).ids == [3]


@pytest.mark.parametrize("stage", ["scan", "pq", "hnsw"])
def test_partitions_of_a_bag_merge_into_the_index_of_all(stage, tmp_path):
    from dask import bag

    docs = documents()
    options = {"stage": stage}
    if stage == "pq":
        options["quantizer"] = ProductQuantizer(ENCODER.n_features, 8).fit(ENCODER.encode_documents(docs))
    rows = bag.from_sequence([(i, d, {"i": i}) for i, d in enumerate(docs)], npartitions=4)
    made = index_bag(rows, MultiVectorIndex(ENCODER, **options), tmp_path / "i", batch=7)
    again, expected = MultiVectorIndex.open(tmp_path / "i", verify=True), whole(docs, **options)
    assert len(made) == len(again) == 60 and not (tmp_path / "i" / "partitions").exists()
    for q in documents(8, 1):
        a, b = again.search(q, k=3, candidates=40), expected.search(q, k=3, candidates=40)
        assert a.ids == b.ids and again.metadata(a.ids[0]) == {"i": a.ids[0]}
    if stage == "pq":
        with pytest.raises(ValueError, match="template must have a fitted quantizer"):
            index_bag(rows, MultiVectorIndex(ENCODER, stage="pq"), tmp_path / "j")


def test_a_lance_table_finds_what_the_index_finds(tmp_path):
    from mercer.retrieval.lance import LanceTable

    docs = documents()
    table = LanceTable(str(tmp_path), "docs", ENCODER)
    table.add(range(30), docs[:30], None, {"even": [i % 2 == 0 for i in range(30)]})
    table.add(range(30, 60), docs[30:], None, {"even": [i % 2 == 0 for i in range(30, 60)]})
    again = LanceTable(str(tmp_path), "docs", ENCODER)
    expected = whole(docs)
    for q in documents(6, 1):
        np.testing.assert_array_equal(again.search(q, k=5, candidates=60).ids, expected.search(q, k=5).ids)
        assert all(i % 2 == 0 for i in again.search(q, k=5, where="even").ids)
    again.delete("id IN (3, 4)")
    assert len(again) == 58
    with pytest.raises(ValueError, match="encoder must be the one"):
        LanceTable(str(tmp_path), "docs", FixedDimensionalEncoder(8, 3, 8, seed=2))
