"""The command line, as a user runs it."""

import json
import subprocess
import sys
import time

import pytest

from mercer import catalog

pytest.importorskip("typer")

WITHOUT_TYPER = "import sys; sys.modules['typer'] = None; from mercer.cli import main; main()"


def mercer(*arguments, code="from mercer.cli import main; main()"):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_list_json_has_the_79_with_their_five_fields():
    entries = json.loads(mercer("list", "--json").stdout)
    assert [entry["number"] for entry in entries] == list(range(1, 80))
    assert all(list(entry) == ["number", "slug", "title", "modules", "status"] for entry in entries)
    assert len({entry["slug"] for entry in entries}) == 79
    assert {entry["status"] for entry in entries} <= {"landed", "planned"}


def test_list_names_every_system_once():
    lines = mercer("list").stdout.splitlines()
    assert [line.split()[1] for line in lines[:79]] == [system.slug for system in catalog.systems()]


def test_show_says_where_a_system_lives():
    shown = mercer("show", "log-bessel").stdout
    assert "mercer.special" in shown and "mercer reproduce log-bessel" in shown


@pytest.mark.parametrize("command", ["show", "reproduce"])
def test_an_unknown_slug_suggests_near_ones_and_exits_2(command):
    ran = mercer(command, "scaterbrain")
    assert ran.returncode == 2
    assert "did you mean scatterbrain?" in ran.stderr and "Traceback" not in ran.stderr


def test_a_planned_system_has_nothing_to_reproduce():
    slug = next(system.slug for system in catalog.systems() if system.status == "planned")
    ran = mercer("reproduce", slug)
    assert (ran.returncode, "planned" in ran.stderr) == (2, True)


def test_without_typer_one_line_gives_the_remedy():
    ran = mercer("list", code=WITHOUT_TYPER)
    assert ran.returncode == 1
    assert ran.stderr.strip() == (
        "mercer: the command line needs typer and rich; run: pip install 'mercer-kernels[cli]'"
    )


def test_versions_names_what_a_bug_report_needs():
    shown = mercer("versions").stdout
    for name in ("mercer", "SIMD", "threads", "python", "numpy", "scipy", "CUDA"):
        assert name in shown


def test_list_answers_at_once():
    start = time.perf_counter()
    mercer("list")
    assert time.perf_counter() - start < 5  # 0.3 s on an idle machine; a bound for a busy one
