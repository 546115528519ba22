"""Every reference case that travels with the repository passes."""

from pathlib import Path

import pytest

import run

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", list(run.cases([HERE])), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_reference_values(path):
    ok, line = run.check(path)
    assert ok, line
