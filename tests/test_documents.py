"""The Python blocks of the README and of the site run, in the order in which a reader meets them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if BLOCK.search(page.read_text())
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        first_line = text.count("\n", 0, block.start(1))
        # Blank lines before it, so that a traceback points into the page.
        exec(compile("\n" * first_line + block.group(1), page, "exec"), namespace)


def test_the_readme_has_examples_to_run():
    assert ROOT / "README.md" in PAGES


def test_contributing_names_places_that_exist():
    """A path without a placeholder is there: the page that says where things go must not rot."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = {path for path in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if "<" not in path}
    missing = sorted(path for path in paths if not (ROOT / path).exists())
    assert not missing
