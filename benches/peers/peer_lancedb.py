"""LanceDB's own multivector search, in an environment of its own (see `harness.Worker`)."""

import tempfile

import numpy as np


def prepare(docs, queries, k):
    import lancedb
    import pyarrow as pa

    d = docs.shape[-1]
    kind = pa.list_(pa.list_(pa.float32(), d))
    rows = pa.table(
        {"id": pa.array(range(len(docs)), pa.int64()), "vectors": pa.array(docs.tolist(), type=kind)}
    )
    table = lancedb.connect(tempfile.mkdtemp()).create_table("docs", rows)
    table.create_index(metric="cosine", vector_column_name="vectors")

    def work():
        found = [
            table.search(q, vector_column_name="vectors").limit(int(k)).select(["id"]).to_arrow()
            for q in queries
        ]
        rows = [t["id"].to_pylist() for t in found]
        return np.array([row + [-1] * (int(k) - len(row)) for row in rows])

    return work
