"""The search chapter: its marks, its vectors, and the comparison it prints."""

import html
import re
from types import SimpleNamespace

import numpy as np
import pytest

from mercer.retrieval import FixedDimensionalEncoder, MultiVectorIndex
from mercer.tour.chapter import Chapter, Marked, Section, Tour
from mercer.tour.report import Done, render
from mercer.tour.search import COUNTS, Texts, _compare, _first_sentence, _texts


def test_marks_leave_the_text_as_it_is_and_are_as_strong_as_their_weight():
    text = "roots of f(x) < 0 & more"
    marks = [(0, 5, 0.25, 'zero: "0.5"'), (9, 10, 1.0, "<x>")]
    part = Marked("find <zeros>", [("m.f", "0.50 a token", text, marks), ("m.g", "0.1", "plain", [])])
    page = render(
        [Done(Chapter("one", "One", "", lambda t: []), [Section("S", [part])], Tour())], quick=True, seconds=1
    )
    shown = re.search(r"<p><b>m\.f</b> <span>0\.50 a token</span> (.*?)</p>", page)[1]
    assert html.unescape(re.sub("<[^>]+>", "", shown)) == text
    assert re.findall(r"--strength:(\d+)%", shown) == ["25", "100"]
    assert re.findall(r"<mark[^>]*>(.*?)</mark>", shown) == ["roots", text[9]]
    assert "find &lt;zeros&gt;" in page and "&lt;x&gt;" in shown and "zero: &quot;0.5&quot;" in shown


def test_vectors_are_those_of_words_and_of_unit_length():
    rows = np.arange(1, 19, dtype=np.float16).reshape(9, 2)
    found = _texts(SimpleNamespace(tokens=rows, offsets=np.array([0, 4, 9]), sentences=np.eye(2)))
    expected = rows[[1, 2, 5, 6, 7]].astype(float)
    expected /= np.hypot(expected[:, 0], expected[:, 1])[:, None]
    np.testing.assert_allclose(found.tokens, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.offsets, [0, 2, 5])
    np.testing.assert_array_equal(found.only(np.array([1])).tokens, found.of(1))


def test_a_sentence_ends_where_it_ends():
    assert _first_sentence("Find a root. By bisection.") == "Find a root."
    assert _first_sentence("one two three four", words=3) == "one two three"


def test_each_way_is_measured_against_exact_search():
    rng = np.random.default_rng(0)
    d, n, lengths = 24, 120, rng.integers(3, 9, 130)
    x = np.repeat(rng.standard_normal((130, d)), lengths, 0) + 0.5 * rng.standard_normal((lengths.sum(), d))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    pooled = np.add.reduceat(x, offsets[:-1], axis=0)
    every = Texts(x, offsets, pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
    stored = every.only(np.arange(n))
    index = MultiVectorIndex(FixedDimensionalEncoder(d, 3, 10, 8), stage="pq")
    index.add([str(i) for i in range(n)], stored.tokens, stored.offsets)
    table, figure = _compare(every.only(np.arange(n, 130)), stored, index, lambda done, total: None)
    assert len(table.rows) == 4 and table.rows[0][1] == "120" and figure.svg.count("<polyline") == 3
    for row in table.rows[1:]:
        few, more = (int(str(getattr(cell, "text", cell))) for cell in row[1:3])
        assert few in COUNTS and more in COUNTS and few <= more <= n
    for column in (1, 2):  # the fewest are marked, and nothing else
        cells = [row[column] for row in table.rows[1:]]
        counts = [int(str(getattr(cell, "text", cell))) for cell in cells]
        assert [getattr(cell, "tone", "") == "good" for cell in cells] == [c == min(counts) for c in counts]
    size = getattr(table.rows[3][4], "text", table.rows[3][4])
    assert size == str(index.quantizer.n_bytes)


@pytest.mark.slow
def test_the_chapter_runs():
    from mercer.tour.search import CHAPTER, QUESTIONS

    sections = CHAPTER.run(Tour(quick=True))
    assert [s.title for s in sections][0] == "Asked in other words"
    assert sum(isinstance(p, Marked) for p in sections[0].parts) == len(QUESTIONS)
