"""The evidence framework, on a reproduction made for the purpose."""

import json
import math
import sys
import types

import numpy as np
import pytest

from mercer import catalog, reproduce
from mercer.reproduce import Evidence, Row


def held(quantity="error", **changes):
    return Row(
        quantity, "relative", **{"baseline": 1.0, "ours": 0.5, "better": "lower", "holds": True} | changes
    )


@pytest.fixture
def planned(monkeypatch):
    """Makes `log-bessel`'s reproduction one that returns the rows it is given."""

    def draw(evidence, figure):
        figure.subplots().plot(evidence.figures["curve"])

    def plant(rows, plot=draw, fails=None):
        module = types.ModuleType("mercer.reproduce.log_bessel")

        def run(*, quick, progress):
            progress("measuring", 0.5)
            if fails:
                raise fails
            return Evidence("log-bessel", rows, seed=7, figures={"curve": np.arange(3.0)})

        module.run, module.plot = run, plot
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return plant


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"must_hold": True}, 0),
        ({"must_hold": True, "holds": False, "note": "slower here"}, 1),
        ({"must_hold": True, "holds": "not-testable-here", "note": "no GPU"}, 1),
        ({"holds": False, "note": "slower here"}, 0),
        ({"holds": "not-testable-here", "note": "no GPU"}, 0),
    ],
)
def test_only_rows_that_must_hold_decide_the_exit_code(planned, changes, code, capsys):
    planned([held(), held(quantity="second", **changes)])
    assert reproduce.run_and_report("log-bessel") == code
    printed = capsys.readouterr()
    assert changes.get("note", "") in printed.out
    assert "measuring" in printed.err


def held_rows():
    return [
        held(spread=(0.4, 0.6)),
        held(ours=math.inf, baseline="fails", paper=np.float64(2.0), must_hold=True),
    ]


def test_evidence_survives_json(planned):
    planned(held_rows())
    evidence = reproduce.execute("log-bessel", quick=True)
    again = Evidence.from_json(evidence.to_json())
    assert again.rows[0] == evidence.rows[0]
    assert again.rows[1].ours == "inf"  # JSON has no infinity
    assert (again.quick, again.seed, again.passed, again.figures) == (
        True,
        7,
        True,
        {"curve": [0.0, 1.0, 2.0]},
    )
    assert again.versions["numpy"] == np.__version__


def test_files_are_written_whole(planned, tmp_path):
    pytest.importorskip("matplotlib")
    planned(held_rows())
    assert reproduce.run_and_report("log-bessel", out=tmp_path / "new") == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["log-bessel.json", "log-bessel.png"]
    assert json.loads((tmp_path / "new" / "log-bessel.json").read_text())["passed"] is True
    assert (tmp_path / "new" / "log-bessel.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_fails_leaves_the_old_figure(planned, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "log-bessel.png"
    picture.write_bytes(b"old")

    def broken(evidence, figure):
        raise RuntimeError("broken")

    planned(held_rows(), plot=broken)
    with pytest.raises(RuntimeError, match="broken"):
        reproduce.write(reproduce.execute("log-bessel"), tmp_path)
    assert picture.read_bytes() == b"old"


def test_the_plain_table_says_what_the_rich_one_says(planned, monkeypatch, capsys):
    planned(held_rows())
    evidence = reproduce.execute("log-bessel")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    reproduce.show(evidence)
    plain = capsys.readouterr().out
    assert (
        "0.4 .. 0.6" in plain
        and "fails" in plain
        and "2 of 2 claims hold here; 1 of the 1 that must." in plain
    )


@pytest.mark.parametrize("changes", [{"holds": "maybe"}, {"better": "bigger"}, {"holds": False}])
def test_a_row_that_says_too_little_is_refused(changes):
    with pytest.raises(ValueError, match="must"):
        held(**changes)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(ImportError("needs mpmath"), 1, "needs mpmath"), (KeyboardInterrupt(), 130, "stopped")],
)
def test_a_run_that_cannot_end_says_so_in_one_line(planned, raised, code, said, tmp_path, capsys):
    planned(held_rows(), fails=raised)
    assert reproduce.run_and_report("log-bessel", out=tmp_path) == code
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_unknown_and_planned_slugs_exit_2(capsys):
    assert reproduce.run_and_report("scaterbrain") == 2
    assert "did you mean scatterbrain" in capsys.readouterr().err
    planned_slug = next(s.slug for s in catalog.systems() if s.status == "planned")
    assert reproduce.run_and_report(planned_slug) == 2
    assert "planned" in capsys.readouterr().err
