"""`mercer index` and `mercer search`: a corpus of texts to an index of token vectors, a question to documents."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["index", "search"]

#: How the embedded encoder is known in an index: another one's vectors mean nothing to it.
MODEL = "all-MiniLM-L6-v2, 256 tokens, unit length"
BATCH = 1000


def index(
    corpus: Annotated[Path, typer.Argument(help="A .jsonl (.gz): one object a line with 'text' and an id.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="The index; added to where it exists.")
    ],
    stage: Annotated[str, typer.Option(help="scan, pq, hnsw or chamfer: where candidates come from.")] = "pq",
    repetitions: Annotated[int, typer.Option(help="Of the encoding.")] = 20,
    k_sim: Annotated[int, typer.Option("--k-sim", help="Hyperplanes a repetition.")] = 5,
    d_proj: Annotated[int, typer.Option("--d-proj", help="Coordinates of a block.")] = 16,
    clusters: Annotated[int | None, typer.Option(help="Store so many centroids a document.")] = None,
) -> None:
    """Index texts by their meaning: one vector a token, found again by `mercer search`.

    Lines are {"_id" or "id": ..., "text": ..., "title": ..., and any metadata}. A run that is stopped keeps what it
    has committed; started again, it goes on with what is not there yet.
    """
    try:
        from mercer.retrieval import FixedDimensionalEncoder, MultiVectorIndex
        from mercer.retrieval._segments import MANIFEST

        encode = _encoder()
        if (out / MANIFEST).exists():
            made = MultiVectorIndex.open(out)
            _require_model(made)
        else:
            # Texts of any length: filling the empty blocks of short ones favours them.
            encoder = FixedDimensionalEncoder(384, k_sim, repetitions, d_proj, fill_empty=False)
            reducer = None if clusters is None else {"n_clusters": clusters}
            made = MultiVectorIndex(encoder, stage=stage, reducer=reducer)
            made.model = MODEL
        start, seen = time.perf_counter(), 0
        lines = _lines(corpus)
        while batch := list(islice(lines, BATCH)):
            seen += len(batch)
            new = [row for row in batch if row[0] not in made]
            if new:
                tokens, offsets = encode([text for _, text, _ in new])
                made.add([id for id, _, _ in new], tokens, offsets, [metadata for _, _, metadata in new])
                if made.path is None:
                    made.save(out)
            rate = seen / (time.perf_counter() - start)
            print(f"{seen:,} documents, {rate:.0f} a second", file=sys.stderr, flush=True)
        if not seen:
            raise ValueError(f"{corpus} holds no documents")
        if made.path is None:
            made.save(out)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("stopped: what was committed is there", file=sys.stderr)
        raise typer.Exit(130) from None
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {len(made):,} documents, {size:,} bytes")


def search(
    where: Annotated[Path, typer.Argument(metavar="DIR", help="What `mercer index` wrote.")],
    query: Annotated[str, typer.Argument(help="A question, in words.")],
    k: Annotated[int, typer.Option("-k", help="Documents.")] = 10,
    candidates: Annotated[int | None, typer.Option(help="Documents that are scored exactly.")] = None,
    filter: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata that must be; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the token matches.")] = False,
) -> None:
    """Search an index by meaning."""
    try:
        from mercer.retrieval import MultiVectorIndex

        made = MultiVectorIndex.open(where, read_only=True)
        _require_model(made)
        if not query.strip():
            raise ValueError("query must hold a word")
        wanted = dict(_pair(text) for text in filter or ())
        tokens, _ = _encoder()([query])
        start = time.perf_counter()
        hits = made.search(tokens, k=k, candidates=candidates, filter=wanted or None)
        seconds = time.perf_counter() - start
        rows = [
            {"id": id, "score": float(score) / len(tokens), **_shown(made.metadata(id))}
            for id, score in zip(hits.ids, hits.scores, strict=True)
        ]
        if as_json:
            for row in rows:
                row["matches"] = [m._asdict() for m in made.explain(tokens, row["id"])]
            print(
                json.dumps({"query": query, "seconds": seconds, "hits": rows}, ensure_ascii=False, indent=1)
            )
            return
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for row in rows:
        print(f"{row['score']:.3f}  {row['id']}  {row.get('title') or row.get('text', '')[:90]}")
    print(f"{len(rows)} of {len(made):,} documents in {1000 * seconds:.1f} ms", file=sys.stderr)


def _encoder() -> Any:
    try:
        from mercer.text import MiniLM
    except ImportError as error:
        raise ImportError(
            f"the embedded encoder needs torch: pip install 'mercer-kernels[text]' ({error})"
        ) from None
    import numpy as np

    model = MiniLM.from_package()

    def encode(texts: list[str]) -> tuple[Any, Any]:
        found = model.encode(texts, max_tokens=256)
        assert found.tokens is not None
        return found.tokens / np.linalg.norm(found.tokens, axis=1, keepdims=True), found.offsets

    return encode


def _require_model(made: Any) -> None:
    if made.model != MODEL:
        raise ValueError(
            f"the index was made with {made.model or 'vectors of an unknown model'}, not with {MODEL}"
        )


def _lines(path: Path) -> Iterator[tuple[Any, str, Any]]:
    import gzip

    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                id = row.pop("_id", None) if "_id" in row else row.pop("id")
                text = " ".join(filter(None, [row.get("title"), row["text"]]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not an object with 'text' and 'id' ({error})"
                ) from None
            if not text.strip():
                raise ValueError(f"{path}, line {number}: the text is empty")
            yield id, text, row


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"filter must be KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _shown(metadata: Any) -> dict[str, Any]:
    return dict(metadata) if isinstance(metadata, dict) else {}
