"""What can be ranked, as batches of encoded columns: files of text, folders of the public tool, tables, iterators."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mercer import _core

__all__ = ["FORMATS", "Reading", "Source", "batch_of", "open_source"]

FORMATS = ("csv", "csv-raw", "ob-csv", "ob-vw", "ob-raw-dump", "parquet")
_BLOCK = 1 << 19


@dataclass(frozen=True)
class Reading:
    """How text is read."""

    format: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    header: bool = True
    names: Sequence[str] | None = None
    wanted: Sequence[str] | None = None
    every: int = 1
    compat: bool = False
    max_line: int = 1 << 26
    threads: int | None = None


@dataclass
class Source:
    """A table that gives its batches once."""

    names: list[str]
    numeric: set[str] = field(default_factory=set)
    path: str | None = None
    size: int | None = None
    reader: Any = None
    tables: Iterator[tuple[Any, list[str], set[str]]] | None = None

    def batches(self, rows: int) -> Iterator[tuple[Any, list[str]]]:
        """(batch, names) of `rows` rows each; an iterator's own batches as they are."""
        if self.reader is not None:
            names = self.reader.names
            while (batch := self.reader.next_batch(rows)) is not None:
                yield batch, names
            return
        assert self.tables is not None
        for batch, names, numeric in self.tables:
            self.numeric |= numeric
            if not self.names:
                self.names = names
            elif set(names) != set(self.names):
                raise ValueError(f"every batch must have the columns {self.names}, got {names}")
            if names != self.names:  # In the order of the first batch.
                batch = batch.select([names.index(name) for name in self.names])
            yield batch, self.names

    @property
    def skipped(self) -> dict[str, int]:
        """Lines that were no rows, by reason."""
        if self.reader is None:
            return {}
        ragged, encoding, nul, blank, namespaces = self.reader.skipped
        return {
            "ragged": ragged,
            "encoding": encoding,
            "nul": nul,
            "blank": blank,
            "unknown_namespaces": namespaces,
        }


def open_source(source: Any, rows: int, reading: Reading) -> Source:
    """The batches of `source`, whatever it is: see `FeatureRanker.fit`."""
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source), rows, reading)
    if _is_table(source):
        tables = (batch_of(part) for part in _slices(source, rows, reading.every))
        return Source([], tables=_focused(tables, reading.wanted))
    if hasattr(source, "read_next_batch"):  # pyarrow.RecordBatchReader
        return Source([], tables=_focused(_arrow(source, rows, reading.every), reading.wanted))
    if isinstance(source, Iterable):
        parts = (batch_of(part) for item in source for part in _slices(item, 1 << 62, reading.every))
        return Source([], tables=_focused(parts, reading.wanted))
    raise TypeError(
        "source must be a path, a DataFrame, an Arrow table, a mapping of columns or an iterator of those, "
        f"got {type(source).__name__}"
    )


# Files


def _open_path(path: Path, rows: int, reading: Reading) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"source {str(path)!r} does not exist")
    kind = reading.format or _guess(path)
    if kind == "parquet":
        parquet = _pyarrow("pyarrow.parquet").ParquetFile(path)
        tables = _arrow(parquet.iter_batches(batch_size=min(rows, 1 << 16)), rows, reading.every)
        found = Source([], tables=_focused(tables, reading.wanted), path=str(path))
        return found
    names: list[str] | None = None if reading.names is None else list(reading.names)
    numeric: set[str] = set()
    namespaces: list[str] = []
    paths, delimiter, quotes, skip_header = [path], reading.delimiter, True, reading.header
    if kind in ("csv", "csv-raw", "ob-csv"):
        if path.is_dir():
            paths = [_inside(path, "data.csv", "data.csv.gz")]
        if kind == "ob-csv":
            names, numeric = _description(paths[0].parent / "dataset_desc.json")
            skip_header = True
        name = paths[0].name.removesuffix(".gz")
        delimiter = delimiter or ("\t" if name.endswith((".tsv", ".tab")) else ",")
    elif kind == "ob-raw-dump":
        names = _inside(path, "raw_data/0_header/header.csv").read_text("utf-8").strip().split("\t")
        paths = sorted(p for p in path.glob("raw_data/1_train/*/*") if p.is_file())
        if not paths:
            raise ValueError(f"source {str(path)!r} has no files in raw_data/1_train/*/")
        delimiter, quotes, skip_header = "\t", False, False
    else:  # ob-vw
        if path.is_dir():
            paths = [_inside(path, "data.vw.gz", "data.vw")]
        names, namespaces, numeric = _namespaces(paths[0].parent / "vw_namespace_map.csv")
        delimiter, skip_header = None, False
    if delimiter is not None and (len(delimiter.encode()) != 1 or delimiter in '"\n\r'):
        raise ValueError(f"delimiter must be one ASCII character other than a quote, got {delimiter!r}")
    if names is None and not reading.header:
        raise ValueError("names must be given where there is no header, got None")
    reader = _core.RankReader(
        [str(p) for p in paths],
        delimiter=None if delimiter is None else ord(delimiter),
        quotes=quotes,
        by_line=reading.compat,
        names=names,
        skip_header=skip_header,
        namespaces=namespaces,
        wanted=None if reading.wanted is None else list(reading.wanted),
        # The public tool takes delimited files for Latin-1, in which any bytes are text.
        utf8=reading.encoding == "utf-8" and not (reading.compat and delimiter == ","),
        every=reading.every,
        max_line=reading.max_line,
        block=_BLOCK,
        threads=reading.threads,
    )
    size = sum(p.stat().st_size for p in paths)
    gzipped = any(p.suffix == ".gz" for p in paths)
    return Source(reader.all_names, numeric, str(path), None if gzipped else size, reader)


def _guess(path: Path) -> str:
    if path.is_dir():
        if (path / "vw_namespace_map.csv").exists() and any(path.glob("data.vw*")):
            return "ob-vw"
        if (path / "dataset_desc.json").exists():
            return "ob-csv"
        if (path / "raw_data").is_dir():
            return "ob-raw-dump"
        return "csv-raw"
    name = path.name.removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    return "ob-vw" if name.endswith(".vw") else "csv"


def _inside(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"source {str(folder)!r} must contain {' or '.join(names)}")


def _description(path: Path) -> tuple[list[str], set[str]]:
    """Names and float columns of an ob-csv description."""
    features = json.loads(path.read_text("utf-8")).get("data_features", [])
    names = [feature["name"] for feature in features]
    if not names:
        raise ValueError(f"{path} must list data_features")
    return names, {f["name"] for f in features if "float" in str(f.get("type", "")).lower()}


def _namespaces(path: Path) -> tuple[list[str], list[str], set[str]]:
    """Names, namespaces and float columns of a Vowpal Wabbit map: lines "id,feature[,f32]"."""
    if not path.exists():
        raise FileNotFoundError(f"Vowpal Wabbit needs its map beside it: {path} does not exist")
    names, namespaces, numeric = ["label"], [], set()
    for line in path.read_text("utf-8").splitlines():
        parts = [part.strip() for part in line.strip().split(",")]
        if len(parts) not in (2, 3) or (len(parts) == 2 and "_" in parts[0]):
            continue
        namespaces.append(parts[0])
        names.append(parts[1])
        if parts[2:] == ["f32"]:
            numeric.add(parts[1])
    if not namespaces:
        raise ValueError(f"{path} must have lines 'id,feature' or 'id,feature,type', got none")
    return names, namespaces, numeric


def _pyarrow(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "parquet and polars need pyarrow: pip install 'mercer-kernels[tables]'", name="pyarrow"
        ) from None


# Tables


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, Mapping | np.ndarray) or hasattr(value, "columns") or hasattr(value, "column_names")
    )


def _slices(table: Any, rows: int, every: int) -> Iterator[Any]:
    """Pieces of `rows` rows, of every so many-th row."""
    if isinstance(table, np.ndarray):
        if table.ndim != 2:
            raise ValueError(f"source must be (n, f), got shape {table.shape}")
        table = {f"f{j}": table[:, j] for j in range(table.shape[1])}
    n = _length(table)
    if every > 1:
        table = _take(table, slice(every - 1, None, every), np.arange(every - 1, n, every))
        n = _length(table)
    for start in range(0, n, min(rows, max(n, 1))):
        yield _take(table, slice(start, start + rows), None) if n > rows else table


def _length(table: Any) -> int:
    if isinstance(table, Mapping):
        lengths = {len(column) for column in table.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns must be of one length, got {sorted(lengths)}")
        return lengths.pop() if lengths else 0
    return table.num_rows if hasattr(table, "num_rows") else len(table)


def _take(table: Any, rows: slice, index: np.ndarray | None) -> Any:
    if isinstance(table, Mapping):
        return {name: column[rows] for name, column in table.items()}
    if hasattr(table, "column_names"):  # Arrow
        return table.take(index) if index is not None else table.slice(rows.start, rows.stop - rows.start)
    return table.iloc[rows] if hasattr(table, "iloc") else table[rows]


def _arrow(batches: Iterable[Any], rows: int, every: int) -> Iterator[tuple[Any, list[str], set[str]]]:
    """Arrow record batches joined and cut to `rows` rows."""
    pa = _pyarrow("pyarrow")
    waiting: list[Any] = []
    count = seen = 0
    for batch in batches:
        if every > 1:
            first = (-seen - 1) % every
            seen += batch.num_rows
            batch = batch.take(pa.array(np.arange(first, batch.num_rows, every)))
        waiting.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(waiting)
            yield batch_of(table.slice(0, rows))
            waiting = table.slice(rows).to_batches()
            count -= rows
    if count:
        yield batch_of(pa.Table.from_batches(waiting))


def _focused(
    tables: Iterator[tuple[Any, list[str], set[str]]], wanted: Sequence[str] | None
) -> Iterator[tuple[Any, list[str], set[str]]]:
    for batch, names, numeric in tables:
        if wanted is not None:
            keep = [i for i, name in enumerate(names) if name in set(wanted)]
            batch, names = batch.select(keep), [names[i] for i in keep]
        yield batch, names, numeric


def batch_of(table: Any) -> tuple[Any, list[str], set[str]]:
    """(batch, names, names of float columns) of a DataFrame, an Arrow table, a mapping or an array."""
    if isinstance(table, np.ndarray):
        table = next(_slices(table, 1 << 62, 1))
    if hasattr(table, "column_names"):
        named = list(zip(table.column_names, table.columns, strict=True))
    elif isinstance(table, Mapping):
        named = [(name, column) for name, column in table.items()]
    elif hasattr(table, "columns"):
        named = [(name, table[name]) for name in table.columns]
    else:
        raise TypeError(f"a batch must be a table, got {type(table).__name__}")
    names = [str(name) for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(
            f"columns must have different names, got {sorted(n for n in names if names.count(n) > 1)}"
        )
    rows = _length(table)
    if not rows:
        raise ValueError("a batch must have at least one row, got none")
    encoded, numeric = [], set()
    for (_, column), name in zip(named, names, strict=True):
        if (
            str(getattr(column, "dtype", getattr(column, "type", "")))
            .lower()
            .startswith(("float", "double", "half"))
        ):
            numeric.add(name)
        encoded.append(_encode(column))
    return _core.RankBatch.from_codes(encoded, rows), names, numeric


def _encode(column: Any) -> tuple[np.ndarray, list[bytes]]:
    """Codes of a column, and the text of each; a missing value is the empty text."""
    if hasattr(column, "to_arrow"):  # polars
        column = column.to_arrow()
    if hasattr(column, "dictionary_encode"):  # Arrow
        if hasattr(column, "combine_chunks"):
            column = column.combine_chunks()
        if not hasattr(column, "indices"):
            column = column.dictionary_encode()
        codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        values: Any = column.dictionary.to_pylist()
    elif hasattr(column, "cat") and str(column.dtype) == "category":  # pandas
        codes, values = column.cat.codes.to_numpy(), column.cat.categories.tolist()
    elif hasattr(column, "factorize"):
        codes, values = column.factorize()
    else:
        array = np.asarray(column)
        if array.ndim != 1:
            raise ValueError(f"columns must be 1-D, got shape {array.shape}")
        if array.dtype.kind in "iufbSU":
            values, codes = np.unique(array, return_inverse=True)
        else:
            known: dict[Any, int] = {}
            codes = np.array([known.setdefault(_text(v), len(known)) for v in array.tolist()], dtype=np.int64)
            values = list(known)
    codes = np.asarray(codes).astype(np.int64)
    texts = [_text(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    if (codes < 0).any():
        texts.append(b"")
        codes = np.where(codes < 0, len(texts) - 1, codes)
    return codes.astype(np.uint32), texts


def _text(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value
    if value is None or value != value:  # NaN, NaT
        return b""
    return str(value).encode()
