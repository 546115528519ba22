"""The catalogue against what is in the repository and, where they are at hand, against the papers."""

import csv
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from mercer import catalog

PAPERS = Path(__file__).parents[1] / ".." / "shared" / "papers" / "papers.tsv"
LANDED = [system for system in catalog.systems() if system.status == "landed"]


@pytest.mark.skipif(not PAPERS.exists(), reason="the list of papers is not beside the repository")
def test_catalogue_is_the_list_of_papers():
    with PAPERS.open(encoding="utf-8") as lines:
        papers = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    assert [(f"{s.number:02}", s.slug, s.title) for s in catalog.systems()] == [tuple(p) for p in papers]


@pytest.mark.parametrize("system", LANDED, ids=lambda system: system.slug)
def test_what_has_landed_is_there(system):
    for module in system.modules:
        assert find_spec(module), f"{module} of {system.slug} does not exist"
    if find_spec("torch"):
        module = importlib.import_module(system.reproduce)
        assert callable(module.run) and callable(module.plot)


@pytest.mark.parametrize("system", catalog.systems(), ids=lambda system: system.slug)
def test_a_reproduction_exists_only_for_what_has_landed(system):
    assert bool(find_spec(system.reproduce)) == (system.status == "landed")
