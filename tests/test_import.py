"""`import mercer` costs a numpy user nothing."""

import statistics
import subprocess
import sys

import pytest

import mercer

HEAVY = {"torch", "sklearn", "scipy.special", "matplotlib", "typer", "rich", "cupy"}


def python(code, *flags):
    ran = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout, ran.stderr


def test_import_leaves_heavy_packages_alone():
    printed, _ = python("import sys, mercer; print(*sys.modules)")
    assert not HEAVY & set(printed.split())


@pytest.mark.parametrize("subpackage", ["special", "catalog", "density"])
def test_a_numpy_user_never_pays_for_torch(subpackage):
    printed, _ = python(f"import sys, mercer; mercer.{subpackage}; print(*sys.modules)")
    assert not {"torch", "sklearn"} & set(printed.split())


def test_import_adds_at_most_30_ms_to_numpy():
    def milliseconds():
        _, report = python("import numpy, mercer", "-X", "importtime")
        line = next(line for line in report.splitlines() if line.endswith("| mercer"))
        return int(line.split("|")[1]) / 1000  # cumulative microseconds

    milliseconds()  # the first import after a build reads from disk and writes bytecode
    assert statistics.median(milliseconds() for _ in range(5)) <= 30


def test_everything_promised_is_reachable():
    assert set(mercer.__all__) <= set(dir(mercer))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mercer.nonsense  # noqa: B018
