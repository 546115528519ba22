"""LanceDB's own multivector search, in an environment of its own (see `harness.Worker`)."""

import numpy as np

from peer_indexes import folder_of


def prepare(docs, queries, k):
    import lancedb
    import pyarrow as pa

    folder, there = folder_of("lancedb", docs)
    database = lancedb.connect(str(folder))
    if there:
        table = database.open_table("docs")
    else:
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(docs.ravel(), pa.float32()), docs.shape[-1])
        ends = np.arange(len(docs) + 1) * docs.shape[1]
        sets = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), tokens)
        rows = pa.table({"id": pa.array(range(len(docs)), pa.int64()), "vectors": sets})
        table = database.create_table("docs", rows, mode="overwrite")
        table.create_index(metric="cosine", vector_column_name="vectors")
        (folder / "whole").touch()

    def work():
        found = [
            table.search(q, vector_column_name="vectors").limit(int(k)).select(["id"]).to_arrow()
            for q in queries
        ]
        rows = [t["id"].to_pylist() for t in found]
        return np.array([row + [-1] * (int(k) - len(row)) for row in rows])

    return work
