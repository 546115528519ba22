"""The index against exact search, and what is left of it after bad input, damage, other writers and kills."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from mercer.retrieval import (
    CorruptIndex,
    FixedDimensionalEncoder,
    IndexLocked,
    MultiVectorIndex,
    ProductQuantizer,
    _segments,
    chamfer_batch,
)

D = 16
ENCODER = FixedDimensionalEncoder(D, 4, 16, 8)
STAGES = ["scan", "pq", "hnsw", "chamfer"]


def clouds(seed, n, most=20):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, most, n)
    centers = rng.standard_normal((n, D)) * 2
    x = np.repeat(centers, lengths, 0) + rng.standard_normal((int(lengths.sum()), D))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float16).astype(np.float32), np.concatenate([[0], np.cumsum(lengths)])


def make(stage="scan", n=300, seed=0, ids=None, metadata=None, **options):
    index = MultiVectorIndex(ENCODER, stage=stage, **options)
    x, offsets = clouds(seed, n)
    index.add(range(n) if ids is None else ids, x, offsets, metadata)
    return index, x, offsets


@pytest.mark.parametrize("stage", STAGES)
def test_search_finds_what_exact_search_finds(stage):
    index, x, offsets = make(stage)
    queries, q_offsets = clouds(1, 20)
    exact = chamfer_batch(queries, q_offsets, x, offsets)
    hits = index.search(queries, q_offsets, k=5, candidates=100)
    found = [len({*h.ids} & {*np.argsort(-e)[:5].tolist()}) for h, e in zip(hits, exact, strict=True)]
    assert np.mean(found) > 4.5
    for hit, e in zip(hits, exact, strict=True):
        np.testing.assert_allclose(hit.scores, e[hit.ids], rtol=1e-5)
        assert (np.diff(hit.scores) <= 0).all()
    whole = index.search(queries, q_offsets, k=5)  # few documents: all of them
    for hit, e in zip(whole, exact, strict=True):
        assert hit.ids == np.argsort(-e, kind="stable")[:5].tolist()


@pytest.mark.parametrize("stage", STAGES)
def test_documents_come_and_go_and_the_disk_agrees_with_memory(stage, tmp_path):
    index, x, offsets = make(
        stage, ids=[f"döc {i}" for i in range(300)], metadata=[{"i": i} for i in range(300)]
    )
    index.save(tmp_path / "idx")
    other = MultiVectorIndex.open(tmp_path / "idx", encoder=ENCODER)
    y, y_offsets = clouds(9, 3)
    for each in (other,):
        each.delete(["döc 5", "döc 7"])
        each.update(["döc 8", "new"], y[: y_offsets[2]], y_offsets[:3], [{"i": -1}, {"i": -2}])
    again = MultiVectorIndex.open(tmp_path / "idx", read_only=True, verify=True)
    assert len(again) == len(other) == 299 and "döc 5" not in again and again.metadata("new") == {"i": -2}
    np.testing.assert_array_equal(again.tokens("döc 8"), y[: y_offsets[1]].astype(np.float16))
    for q in (x[:5], y[:3]):
        a, b = again.search(q, k=4, candidates=200), other.search(q, k=4, candidates=200)
        assert a.ids == b.ids and "döc 5" not in a.ids
    assert again.search(y[:4], k=1).ids == ["döc 8"]
    other.compact()
    assert len(other) == 299 and other.search(y[:4], k=1).ids == ["döc 8"] and len(other._segments) == 1
    assert again.search(y[:4], k=1).ids == ["döc 8"]  # a reader keeps what it has opened
    again.refresh()
    assert sorted(again.ids) == sorted(other.ids) and again.metadata("döc 11") == {"i": 11}
    with pytest.raises(PermissionError, match="read_only"):
        again.delete(["new"])
    with pytest.raises(FileExistsError, match="holds an index already"):
        index.save(tmp_path / "idx")


@pytest.mark.parametrize("stage", STAGES)
def test_filters_hold_and_leave_enough(stage):
    colour = [{"colour": ["red", "green", "blue"][i % 3], "i": i} for i in range(300)]
    index, x, offsets = make(stage, metadata=colour)
    index.delete([0])
    q = x[: offsets[1]]
    for kept, expected in (
        ({"colour": "red"}, lambda i: i % 3 == 0),
        ({"colour": ["red", "blue"]}, lambda i: i % 3 != 1),
        (lambda id, m: m["i"] > 290, lambda i: i > 290),
        (range(3, 9), lambda i: 3 <= i < 9),
    ):
        hits = index.search(q, k=6, candidates=6, filter=kept)
        assert len(hits.ids) == 6 and all(expected(i) and i > 0 for i in hits.ids)
    assert index.search(q, k=6, filter={"colour": "white"}).ids == []


def test_explanations_add_up_to_the_score():
    index, x, offsets = make(n=40)
    q, _ = clouds(3, 1)
    hits = index.search(q, k=3)
    for id, score in zip(*hits, strict=True):
        matches = index.explain(q, id)
        assert sum(m.score for m in matches) == pytest.approx(float(score), rel=1e-5)
        tokens = x[offsets[id] : offsets[id + 1]]
        for m in matches:
            assert m.document_token == (q[m.query_token] @ tokens.T).argmax()


@pytest.mark.parametrize("stage", STAGES)
def test_candidates_come_best_first_even_where_they_are_all(stage):
    index, x, offsets = make(stage, n=60)
    index.delete([0])
    q = x[offsets[5] : offsets[6]]
    if stage == "chamfer":
        estimate = chamfer_batch(q, None, x, offsets)[0]
    else:
        estimate = ENCODER.score(ENCODER.encode_queries(q), ENCODER.encode_documents(x, offsets))[0]
    expected = [i for i in np.argsort(-estimate, kind="stable").tolist() if i != 0]
    found = index.candidates(q, 100)
    assert sorted(found) == sorted(expected) and found[0] == expected[0] == 5
    if stage in ("scan", "chamfer"):
        assert found == expected
    few = index.candidates(q, 7)
    assert few == found[:7]


def test_carved_queries_score_lower_and_find_the_same():
    index, x, offsets = make()
    for i in range(20):
        q = x[offsets[i] : offsets[i + 1]]
        plain, carved = index.search(q, k=1), index.search(q, k=1, carve=0.7)
        assert plain.ids == carved.ids == [i] and carved.scores[0] <= plain.scores[0] + 1e-5


def test_parts_merge_into_the_whole():
    x, offsets = clouds(0, 300)
    fit = ProductQuantizer(ENCODER.n_features, 8).fit(ENCODER.encode_documents(x, offsets))
    whole = MultiVectorIndex(ENCODER, stage="pq", quantizer=fit)
    whole.add(range(300), x, offsets)
    merged = MultiVectorIndex(ENCODER, stage="pq", quantizer=fit)
    for a, b in ((0, 100), (100, 250), (250, 300)):
        part = MultiVectorIndex(ENCODER, stage="pq", quantizer=fit)
        part.add(range(a, b), x[offsets[a] : offsets[b]], offsets[a : b + 1] - offsets[a])
        merged.merge(part)
    q, ends = clouds(4, 10)
    for a, b in zip(whole.search(q, ends, candidates=60), merged.search(q, ends, candidates=60), strict=True):
        assert a.ids == b.ids
    with pytest.raises(ValueError, match="is in both"):
        merged.merge(whole)
    with pytest.raises(ValueError, match="encoder must be the one"):
        merged.merge(MultiVectorIndex(FixedDimensionalEncoder(D, 4, 16, 8, seed=2), stage="pq"))


def test_a_reducer_stores_its_centroids(tmp_path):
    index, x, offsets = make(n=30, reducer={"n_clusters": 4})
    assert all(len(index.tokens(i)) == 4 for i in range(30))
    index.save(tmp_path / "i")
    again = MultiVectorIndex.open(tmp_path / "i")
    again.add([30], x[:9])
    assert len(again.tokens(30)) == 4


def test_no_commit_writes_over_the_files_of_another(tmp_path):
    index, x, offsets = make(n=30)
    index.add([30], x[:3])
    index.save(tmp_path / "i")  # two segments in one commit
    index.add([31], x[:3])
    index.update([31], x[3:6])
    body = json.loads((tmp_path / "i" / "manifest.json").read_text())
    names = [entry["name"] for files in body["segments"] for entry in files.values()]
    assert len(set(names)) == len(names)
    # Every name begins with its commit: whatever number a later one has, its names are others.
    assert [files["tokens"]["name"][:10] for files in body["segments"]] == [
        "00000001-0", "00000001-1", "00000002-0", "00000003-0",
    ]  # fmt: skip


def test_an_index_that_could_not_be_saved_stays_in_memory(tmp_path, monkeypatch):
    index, x, _ = make(n=30)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("mercer.retrieval._segments.write_manifest", full)
    with pytest.raises(OSError, match="no space left"):
        index.save(tmp_path / "i")
    index.add([30], x[:3])
    assert index.path is None and len(index) == 31


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda i, x: i.add([0], x[:3]), ValueError, "ids must be new, 0 is there already"),
        (lambda i, x: i.add([98, 98], [x[:3], x[:3]]), ValueError, "ids must not repeat, 98 does"),
        (lambda i, x: i.add(["a"], x[:3]), TypeError, "ids must be all integers or all strings"),
        (lambda i, x: i.add([1.5], x[:3]), TypeError, "ids must be integers or strings"),
        (lambda i, x: i.add([98, 99], x[:3], [0, 3, 3]), ValueError, "99 has no tokens"),
        (lambda i, x: i.add([98], x[:3, :4]), ValueError, "tokens must have 16 columns, got 4"),
        (lambda i, x: i.add([98], x[:3] * np.nan), ValueError, "tokens must be finite"),
        (lambda i, x: i.add([98], x[:3] * 1e6), ValueError, "tokens must be finite in float16"),
        (lambda i, x: i.add([98, 99], x[:3]), ValueError, "ids must be as many as documents, 1, got 2"),
        (lambda i, x: i.add([98], x[:3], None, [1, 2]), ValueError, "metadata must be as many"),
        (lambda i, x: i.delete([77]), KeyError, "no document has the id 77"),
        (lambda i, x: i.search(x[:3, :4]), ValueError, "queries must have 16 columns, got 4"),
        (lambda i, x: i.search(x[:3] * np.inf), ValueError, "queries must be finite"),
        (lambda i, x: i.search(x[:3], k=0), ValueError, "k must be an integer >= 1, got 0"),
        (lambda i, x: i.search(x[:3], k=9, candidates=3), ValueError, "candidates must be an integer >= 9"),
        (lambda i, x: i.explain(x[:3], 77), KeyError, "77"),
    ],
)
def test_refuses_and_stays_as_it_was(act, error, message, tmp_path):
    index, x, _ = make(n=30)
    index.save(tmp_path / "i")
    with np.errstate(all="ignore"), pytest.raises(error, match=message):
        act(index, x)
    assert len(index) == 30 and len(MultiVectorIndex.open(tmp_path / "i", verify=True)) == 30


def test_damage_is_refused(tmp_path):
    index, _, _ = make(n=30)
    index.save(tmp_path / "i")
    for name in sorted(os.listdir(tmp_path / "i")):
        if name == "lock":
            continue
        path = tmp_path / "i" / name
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        bad = (content[:-7], b"", flipped)
        for damaged in bad:
            path.write_bytes(damaged)
            with pytest.raises(CorruptIndex):
                MultiVectorIndex.open(tmp_path / "i")
        path.unlink()
        with pytest.raises(CorruptIndex, match="missing|no manifest"):
            MultiVectorIndex.open(tmp_path / "i")
        path.write_bytes(content)
    assert len(MultiVectorIndex.open(tmp_path / "i")) == 30
    manifest = tmp_path / "i" / "manifest.json"
    body = json.loads(manifest.read_text())
    for change in ({"version": 9}, {"format": "another"}, {"stage": "pq"}):
        manifest.write_text(json.dumps({**body, **change}))
        with pytest.raises(CorruptIndex):
            MultiVectorIndex.open(tmp_path / "i")
    manifest.write_text(json.dumps(body))
    with pytest.raises(ValueError, match="encoder must be the one"):
        MultiVectorIndex.open(tmp_path / "i", encoder=FixedDimensionalEncoder(D, 4, 16, 8, seed=2))
    with pytest.raises(CorruptIndex, match="is not an index"):
        MultiVectorIndex.open(tmp_path)


@pytest.mark.parametrize("stage", ["scan", "pq"])
def test_arrays_of_other_shapes_are_refused_though_their_checksums_fit(stage, tmp_path):
    index, _, _ = make(n=30, stage=stage)
    index.save(tmp_path / "i")
    whole = _segments.read_manifest(tmp_path / "i")
    for kind, entry in whole["segments"][0].items():
        if kind in ("ids", "metadata"):
            continue
        for n, change in enumerate((lambda a: a.astype(np.float64), lambda a: a[..., None])):
            body = json.loads(json.dumps(whole))
            array = np.load(tmp_path / "i" / entry["name"])
            body["segments"][0][kind] = _segments.write_file(
                tmp_path / "i", f"99999999-{kind}{n}.npy", change(array)
            )
            _segments.write_manifest(tmp_path / "i", body)
            with pytest.raises(CorruptIndex, match=f"{kind}|lacks"):
                MultiVectorIndex.open(tmp_path / "i")
    _segments.write_manifest(tmp_path / "i", whole)
    assert len(MultiVectorIndex.open(tmp_path / "i")) == 30


def test_of_two_writers_one_is_told(tmp_path):
    index, x, _ = make(n=30)
    index.save(tmp_path / "i")
    second = MultiVectorIndex.open(tmp_path / "i")
    with index._writing(), pytest.raises(IndexLocked, match="another writer"):
        second.delete([1])
    index.delete([2])
    second.delete([1])  # sees the other's commit first
    assert len(second) == 28 and len(MultiVectorIndex.open(tmp_path / "i")) == 28


WRITER = """
    import sys, numpy as np
    from mercer.retrieval import MultiVectorIndex
    index = MultiVectorIndex.open(sys.argv[1])
    start = int(sys.argv[2])
    rng = np.random.default_rng(start)
    print("ready", flush=True)
    for i in range(start, start + 100000):
        x = np.full((3, 16), (i % 1000) / 1000, np.float32)
        index.add([i], x)
        print("+", i, flush=True)
        if i % 3 == 0:
            index.delete([i])
            print("-", i, flush=True)
        if i % 50 == 49:
            index.compact()
"""


def kill_again_and_again(folder, kills, seed):
    """What was said to be committed is there after a kill, and nothing else but the commit under way."""
    rng = np.random.default_rng(seed)
    index = MultiVectorIndex(FixedDimensionalEncoder(16, 2, 2, 4))
    index.add([-1], np.ones((1, 16)))
    index.save(folder)
    alive = {-1}
    for turn in range(kills):
        start = 1000 * (turn + 1)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), str(start)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "MERCER_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(rng.uniform(0, 0.25)))
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().splitlines()
        process.wait()
        last = start - 1
        for line in said:
            sign, _, number = line.partition(" ")
            if not number.strip().isdigit():
                continue  # cut off by the kill
            last = int(number)
            alive = alive | {last} if sign == "+" else alive - {last}
        found = set(MultiVectorIndex.open(folder, read_only=True, verify=turn % 10 == 0).ids)
        # One commit may have been made and not been told of.
        under_way = found ^ alive
        assert under_way <= {last, last + 1} and len(under_way) <= 1, (turn, under_way, last)
        alive = found
        some = MultiVectorIndex.open(folder)
        for id in list(alive)[-3:]:
            if id >= 0:
                np.testing.assert_array_equal(
                    some.tokens(id), np.full((3, 16), (id % 1000) / 1000, np.float16)
                )


def test_a_killed_writer_leaves_its_last_commit(tmp_path):
    kill_again_and_again(tmp_path / "i", 4, 0)


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(tmp_path):
    kill_again_and_again(tmp_path / "i", 200, 1)
