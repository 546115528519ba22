"""The runner of reference cases, on cases and adapters made for the purpose."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import adapters
import golden
import run

SHARED = Path(__file__).parents[2] / ".." / "shared" / "golden" / "golden.py"


@adapters.table("00-made-up", "squares")
def squares(case, arrays):
    yield adapters.worst("y", arrays["x"] ** 2, arrays["y"], 1e-12, "1e-12")


@adapters.model("00-made-up", "linear_*")
def linear(case, state, inputs):
    weight, bias = state["weight"], state["bias"]
    return {"out": inputs["x"] @ weight.T.astype(np.float64) + bias}, weight.size + bias.size


@pytest.fixture
def write_table(tmp_path):
    def write(y, entry="squares", paper="00-made-up", name="case"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"paper": paper, "entry": entry, "arrays": {}}))
        np.savez(tmp_path / f"{name}.npz", x=np.arange(4.0), y=np.asarray(y, dtype=float))
        return str(tmp_path)

    return write


@pytest.fixture
def write_model(tmp_path):
    def write(change=0.0, params=8, shift_mean=0.0):
        case = {
            "paper": "00-made-up",
            "entry": "linear_small",
            "state": [["weight", [2, 3]], ["bias", [2]]],
            "seed": 3,
            "params": params,
            "inputs": {"x": {"shape": [5, 3], "seed": 1}},
            "outputs": {"out": [5, 2]},
            "tolerance": 1e-4,
        }
        out = linear(case, golden.state(case), {"x": golden.make_input([5, 3], 1)})[0]["out"] + change
        (tmp_path / "model.json").write_text(json.dumps(case))
        moments = np.array([out.mean() + shift_mean, out.std()])
        np.savez(tmp_path / "model.npz", **{"out": out.ravel(), "out.moments": moments})
        return str(tmp_path / "model.npz")

    return write


def test_right_values_pass(write_table, capsys):
    assert run.main([write_table([0, 1, 4, 9])]) == 0
    assert "ok" in capsys.readouterr().out


@pytest.mark.parametrize("y", [[0, 1, 4, 9 + 1e-9], [0, 1, 4, np.nan], [0, 1, 4, np.inf], [0, 1, 4]])
def test_a_wrong_value_fails(write_table, y, capsys):
    assert run.main([write_table(y)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_one_failure_among_many_fails_and_the_others_still_run(write_table, capsys):
    write_table([0, 1, 4, 9], name="a")
    write_table([0, 1, 4, 8], name="b")
    assert run.main([write_table([0, 1, 4, 9], name="c")]) == 1
    assert "2 of 3 cases pass" in capsys.readouterr().out


@pytest.mark.parametrize(("paper", "entry"), [("00-made-up", "cubes"), ("99-nobody", "squares")])
def test_a_missing_adapter_fails(write_table, paper, entry, capsys):
    assert run.main([write_table([0, 1, 4, 9], entry, paper)]) == 1
    assert f"no adapter for paper {paper!r}, entry {entry!r}" in capsys.readouterr().out


def test_missing_and_broken_files_and_empty_folders_fail(tmp_path, capsys):
    assert run.main([str(tmp_path)]) == 1
    assert run.main([str(tmp_path / "absent")]) == 1
    (tmp_path / "broken.json").write_text("{")
    assert run.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("FAILED") == 2


def test_a_model_case_passes(write_model):
    assert run.main([write_model()]) == 0


@pytest.mark.parametrize("wrong", [{"change": 1e-3}, {"params": 9}, {"shift_mean": 1e-2}])
def test_a_model_case_with_other_values_moments_or_size_fails(write_model, wrong):
    assert run.main([write_model(**wrong)]) == 1


def test_sample_keeps_both_ends():
    kept = golden.sample(np.arange(1e5).reshape(10, -1))
    assert (kept.size, kept[0], kept[-1]) == (golden.SAMPLES, 0, 99999)


# First value of a few draws, as the code that wrote the reference values gives them.
RECORDED = [
    ("conv.weight", (8, 3, 3, 3), 0, 0.31820160150527954),
    ("norm.weight", (6,), 0, 0.8944556713104248),
    ("bn.running_var", (6,), 2, 0.8308776021003723),
    ("fc.bias", (4,), 0, 0.0586315281689167),
    ("head.weight", (5, 1), 1, 0.9220193028450012),
]


@pytest.mark.parametrize(("name", "shape", "seed", "first"), RECORDED)
def test_weights_are_those_of_the_reference(name, shape, seed, first):
    weights = golden.fill(name, shape, seed)
    assert (weights.dtype, weights.shape, float(weights.flat[0])) == (np.float32, shape, first)


@pytest.mark.skipif(not SHARED.exists(), reason="the reference's own code is not beside the repository")
def test_every_draw_is_bit_identical_to_the_references_own_code():
    spec = importlib.util.spec_from_file_location("their_golden", SHARED)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    names = (
        "conv.weight",
        "norm.weight",
        "bn.running_var",
        "bn.running_mean",
        "fc.bias",
        "gate",
        "running_bias",
    )
    shapes = ((), (1,), (5,), (4, 1), (3, 2), (2, 3, 3, 3), (0, 4), (4, 0))
    for name in names:
        for shape in shapes:
            for seed in (0, 9):
                assert golden.fill(name, shape, seed).tobytes() == theirs.fill(name, shape, seed).tobytes()
    assert golden.make_input((3, 4), 5).tobytes() == theirs.make_input((3, 4), 5).tobytes()
    for size in (1, 7, 2047, 2048, 2049, 123457):
        assert np.array_equal(golden.sample(np.arange(size)), theirs.sample(np.arange(size)))
