"""Private rows from wherever they are: arrays, memory maps, chunks, Arrow tables and batches, Dask collections."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from mercer.density._rows import Rows

__all__ = ["arrow_rows", "dask_blocks", "is_dask", "rows_of"]


def rows_of(X: Any) -> Rows:
    """`X` as rows to be read once, block by block."""
    if isinstance(X, Rows):
        return X
    arrow = _arrow_batches(X)
    if arrow is not None:
        return Rows(arrow, repeated=False)
    if isinstance(X, np.ndarray) and X.ndim == 1 and X.dtype.kind in "fiub":
        X = X[:, None]
    return Rows(X, repeated=False)


def is_dask(X: Any) -> bool:
    """Whether `X` is a Dask array or data frame."""
    return hasattr(X, "__dask_graph__")


def dask_blocks(X: Any) -> list[Any]:
    """The row blocks of a Dask array or data frame, delayed."""
    if hasattr(X, "partitions") and not hasattr(X, "numblocks"):
        X = X.to_dask_array()
    if getattr(X, "ndim", 0) == 1:
        X = X[:, None]
    if X.numblocks[1] != 1:
        X = X.rechunk({1: -1})
    return [block[0] for block in X.to_delayed()]


def _arrow_batches(X: Any) -> Iterator[np.ndarray] | None:
    """2-D chunks of an Arrow table, batch, reader or list of batches; None for anything else."""
    arrow = sys.modules.get("pyarrow")
    if arrow is None:
        return None
    if isinstance(X, arrow.RecordBatch):
        return iter([arrow_rows(X)])
    if isinstance(X, arrow.Table):
        return (arrow_rows(batch) for batch in X.to_batches())
    if isinstance(X, arrow.RecordBatchReader):
        return (arrow_rows(batch) for batch in X)
    if isinstance(X, list) and X and all(isinstance(batch, arrow.RecordBatch) for batch in X):
        return (arrow_rows(batch) for batch in X)
    return None


def arrow_rows(batch: Any) -> np.ndarray:
    """(rows, columns) of a batch of numbers: a column a column, or one column of lists of one length."""
    if batch.num_columns == 1 and hasattr(batch.column(0).type, "list_size"):
        column = batch.column(0)
        if column.null_count or column.flatten().null_count:
            raise ValueError(f"X must have no nulls, column {batch.schema.names[0]!r} has some")
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            raise ValueError(f"X must have no nulls, column {name!r} has {column.null_count}")
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype.kind not in "fiub":
            raise ValueError(f"X must hold numbers, column {name!r} has type {column.type}")
        columns.append(values)
    return np.column_stack(columns)
