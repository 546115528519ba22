"""Chapter: documentation searched by meaning, every token of a text a vector.

The baselines are one vector a text (mean pooling, what an embedding search does today) and the single-vector heuristic
of token search; the truth they and the encodings are measured against is exact Chamfer similarity.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mercer.retrieval import (
    FixedDimensionalEncoder,
    Hits,
    MultiVectorIndex,
    ProductQuantizer,
    chamfer_batch,
    single_vector_heuristic,
)
from mercer.tour import corpus as corpora
from mercer.tour import figures
from mercer.tour.chapter import Cell, Chapter, Figure, Marked, Section, Table, Text, Tour

__all__ = ["CHAPTER"]

QUESTIONS = (
    "fit a straight line when some measurements are badly wrong",
    "group points without saying how many groups there are",
    "remove the slow drift from a recorded signal",
    "find where a function crosses zero",
    "fill in the missing entries of a table",
    "shortest way between two nodes of a graph",
    "do two samples come from the same distribution",
    "solve equations whose matrix is zero except near the diagonal",
)
#: Exact neighbours of a question that are to be found, and candidates that are tried.
NEIGHBOURS = 10
COUNTS = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300, 400)


class Texts(NamedTuple):
    """Unit vectors of the words of texts, packed, and one vector for each text."""

    tokens: np.ndarray
    offsets: np.ndarray
    sentences: np.ndarray

    def of(self, i: int) -> np.ndarray:
        """The tokens of text `i`."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def only(self, which: np.ndarray) -> Texts:
        """Some of the texts."""
        lengths = np.diff(self.offsets)[which]
        rows = np.concatenate([self.of(i) for i in which.tolist()])
        return Texts(rows, np.concatenate([[0], np.cumsum(lengths)]), self.sentences[which])


def run(tour: Tour) -> list[Section]:
    """The chapter."""
    from mercer.text import MiniLM

    with tour.stage("reading docstrings"):
        corpus = corpora.collect(400 if tour.quick else corpora.MAX_DOCUMENTS)
    with tour.stage("embedding the docstrings", setup=True) as report:
        every = _texts(corpora.embed(corpus, lambda _, done, total: report(done, total)))
    with tour.stage("embedding questions"):
        model = MiniLM.from_package()
        asked = _texts(model.encode(QUESTIONS))
        # Documents that are not in the index ask for those that are like them.
        held = np.arange(0, len(corpus.documents), 40 if tour.quick else 25)
        kept = np.setdiff1d(np.arange(len(corpus.documents)), held)
        summaries = _texts(model.encode([_first_sentence(corpus.documents[i].text) for i in held.tolist()]))
    with tour.stage("indexing"):
        # Texts of any length: filling the empty blocks of short ones favours them.
        encoder = FixedDimensionalEncoder(
            every.tokens.shape[1], 5, 40, projection="identity", final_dim=10240, fill_empty=False
        )
        index = MultiVectorIndex(encoder, stage="pq", quantizer=ProductQuantizer(10240, 8, n_iter=4))
        stored = every.only(kept)
        names = [corpus.documents[i].name for i in kept.tolist()]
        index.add(names, stored.tokens, stored.offsets)
    with tour.stage("asking questions"):
        answers = [index.search(asked.of(i), k=3, candidates=100) for i in range(len(QUESTIONS))]
        texts = {d.name: d.text for d in corpus.documents}
        shown = _answers(model.tokenizer, index, asked, answers, texts)
        table = _beside_one_vector(asked, answers, stored, names)
    with tour.stage("exact search and the baselines") as report:
        compared, curves = _compare(summaries, stored, index, report)
    return [
        Section("Asked in other words", [_introduction(corpus, stored), *shown]),
        Section("Beside one vector a text", [table]),
        Section("How many candidates it takes", [_method(len(held)), compared, curves]),
    ]


def _introduction(corpus: corpora.Corpus, stored: Texts) -> Text:
    return Text(
        f"{len(stored.offsets) - 1:,} docstrings of {', '.join(corpus.versions)} as {len(stored.tokens):,} token "
        "vectors. A question's score for a document is the sum, over the question's tokens, of the best product with a "
        "token of the document, so it can say what it saw: the stronger a mark, the nearer that token is to a token of "
        "the question (point at it to see which)."
    )


def _method(count: int) -> Text:
    return Text(
        f"The opening sentences of {count} documents that were left out of the index are the queries; the truth "
        f"is the {NEIGHBOURS} documents of largest Chamfer similarity, by scoring all. A method proposes candidates, "
        "which are then scored exactly: the fewer it needs, the better."
    )


def _texts(found: Any) -> Texts:
    """Without the two tokens at the ends of each text that are no words, each of unit length."""
    inside = np.ones(len(found.tokens), bool)
    inside[found.offsets[:-1]] = inside[found.offsets[1:] - 1] = False
    tokens = found.tokens[inside].astype(np.float32)
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    return Texts(tokens, found.offsets - 2 * np.arange(len(found.offsets)), found.sentences)


def _first_sentence(text: str, words: int = 20) -> str:
    return " ".join(re.split(r"(?<=[.!?])\s", text)[0].split()[:words])


def _answers(
    tokenizer: Any, index: MultiVectorIndex, asked: Texts, answers: Sequence[Hits], texts: dict[str, str]
) -> list[Marked]:
    parts = []
    for i, (question, hits) in enumerate(zip(QUESTIONS, answers, strict=True)):
        words = tokenizer.encode(question).tokens[1:-1]
        passages = []
        for id, score in zip(*hits, strict=True):
            spans = tokenizer.encode(texts[id]).offsets[1:-1]
            best: dict[int, tuple[float, str]] = {}
            for match in index.explain(asked.of(i), id):
                mark = (match.score, f"{words[match.query_token]}: {match.score:.2f}")
                best[match.document_token] = max(best.get(match.document_token, mark), mark)
            marks = [(*spans[j], float(np.clip(s, 0, 1)) ** 2, tip) for j, (s, tip) in sorted(best.items())]
            end = spans[len(index.tokens(id)) - 1][1]
            passages.append((id, f"{score / len(words):.2f} a token", texts[id][:end], marks))
        parts.append(Marked(question, passages))
    return parts


def _beside_one_vector(asked: Texts, answers: Sequence[Hits], stored: Texts, names: Sequence[str]) -> Table:
    found = (asked.sentences @ stored.sentences.T).argmax(1)
    rows = [
        [question, names[int(one)], hits.ids[0]]
        for question, one, hits in zip(QUESTIONS, found, answers, strict=True)
    ]
    caption = "The first document each way finds."
    columns = ["question", "one vector a text", "a vector a token"]
    return Table(columns, rows, caption=caption, baseline=columns[1], ours=columns[2])


def _compare(
    queries: Texts, stored: Texts, index: MultiVectorIndex, report: Callable[[int, int], None]
) -> tuple[Table, Figure]:
    n, tokens = len(queries.offsets) - 1, stored.tokens.astype(np.float16)
    encoder, ids = index.encoder, {name: place for place, name in enumerate(index.ids)}
    most = min(COUNTS[-1], len(ids))

    def pooled(i: int, count: int) -> np.ndarray:
        products = stored.sentences @ queries.sentences[i]
        return np.argsort(-products, kind="stable")[:count]

    ways: dict[str, tuple[str, Callable[[int, int], np.ndarray], int]] = {
        "one vector a text": ("base", pooled, 4 * stored.sentences.shape[1]),
        "every token's nearest": (
            "base2",
            lambda i, count: single_vector_heuristic(queries.of(i), stored.tokens, stored.offsets, count),
            int(4 * stored.tokens.shape[1] * len(stored.tokens) / len(ids)),
        ),
        f"encodings of {encoder.n_features} in bytes": (
            "ours",
            lambda i, count: np.array([ids[id] for id in index.candidates(queries.of(i), count)]),
            index.quantizer.n_bytes if index.quantizer else 0,
        ),
    }

    def timed(work: Callable[[int], Any]) -> tuple[list[Any], float]:
        work(0)
        start = time.perf_counter()
        found = [work(i) for i in range(n)]
        return found, 1e3 * (time.perf_counter() - start) / n

    exact, milliseconds = timed(
        lambda i: chamfer_batch(queries.of(i), None, stored.tokens, stored.offsets)[0]
    )
    truth = [np.argpartition(-scores, NEIGHBOURS - 1)[:NEIGHBOURS] for scores in exact]
    rows: list[list[str | Cell]] = [
        ["all documents, exactly", str(len(ids)), "", f"{milliseconds:.1f} ms", ""]
    ]
    series, wanted = [], []
    for step, (name, (kind, propose, size)) in enumerate(ways.items()):
        report(step, len(ways))
        order = [propose(i, most) for i in range(n)]
        counts = np.array([c for c in COUNTS if c <= most])
        recall = np.array([
            np.mean([len(np.intersect1d(o[:c], t)) / NEIGHBOURS for o, t in zip(order, truth, strict=True)])
            for c in counts
        ])  # fmt: skip
        series.append((name, kind, counts.astype(float), recall))
        needed = [
            int(counts[recall >= level][0]) if (recall >= level).any() else None for level in (0.9, 0.95)
        ]
        wanted.append(needed)

        def search(
            i: int, propose: Callable[[int, int], np.ndarray] = propose, c: int = needed[1] or most
        ) -> Any:
            return chamfer_batch(queries.of(i), None, tokens, stored.offsets, which=propose(i, c))

        _, spent = timed(search)
        rows.append([
            name, *(f"> {most}" if c is None else str(c) for c in needed), f"{spent:.1f} ms", f"{size:,}",
        ])  # fmt: skip
    # The fewest candidates of each column, whosever they are.
    for column, level in ((1, 0), (2, 1)):
        least = min(found[level] or most + 1 for found in wanted)
        for row, found in zip(rows[1:], wanted, strict=True):
            if found[level] == least:
                row[column] = Cell(str(row[column]), "good")
    table = Table(
        ["candidates from", "for recall 0.90", "for recall 0.95", "time a query", "bytes a document"],
        rows,
        caption=f"Mean recall of the exact {NEIGHBOURS}; time with re-ranking, at the candidates for 0.95; bytes that "
        "the first stage reads of a document.",
    )
    svg = figures.curves(series, x_title="candidates", y_title="recall", widths=[1.8, 1.8, 3])
    return table, Figure(svg, f"Recall of the exact {NEIGHBOURS} documents among so many candidates.")


CHAPTER = Chapter(
    name="search",
    title="Search that reads every token",
    promise="Documentation found by meaning, with the words that matched. Two ordinary vectors stand for all tokens of "
    "a text in the first pass; how many candidates that takes, and how long, next to what one would use without.",
    run=run,
    requires=corpora.REQUIRES,
)
