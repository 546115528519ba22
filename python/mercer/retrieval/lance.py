"""LanceDB as the store: one table on disk or object storage, with encodings, tokens, metadata and SQL filters.

The table has an ``id``, the encoding ``fde`` (a fixed-size list, which LanceDB searches and indexes as any vector), the
``tokens`` as a list of vectors, and whatever columns of metadata come with the documents. `MultiVectorIndex` is faster
on one machine; this is for tables that live elsewhere, or that other tools read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mercer import _checks
from mercer.retrieval._tokens import packed, tokens_array
from mercer.retrieval.fde import FixedDimensionalEncoder
from mercer.retrieval.index import Hits
from mercer.retrieval.similarity import _largest, chamfer_batch

__all__ = ["LanceTable"]

FINGERPRINT = b"mercer.fingerprint"


class LanceTable:
    """Two-stage search in a table of LanceDB's.

    Parameters
    ----------
    uri : str
        A folder, or ``s3://…``, ``gs://…``: what ``lancedb.connect`` takes.
    name : str
        Of the table; made at the first `add`.
    encoder : FixedDimensionalEncoder
        Refused where it is not the one that made the table.
    options : optional
        More arguments of ``lancedb.connect``.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> docs = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    >>> table = LanceTable(tempfile.mkdtemp(), "docs", FixedDimensionalEncoder(8, 3, 10))
    >>> table.add(range(30), docs, np.arange(31) * 10, {"year": [2000 + i for i in range(30)]})
    >>> table.search(docs[40:44], k=2, candidates=20).ids[0]
    4
    >>> table.search(docs[40:44], k=2, candidates=20, where="year > 2010").ids[0] > 10
    True
    """

    def __init__(self, uri: str, name: str, encoder: FixedDimensionalEncoder, **options: Any) -> None:
        try:
            import lancedb
        except ImportError:
            raise ImportError("LanceTable needs lancedb: pip install 'mercer-kernels[lance]'") from None
        self.encoder, self.name = encoder, name
        self._connection = lancedb.connect(uri, **options)
        self.table: Any = None
        try:
            self.table = self._connection.open_table(name)
        except (FileNotFoundError, ValueError):
            return  # made at the first add
        kept = (self.table.schema.metadata or {}).get(FINGERPRINT, b"")
        encoder.require_same(kept.decode())

    def __len__(self) -> int:
        return 0 if self.table is None else int(self.table.count_rows())

    def add(
        self,
        ids: Sequence[Any] | range,
        tokens: Any,
        offsets: Any = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Add documents, with columns of metadata; ids that repeat are refused within a call only."""
        import pyarrow as pa

        rows, offsets = packed("tokens", tokens, offsets, self.encoder.dim)
        ids = list(ids)
        if len(ids) != len(offsets) - 1:
            raise ValueError(f"ids must be as many as documents, {len(offsets) - 1}, got {len(ids)}")
        if len(set(ids)) != len(ids):
            raise ValueError("ids must not repeat")
        if (np.diff(offsets) == 0).any():
            raise ValueError("offsets must leave no document empty")
        encodings = self.encoder.encode_documents(rows, offsets, threads=threads).astype(np.float32)
        stored = pa.FixedSizeListArray.from_arrays(
            pa.array(rows.astype(np.float32).ravel()), self.encoder.dim
        )
        made = pa.table({
            "id": ids,
            "fde": pa.FixedSizeListArray.from_arrays(pa.array(encodings.ravel()), self.encoder.n_features),
            "tokens": pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), stored),
            **{name: pa.array(values) for name, values in (columns or {}).items()},
        }).replace_schema_metadata({FINGERPRINT: self.encoder.fingerprint.encode()})  # fmt: skip
        if self.table is None:
            self.table = self._connection.create_table(self.name, made)
        else:
            self.table.add(made)

    def delete(self, where: str) -> None:
        """Take out the rows of an SQL condition, such as ``id IN (3, 5)``."""
        self.table.delete(where)

    def create_index(self, **options: Any) -> None:
        """LanceDB's own index over the encodings (arguments as its ``create_index``): for large tables."""
        self.table.create_index(metric="dot", vector_column_name="fde", **options)

    def search(
        self,
        query: Any,
        *,
        k: int = 10,
        candidates: int | None = None,
        where: str | None = None,
        threads: int | None = None,
    ) -> Hits:
        """The k documents of largest Chamfer similarity among the candidates that LanceDB finds by encodings.

        ``where`` is an SQL condition on the columns, applied before the search.
        """
        k = _checks.integer("k", k, 1)
        candidates = max(50 * k, 500) if candidates is None else _checks.integer("candidates", candidates, k)
        query = tokens_array("query", query, self.encoder.dim).astype(np.float32)
        encoded = self.encoder.encode_queries(query, threads=threads)[0]
        if self.table is None:
            return Hits([], np.empty(0, np.float32))
        asked = self.table.search(encoded, vector_column_name="fde", query_type="vector").distance_type("dot")
        if where is not None:
            asked = asked.where(where, prefilter=True)
        found = asked.limit(candidates).select(["id", "tokens"]).to_arrow().combine_chunks()
        if not len(found):
            return Hits([], np.empty(0, np.float32))
        column = found["tokens"].chunk(0)
        ends = np.asarray(column.offsets, np.int64)
        flat = np.asarray(column.values.flatten(), np.float32)[: int(ends[-1]) * self.encoder.dim]
        tokens = flat.reshape(-1, self.encoder.dim)[ends[0] :]
        scores = chamfer_batch(query, None, tokens, ends - ends[0], threads=threads)[0]
        best = _largest(scores[None], min(k, len(scores)))[0]
        ids = found["id"].to_pylist()
        return Hits([ids[i] for i in best.tolist()], scores[best])
