"""The commands of the backbones: the table, a run that is resumed, its validation, and bad input in one line."""

import json

import numpy as np
import pytest

pytest.importorskip("timm")
pytest.importorskip("lightning")
from typer.testing import CliRunner  # noqa: E402

from mercer import cli  # noqa: E402


def run(*arguments):
    return CliRunner().invoke(cli._app(), [str(a) for a in arguments])


def test_the_table_of_models():
    table, as_json = run("models"), run("models", "--json")
    assert table.exit_code == as_json.exit_code == 0, table.output
    rows = json.loads(as_json.output)
    assert len(rows) == 18 and all(row["model"] in table.output for row in rows)


def test_a_run_goes_on_where_it_ended_and_is_validated(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 48)
    x = (rng.integers(0, 100, (48, 32, 32, 3)) + 150 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=x[:32], y_train=y[:32], x_test=x[32:], y_test=y[32:])
    common = ("train", "mercer_unireplknet_a", "--data", tmp_path / "set.npz", "-o", tmp_path / "run")
    common = (*common, "--recipe", "plain", "--batch-size", 16, "--quiet")
    assert run(*common, "--epochs", 1).exit_code == 0
    done = run(*common, "--epochs", 2)
    assert done.exit_code == 0, done.output
    curve = (tmp_path / "run" / "curve.csv").read_text().split()
    assert len(curve) == 3 and curve[2].startswith("1,")
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    scored = run("validate", "mercer_unireplknet_a", "--data", tmp_path / "set.npz", "--input-size", 32, "--weights",
                 tmp_path / "run" / "model.safetensors", "--reparameterize", "--json")  # fmt: skip
    assert scored.exit_code == 0 and json.loads(scored.output)["images"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "mercer_overlock_q", "--data", "none"), "no such data"),
        (("validate", "mercer_overlock_xt", "--data", "none"), "no such data"),
        (("train", "mercer_overlock_xt", "--data", "none", "--recipe", "other"), "recipe must be one of"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output
