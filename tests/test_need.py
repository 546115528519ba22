"""`tools/need` says at once, in one line with the remedy, what a machine lacks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NEED = Path(__file__).parents[1] / "tools" / "need"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell script")


@pytest.fixture
def machine(tmp_path):
    """A machine with the given programs, each a script that prints a line."""

    def make(**says):
        bin = tmp_path / "bin"
        bin.mkdir()
        for tool in ("sh", "sort", "head", "cut"):
            (bin / tool).symlink_to(shutil.which(tool))
        (bin / "python3").symlink_to(sys.executable)
        for name, line in says.items():
            (bin / name).write_text(f"#!/bin/sh\necho '{line}'\n")
            (bin / name).chmod(0o755)
        return subprocess.run([NEED], env={"PATH": str(bin)}, capture_output=True, text=True)

    return make


COMPLETE = {"cargo": "", "rustc": "rustc 1.89.0 (0000000 2025-08-04)", "cc": "", "uv": ""}


def test_a_complete_machine_is_told_its_python(machine):
    ran = machine(**COMPLETE)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "python3\n", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rustc": "rustc 1.88.0 (0000000 2025-06-23)"}, "this is 1.88.0; run: rustup update stable"),
        ({"rustc": "rustc 1.9.0 (0000000 2016-05-26)"}, "this is 1.9.0"),
        ({"cargo": None}, "Rust >= 1.89 is missing; install it from"),
        ({"cc": None}, "a C compiler is missing; install one: apt-get install gcc"),
    ],
)
def test_what_is_missing_is_said_in_one_line(machine, change, said):
    ran = machine(**{name: line for name, line in (COMPLETE | change).items() if line is not None})
    assert ran.returncode == 1
    assert said in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("version", "enough"), [("1.100.0-nightly", True), ("2.0.0", True), ("1.89.0-beta.3", True)]
)
def test_versions_are_compared_as_numbers(machine, version, enough):
    assert (machine(**COMPLETE | {"rustc": f"rustc {version} (x)"}).returncode == 0) == enough
