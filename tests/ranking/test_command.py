"""`mercer rank`, as a user runs it, and as a pipeline of the public tool does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")

REFERENCE = Path(__file__).parents[1] / "reference" / "68-outrank" / "cli_pairwise"


def rank(*arguments, cwd=None):
    command = [sys.executable, "-c", "from mercer.cli import main; main()", "rank", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The CSV of the reference case, and the case."""
    case = json.loads(REFERENCE.with_suffix(".json").read_text())
    with np.load(REFERENCE.with_suffix(".npz")) as arrays:
        rows = arrays["data"].tolist()
    folder = tmp_path_factory.mktemp("golden")
    (folder / "data.csv").write_text(
        "\n".join([",".join(case["header"]), *(",".join(map(str, r)) for r in rows)]) + "\n"
    )
    return folder, case


def scores(text):
    lines = [line.split("\t") for line in text.splitlines()[1:]]
    return {tuple(line[:-1]): float(line[-1]) for line in lines}


def test_the_public_tools_arguments_give_its_files(golden, tmp_path):
    folder, case = golden
    arguments = [{"<data>": folder, "<out>": tmp_path}.get(a, a) for a in case["arguments"]]
    ran = rank(*arguments, "--compat")
    assert ran.returncode == 0, ran.stderr
    for name, true in case["files"].items():
        got = (tmp_path / name).read_text()
        assert got.splitlines()[0] == true.splitlines()[0]
        assert set(scores(got)) == set(scores(true))
        worst = max((abs(scores(got)[key] - value) for key, value in scores(true).items()), default=0.0)
        assert worst <= (4e-5 if "singles" in name else 2e-6), name  # the former are scaled to [0, 1]


def test_json_is_one_document_and_the_table_names_the_best(golden, tmp_path):
    folder, _ = golden
    ran = rank(folder / "data.csv", "--label", "label", "--json", "--noise")
    content = json.loads(ran.stdout)
    assert content["rows"] == 9000 and content["scores"][0]["feature"] == "CONTROL-target"
    shown = rank(folder / "data.csv", "--label", "label", "--report", tmp_path / "r.html")
    assert shown.stdout.splitlines()[1].startswith("b ")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("arguments, code, message", [
    (["no.csv", "--label", "y"], 1, "does not exist"),
    (["data.csv", "--label", "labell"], 1, "did you mean 'label'"),
    (["data.csv", "--label", "label", "--heuristic", "MI-numbas"], 1, "score must be one of"),
    (["data.csv", "--label", "label", "--target_ranking_only", "no"], 2, "must be True or False"),
    ([], 2, "a table is needed"),
])  # fmt: skip
def test_mistakes_are_one_line(golden, arguments, code, message):
    ran = rank(*arguments, cwd=golden[0])
    assert ran.returncode == code
    assert message in ran.stderr and "Traceback" not in ran.stderr
