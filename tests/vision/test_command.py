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


@pytest.fixture
def small_set(tmp_path):
    rng = np.random.default_rng(0)
    parts = {f"x_{part}": rng.integers(0, 255, (8, 32, 32, 3)).astype(np.uint8) for part in ("train", "test")}
    parts |= {f"y_{part}": np.arange(8) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "set.npz", **parts)
    return parts


def refused(message, *arguments):
    result = run(*arguments)
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_what_a_run_cannot_be_made_of_is_one_line(tmp_path, small_set, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("train", "mercer_inceptionnext_atto", "--data", "set.npz", "--recipe", "plain", "--quiet")
    refused("devices must be a number", *common, "--devices", "many")
    refused("batch_size must be", *common, "--batch-size", 0)
    refused("input_size must be", *common, "--input-size", 0)
    refused("at least 32 pixels", *common, "--input-size", 16, "--epochs", 1)
    refused("precision", *common, "--precision", "half")
    refused("no such checkpoint", *common, "--weights", "none.pth")
    refused("must be one of `mercer models`", "train", "overlock_xt", "--data", "set.npz")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "last.ckpt").write_bytes(b"no checkpoint")
    refused("must be a checkpoint that holds tensors alone", *common)
    import torch

    torch.save({"state_dict": {"model.stem.0.weight": torch.ones(2)}}, tmp_path / "run" / "last.ckpt")
    refused("must be a run of this model", *common)


def test_sets_that_are_none_are_one_line(tmp_path, small_set, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def validated(message, content):
        if isinstance(content, bytes):
            (tmp_path / "bad.npz").write_bytes(content)
        else:
            np.savez(tmp_path / "bad.npz", **content)
        refused(message, "validate", "mercer_inceptionnext_atto", "--data", "bad.npz", "--input-size", 32)

    validated("must be a .npz of plain arrays", b"")
    validated("must be a .npz of plain arrays", b"PK\x03\x04 and no more")
    validated("must be a .npz of plain arrays", small_set | {"x_test": np.array([{}], dtype=object)})
    validated("x_test must hold images", small_set | {"x_test": np.zeros((0, 32, 32, 3), np.uint8)})
    validated("y_test is missing", {name: value for name, value in small_set.items() if name != "y_test"})
    validated("8 labels from 0", small_set | {"y_test": np.arange(8) - 1})
    validated("classes must name all 2", small_set | {"classes": np.array(["one"])})
