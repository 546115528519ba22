"""The ranking of `outrank` 0.97.5, end to end on a CSV and its kernel on one column; plain mutual information against
`fast-select` 0.3.0 (numba) and scikit-learn; reading alone against polars. Each peer in an environment of its own.

End to end, a run is the command as a user starts it: wall time and the CPU time of it and its workers, once each
(the public tool polls in steps of four seconds). Times are per cell of the table.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness import ROOT, Row, Worker, compare, environment
from mercer import ranking
from mercer.ranking._sources import Reading, open_source

TITLE = "Feature ranking"
OUTRANK = ["outrank==0.97.5", "xxhash<4", "setuptools"]


def rows(quick: bool) -> Iterator[Row]:
    n = 20_000 if quick else 200_000
    rounds = 3 if quick else 7
    with tempfile.TemporaryDirectory() as folder:
        data = write_table(Path(folder) / "data.csv", n)
        yield from end_to_end(data, n)
        yield from reading(data, n, rounds)
    yield from kernel(n, rounds)
    yield from plain(n, rounds)
    yield from pairwise(quick, rounds)


def write_table(path: Path, n: int) -> Path:
    """A label and 59 columns of 2 to 20,000 values, every fourth of which tells of it."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal(n)
    columns = [(latent + rng.standard_normal(n) > 0).astype(int)]
    for j, k in enumerate(np.geomspace(2, 20_000, 59).round().astype(int)):
        near = ((latent + 0.5 * rng.standard_normal(n)) * k / 6 + k / 2).astype(int)
        columns.append(np.clip(near, 0, k - 1) if j % 4 == 0 else rng.integers(0, k, n))
    header = ",".join(["label", *(f"f{j}" for j in range(59))])
    np.savetxt(path, np.column_stack(columns), fmt="%d", delimiter=",", header=header, comments="")
    return path


def end_to_end(data: Path, n: int) -> Iterator[Row]:
    outrank = environment("outrank", OUTRANK)
    arguments = [
        "--data_path", str(data.parent), "--data_source", "csv-raw", "--heuristic", "MI-numba-randomized",
        "--target_ranking_only", "True", "--num_threads", "2", "--subsampling", "1", "--disable_tqdm", "True",
    ]  # fmt: skip
    ours = [sys.executable, "-c", "from mercer.cli import main; main()", "rank", *arguments]
    theirs = [str(outrank), "-m", "outrank", "--task", "ranking", *arguments]
    spent = {}
    for who, command in (("ours", ours), ("theirs", theirs)):
        with tempfile.TemporaryDirectory() as out:
            if who == "ours":  # Nothing is timed before it has run once.
                measured(command, out)
            spent[who] = measured(command, out)
    for kind, i in (("wall", 0), ("CPU", 1)):
        a, b = spent["ours"][i], spent["theirs"][i]
        note = f"{a:.2f} s against {b:.1f} s" + (
            " (peer in an environment with xxhash < 4)" if i == 0 else ""
        )
        cells = 60 * n
        yield Row(
            f"end to end, {n:,} x 60 csv, {kind}",
            "outrank",
            1e9 * a / cells,
            1e9 * b / cells,
            b / a,
            b / a,
            b / a,
            2,
            note,
        )


def measured(command: list[str], out: str) -> tuple[float, float]:
    """Wall and CPU seconds of a command and its children."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*command, "--output_folder", out], check=True, cwd=out, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def reading(data: Path, n: int, rounds: int) -> Iterator[Row]:
    def read() -> int:
        source = open_source(data, 16384, Reading(threads=2))
        return sum(batch.rows for batch, _ in source.batches(16384))

    with Worker("polars", "peer_polars.py", ["polars"], path=np.array(str(data))) as peer:
        yield compare(
            f"reading and encoding, {n:,} x 60 csv", "polars", ours=read, theirs=peer, elements=60 * n, threads=2,
            rounds=rounds, at_least=0.1, note="ours codes every value; polars parses integers",
        )  # fmt: skip


def kernel(n: int, rounds: int) -> Iterator[Row]:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, n)
    for k in (100, 10_000):
        x = rng.integers(0, k, n)
        with Worker("outrank", "peer_outrank_kernel.py", OUTRANK, x=y, y=x) as peer:
            yield compare(
                f"corrected information of a column of {k:,} values, {n:,} rows", "outrank",
                ours=lambda x=x: ranking.corrected_mutual_information(x, y, condition_on="feature", threads=1),
                theirs=peer, elements=n, threads=1, rounds=3, at_least=0.001,
            )  # fmt: skip


def plain(n: int, rounds: int) -> Iterator[Row]:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, n)
    for k in (2, 20, 150, 1_147, 20_000):
        x = rng.integers(0, k, n)
        with contextlib.ExitStack() as stack:
            peer = stack.enter_context(
                Worker("fast-select", "peer_fast_select.py", ["fast-select==0.3.0"], x=x[None], y=y)
            )
            row = compare(
                f"information of a column of {k:,} values, {n:,} rows", "fast-select",
                ours=lambda x=x: ranking.mutual_information(x, y, threads=1), theirs=peer, elements=n, threads=1,
                rounds=rounds, at_least=0.05,
            )  # fmt: skip
        yield Row(*[*_values(row)[:-1], f"{row.ours_ns * n / 1e6:.2f} ms a column"])


def pairwise(quick: bool, rounds: int) -> Iterator[Row]:
    rng = np.random.default_rng(3)
    n, m = 50_000, 50 if quick else 500
    codes = rng.integers(0, 100, (60, n))
    pairs = np.sort(rng.choice(60, (m, 2)), axis=1)
    columns = list(codes)
    with Worker(
        "scikit-learn", "peer_mutual_info_score.py", ["scikit-learn"], codes=codes, pairs=pairs
    ) as peer:
        yield compare(
            f"information of {m} pairs of columns, {n:,} rows, 100 values", "scikit-learn",
            ours=lambda: ranking.pairwise_mi(columns, pairs=pairs, threads=2), theirs=peer, elements=m * n, threads=2,
            rounds=3, at_least=0.05,
        )  # fmt: skip


def _values(row: Row) -> tuple:
    return tuple(getattr(row, name) for name in row.__slots__)
