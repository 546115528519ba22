"""`mercer release` and `mercer query`: a table of private rows to a release, a release to answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

__all__ = ["query", "release"]

METRICS = ("l1", "l2", "sqeuclidean", "lp")


def release(
    data: Annotated[Path, typer.Argument(help="Private rows: .parquet, .csv, .arrow, .feather or .npy.")],
    epsilon: Annotated[float, typer.Option(help="What the release spends, > 0.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The release to write.")],
    kernel: Annotated[str | None, typer.Option(help="Sums of this kernel: gaussian, laplace, ...")] = None,
    metric: Annotated[str | None, typer.Option(help=f"Or of this distance: {', '.join(METRICS)}.")] = None,
    bandwidth: Annotated[float, typer.Option(help="Of the kernel.")] = 1.0,
    bounds: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="From public knowledge; ';' between columns: '0,1;-5,5'."),
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Of a table, comma-separated; all by default.")] = None,
    delta: Annotated[float | None, typer.Option(help="Gaussian noise, (epsilon, delta)-DP.")] = None,
    p: Annotated[float | None, typer.Option(help="Power for --metric lp.")] = None,
    neighbor: Annotated[str, typer.Option(help="add_remove or replace.")] = "add_remove",
    features: Annotated[
        int | None, typer.Option(help="Of a kernel; chosen by the noisy count by default.")
    ] = None,
    levels: Annotated[int | None, typer.Option(help="Depth of the trees of a distance.")] = None,
    clip: Annotated[
        bool, typer.Option("--clip", help="Move values outside the bounds instead of refusing.")
    ] = False,
    user: Annotated[str | None, typer.Option(help="Column of user ids: the guarantee is for a user.")] = None,
    max_rows_per_user: Annotated[int | None, typer.Option(help="With --user: rows taken of each.")] = None,
) -> None:
    """Release sums of distances or kernels to private rows, once, under differential privacy."""
    from mercer.private import PrivateDistanceSum, PrivateKernelSum

    common: dict[str, Any] = {
        "epsilon": epsilon, "delta": delta, "mechanism": "laplace" if delta is None else "gaussian",
        "neighbor": neighbor, "outside": "clip" if clip else "raise", "max_rows_per_user": max_rows_per_user,
    }  # fmt: skip
    try:
        if (kernel is None) == (metric is None):
            raise ValueError("give either --kernel or --metric")
        if (user is None) != (max_rows_per_user is None):
            raise ValueError("give --user and --max-rows-per-user together")
        common["bounds"] = _bounds(bounds)
        private: PrivateDistanceSum | PrivateKernelSum
        if kernel is not None:
            private = PrivateKernelSum(kernel, bandwidth, n_features=features, **common)
        else:
            private = PrivateDistanceSum(str(metric), p=p, levels=levels, **common)
        rows, users = _read(data, columns.split(",") if columns else None, user)
        private.fit(rows, users=users)
        private.save(out)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(private.release_.statement_json())
    print(f"wrote {out} ({out.stat().st_size:,} bytes)", file=sys.stderr)


def query(
    released: Annotated[Path, typer.Argument(help="What `mercer release` wrote.")],
    points: Annotated[
        Path | None, typer.Argument(help="Rows: .npy, .parquet, .csv, ... None: the statement.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write a .npy of answers.")
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Means over the private rows instead of sums.")
    ] = False,
) -> None:
    """Answer similarity queries from a release: sums and the deviation of their noise. Costs no privacy."""
    import numpy as np

    from mercer._atomic import replacing
    from mercer.private import load

    try:
        release = load(released)
        if points is None:
            print(release.statement_json())
            return
        rows, _ = _read(points, None, None)
        rows = np.asarray(rows)
        answers, errors = release.query(rows), release.std_error(rows)
        if mean:
            answers, errors = answers / max(release.count, 1.0), errors / max(release.count, 1.0)
        if out is not None:
            with replacing(out) as beside, beside.open("wb") as file:
                np.save(file, answers, allow_pickle=False)
            print(f"wrote {out}", file=sys.stderr)
            return
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print("answer,std_error")
    for answer, deviation in zip(answers, errors, strict=True):
        print(",".join(f"{value:.10g}" for value in [*np.atleast_1d(answer), *np.atleast_1d(deviation)]))


def _bounds(text: str | None) -> Any:
    if text is None:
        return None
    try:
        pairs = [tuple(map(float, pair.split(","))) for pair in text.split(";")]
        low, high = zip(*pairs, strict=True)
    except ValueError:
        raise ValueError(f"bounds must be LOW,HIGH or LOW,HIGH;LOW,HIGH;..., got {text!r}") from None
    return (low[0], high[0]) if len(pairs) == 1 else (list(low), list(high))


def _read(path: Path, columns: list[str] | None, user: str | None) -> tuple[Any, np.ndarray | None]:
    """(rows, user ids): a memory map of a .npy, an Arrow table of anything else."""
    import numpy as np

    if path.suffix == ".npy":
        if columns or user:
            raise ValueError("a .npy has no columns to name; use a table for --columns and --user")
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        return (np.asarray(rows)[:, None] if rows.ndim == 1 else rows), None
    try:
        import pyarrow as pa
        from pyarrow import csv, feather, parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"reading {path.suffix} needs pyarrow: pip install 'mercer-kernels[tables]'"
        ) from None
    readers = {".parquet": parquet.read_table, ".csv": csv.read_csv, ".feather": feather.read_table}
    readers[".arrow"] = readers[".ipc"] = feather.read_table
    if path.suffix not in readers:
        raise ValueError(f"data must be .npy, {', '.join(sorted(readers))}, got {str(path)!r}")
    try:
        table = readers[path.suffix](path)
        users = None if user is None else table.column(user).to_numpy()
        table = table.select(columns) if columns else table.drop_columns([user]) if user else table
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path}: {error}") from None
    from mercer.private._sources import arrow_rows

    return [arrow_rows(batch) for batch in table.to_batches()] or np.empty((0, table.num_columns)), users
