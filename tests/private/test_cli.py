"""`mercer release` and `mercer query`, as a user runs them."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer")
parquet = pytest.importorskip("pyarrow.parquet")
import pyarrow as pa  # noqa: E402

from mercer.private import load  # noqa: E402

X = np.random.default_rng(0).uniform(size=(400, 2))


def mercer(*arguments):
    command = [sys.executable, "-c", "from mercer.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "data.parquet"
    users = pa.array(np.arange(400) // 2)
    parquet.write_table(pa.table({"a": X[:, 0], "b": X[:, 1], "who": users}), path)
    return path


def test_a_table_becomes_a_release_that_answers(tmp_path, table):
    out, points = tmp_path / "out.mercer", tmp_path / "points.npy"
    ran = mercer("release", table, "--kernel", "gaussian", "--epsilon", 1, "--bounds", "0,1", "--columns", "a,b",
                 "-o", out)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["epsilon"] == 1.0
    np.save(points, X[:3])
    lines = mercer("query", out, points).stdout.splitlines()
    release = load(out)
    assert lines[0] == "answer,std_error"
    np.testing.assert_allclose(
        [float(line.split(",")[0]) for line in lines[1:]], release.query(X[:3]), rtol=1e-8
    )
    assert json.loads(mercer("query", out).stdout) == release.statement
    answers = tmp_path / "answers.npy"
    assert mercer("query", out, points, "-o", answers).returncode == 0
    np.testing.assert_array_equal(np.load(answers), release.query(X[:3]))


def test_users_and_distances(tmp_path, table):
    out = tmp_path / "out.mercer"
    ran = mercer("release", table, "--metric", "l1", "--epsilon", 2, "--bounds", "0,1;0,1", "--user", "who",
                 "--max-rows-per-user", 1, "-o", out)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    release = load(out)
    assert "user" in release.statement["neighbouring"] and abs(release.count - 200) < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "gaussian", "--epsilon", "-1"], "epsilon must be > 0, got -1.0"),
        (["--kernel", "gaussian", "--metric", "l1", "--epsilon", "1"], "either --kernel or --metric"),
        (["--metric", "l1", "--epsilon", "1"], "bounds must be given"),
        (["--metric", "l1", "--epsilon", "1", "--bounds", "0;1"], "bounds must be LOW,HIGH"),
        (
            ["--metric", "l1", "--epsilon", "1", "--bounds", "0,0.5", "--columns", "a"],
            "must lie within bounds",
        ),
        (["--kernel", "gaussian", "--epsilon", "1", "--columns", "none"], "none"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(tmp_path, table, arguments, message):
    out = tmp_path / "out.mercer"
    ran = mercer("release", table, *arguments, "-o", out)
    assert ran.returncode == 1 and message in ran.stderr and "Traceback" not in ran.stderr
    assert not out.exists()


def test_a_file_that_is_no_release_is_refused(tmp_path, table):
    ran = mercer("query", table)
    assert ran.returncode == 1 and "not a mercer-private-release" in ran.stderr
