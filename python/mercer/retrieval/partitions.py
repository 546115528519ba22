"""Corpora larger than one pass: Arrow batches, and Dask bags whose partitions are indexed apart and merged.

An index of a partition is an ordinary `MultiVectorIndex`; those of one encoder (and one fitted quantiser) merge without
encoding anything again. Nothing here schedules: Dask does, on as many machines as it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mercer.retrieval.index import MultiVectorIndex

__all__ = ["add_arrow", "index_bag"]


def add_arrow(
    index: MultiVectorIndex,
    batches: Iterable[Any],
    *,
    id: str = "id",
    tokens: str = "tokens",
    threads: int | None = None,
) -> int:
    """Add the rows of Arrow record batches (or tables), one commit a batch; how many there were.

    ``tokens`` is a column of lists of vectors, ``list<fixed_size_list<float>[d]>`` or lists of lists; the other columns
    become metadata.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa
    >>> from mercer.retrieval import FixedDimensionalEncoder
    >>> table = pa.table({"id": ["a", "b"], "tokens": [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]]], "lang": ["en", "de"]})
    >>> index = MultiVectorIndex(FixedDimensionalEncoder(2, 2, 2))
    >>> add_arrow(index, table.to_batches()), index.metadata("b")
    (2, {'lang': 'de'})
    """
    total = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        column = batch.column(tokens)
        column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
        if column.null_count:
            raise ValueError(f"{tokens} must hold no nulls, got {column.null_count}")
        flat = column.flatten()  # the vectors of this batch alone, whatever it was sliced from
        lengths = np.asarray(column.value_lengths(), np.int64)
        values = flat.flatten().to_numpy(zero_copy_only=False)
        rows = values.reshape(len(flat), -1) if len(flat) else np.empty((0, index.encoder.dim), np.float32)
        others = [name for name in batch.schema.names if name not in (id, tokens)]
        metadata = batch.select(others).to_pylist() if others else None
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        index.add(batch.column(id).to_pylist(), rows, offsets, metadata, threads=threads)
        total += batch.num_rows
    return total


def index_bag(
    bag: Any, template: MultiVectorIndex, path: str | os.PathLike[str], *, batch: int = 10_000
) -> MultiVectorIndex:
    """Index a Dask bag of (id, tokens) or (id, tokens, metadata): partitions in parallel, merged in one folder.

    Parameters
    ----------
    bag : dask.bag.Bag
    template : MultiVectorIndex
        Empty; its encoder and settings are those of all. For stage "pq" its quantizer must be fitted.
    path : folder
        Of the index; partitions are kept in ``path/partitions`` until they are merged, so that a run that is stopped
        finds those that were done. Workers must see it.
    batch : int
        Documents encoded at a time.

    Returns
    -------
    MultiVectorIndex
        On disk.
    """
    import shutil

    import dask

    if len(template):
        raise ValueError(f"template must be empty, got an index of {len(template)} documents")
    if template.stage == "pq" and (template.quantizer is None or template.quantizer.codebooks is None):
        raise ValueError("template must have a fitted quantizer: partitions must share its centres")
    folder = Path(path)
    parts = [
        dask.delayed(_partition)(part, template, str(folder / "partitions" / f"{i:06d}"), batch)
        for i, part in enumerate(bag.to_delayed())
    ]
    made = _empty(template)
    made.save(folder)
    for name in dask.compute(*parts):
        if name is not None:
            made.merge(MultiVectorIndex.open(name, read_only=True))
    shutil.rmtree(folder / "partitions", ignore_errors=True)
    return made


def _empty(template: MultiVectorIndex) -> MultiVectorIndex:
    made = MultiVectorIndex(
        template.encoder, stage=template.stage, quantizer=template.quantizer, dtype=template.dtype,
        reducer=template.reducer, connectivity=template.connectivity, expansion=template.expansion,
    )  # fmt: skip
    made.model = template.model
    return made


def _partition(rows: Iterable[Any], template: MultiVectorIndex, name: str, batch: int) -> str | None:
    if (Path(name) / "manifest.json").exists():
        return name
    made = _empty(template)
    for some in _batches(rows, batch):
        metadata = [row[2] for row in some] if len(some[0]) > 2 else None
        made.add([row[0] for row in some], [np.asarray(row[1]) for row in some], None, metadata)
    if not len(made):
        return None
    made.save(name)
    return name


def _batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    import itertools

    rows = iter(rows)
    while some := list(itertools.islice(rows, size)):
        yield some
