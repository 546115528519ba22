"""Text as batches: Python's csv module as the oracle, and what is not a table."""

import csv
import gzip
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mercer import _core
from mercer.ranking import FeatureRanker
from mercer.ranking._sources import Reading, open_source


def rows_of(path, rows=1 << 20, **reading):
    """All rows as tuples of text, and the source."""
    source = open_source(path, rows, Reading(**reading))
    found = []
    for batch, names in source.batches(rows):
        columns = []
        for i in range(len(names)):
            values = np.array(batch.values(i), dtype=object)
            columns.append(values[batch.codes(i)])
        found += list(zip(*columns, strict=True))
    return found, source


FIELDS = st.text(st.sampled_from('ab1,"\n é€'), max_size=12)


@settings(max_examples=150)
@given(st.integers(2, 5), st.data(), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_python_writes_is_read(tmp_path_factory, width, data, line_end, packed):
    rows = data.draw(st.lists(st.tuples(*[FIELDS] * width), max_size=20))
    names = [f"c{i}" for i in range(width)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows([names, *rows])
    path = tmp_path_factory.mktemp("csv") / ("t.csv.gz" if packed else "t.csv")
    raw = text.getvalue().encode()
    path.write_bytes(gzip.compress(raw) if packed else raw)
    for size in (3, 1 << 20):
        found, source = rows_of(path, size)
        assert found == [tuple(field.encode() for field in row) for row in rows]
        assert source.names == names and sum(source.skipped.values()) == 0


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_any_bytes_are_rows_counted_skips_or_a_clear_error(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("bytes") / "t.csv"
    path.write_bytes(b"a,b\n" + raw)
    try:
        found, source = rows_of(path)
    except ValueError as error:
        assert "never closed" in str(error)
        return
    skipped = source.skipped
    lines = source.reader.progress[0]
    assert lines == len(found) + skipped["ragged"] + skipped["encoding"] + skipped["nul"] + skipped["blank"]
    if b'"' not in raw and b"\r" not in raw:
        good = [
            line
            for line in raw.split(b"\n")
            if line.count(b",") == 1 and b"\0" not in line and _is_text(line)
        ]
        assert found == [tuple(line.split(b",")) for line in good]


def _is_text(line):
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def ranked(path, **options):
    return FeatureRanker(**options).fit(path)


def table(n=200, extra=""):
    return "x,y\n" + "".join(f"{i % 7},{i % 2}\n" for i in range(n)) + extra


def test_ragged_bad_and_nul_lines_are_counted_up_to_a_share(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(table().encode() + b"1,2,3\n1\n\xff,1\n\x00,1\n\n")
    ranker = ranked(path, max_bad_share=0.05)
    assert ranker.n_rows_ == 200
    assert ranker.skipped_ == {"ragged": 2, "encoding": 1, "nul": 1, "blank": 1, "unknown_namespaces": 0}
    with pytest.raises(
        ValueError, match="4 of 205 lines are no rows .* the first, after the header, is line 201"
    ):
        ranked(path)
    assert ranked(path, max_bad_share=0.05, encoding="latin-1").n_rows_ == 201


@pytest.mark.parametrize("content, message", [
    (b"", "file is empty"),
    (b"x,y\n", "at least one row"),
    (b"x,x,y\n1,2,3\n", "names the column \"x\" twice"),
    (b"x,z\n1,2\n", "label must be a column of the source, got 'y'"),
    (b"x,y\n1,2\n3,2\n", "label must have at least two values"),
    (b"x,y\n\"1,2\n3,4\n", "never closed"),
    (b"x,y\n" + b"a" * 3000 + b",1\n", "longer than 1000 bytes"),
    (b"x,\x00y\n1,2\n", "NUL"),
    (b"\xff,y\n1,2\n", "header is not UTF-8"),
])  # fmt: skip
def test_files_that_are_no_tables_are_refused(tmp_path, content, message, monkeypatch):
    from mercer.ranking import _sources

    monkeypatch.setattr(_sources, "_BLOCK", 512)
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        FeatureRanker().fit(path, max_line_bytes=1000)


def test_a_gzip_stream_that_ends_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "t.csv.gz"
    packed = gzip.compress(table(20_000).encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match="gzip stream ends in the middle"):
        ranked(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ranked(tmp_path / "no.csv")


def test_100_000_columns_are_ranked(tmp_path):
    path = tmp_path / "wide.csv"
    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (60, 100_000))
    lines = [
        ",".join([*(f"f{i}" for i in range(99_999)), "y"]),
        *(",".join(map(str, row)) for row in X.tolist()),
    ]
    path.write_text("\n".join(lines) + "\n")
    assert len(FeatureRanker().fit(path).scores_) == 99_999


def test_a_line_of_100_mb_is_refused_and_not_held_twice(tmp_path):
    path = tmp_path / "long.csv"
    with path.open("wb") as f:
        f.write(b"x,y\n")
        for _ in range(100):
            f.write(b"a" * (1 << 20))
        f.write(b",1\n")
    with pytest.raises(ValueError, match=r"longer than 67108864 bytes \(max_line_bytes\)"):
        ranked(path)


def test_vowpal_wabbit_lines_have_the_columns_of_their_map(tmp_path):
    (tmp_path / "vw_namespace_map.csv").write_text("A,user\nB,item\nC,price,f32\n")
    lines = b"1 |A aaU1 |B bbx bby |C cc0.5\n-1 tag|C cc2 |A aaU2 |Z zz\n1 |B bbz\n\n"
    (tmp_path / "data.vw.gz").write_bytes(gzip.compress(lines))
    found, source = rows_of(tmp_path)
    assert source.names == ["label", "user", "item", "price"] and source.numeric == {"price"}
    assert found == [(b"1", b"U1", b"x-bby", b"0.5"), (b"-1", b"U2", b"", b"2"), (b"1", b"", b"z", b"")]
    assert source.skipped["unknown_namespaces"] == 1


def test_the_folders_of_the_public_tool_are_read(tmp_path):
    described = tmp_path / "described"
    described.mkdir()
    (described / "data.csv").write_text('p,q,y\n1.5,"a,b",0\n2,c,1\n')
    features = [
        {"name": "num", "type": "float32"},
        {"name": "cat", "type": "string"},
        {"name": "y", "type": "int"},
    ]
    (described / "dataset_desc.json").write_text(json.dumps({"data_features": features}))
    found, source = rows_of(described)
    assert source.names == ["num", "cat", "y"] and source.numeric == {"num"}
    assert found == [(b"1.5", b"a,b", b"0"), (b"2", b"c", b"1")]

    dump = tmp_path / "dump"
    (dump / "raw_data/0_header").mkdir(parents=True)
    (dump / "raw_data/0_header/header.csv").write_text("a\tb\n")
    for part, text in (("p1", "1\t2\n"), ("p2", '3\t"4\n5\t\n')):
        (dump / "raw_data/1_train" / part).mkdir(parents=True)
        (dump / "raw_data/1_train" / part / "x.tsv").write_text(text)
    assert rows_of(dump)[0] == [(b"1", b"2"), (b"3", b'"4'), (b"5", b"")]


@pytest.mark.parametrize("every", [1, 2, 7])
def test_subsampling_keeps_the_lines_that_it_divides(tmp_path, every):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{i},0\n" for i in range(1, 100)))
    assert [int(x) for x, _ in rows_of(path, every=every)[0]] == list(range(every, 100, every))


def test_columns_that_are_not_wanted_are_not_encoded(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c,y\n1,2,3,0\n4,5,6,1\n")
    ranker = FeatureRanker(columns=["c"]).fit(path)
    assert ranker.scores_["feature"].tolist() == ["c"]


def test_every_kind_of_table_gives_the_same_batch(tmp_path):
    pd, pl, pa = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    rng = np.random.default_rng(0)
    plain = {
        "s": np.array(["a", "bb", "a", "", "é"] * 40, dtype=object), "i": rng.integers(0, 9, 200),
        "f": rng.integers(0, 5, 200) / 2, "y": rng.integers(0, 2, 200),
    }  # fmt: skip
    frame = pd.DataFrame(plain)
    arrow = pa.table({name: pa.array(column.tolist()) for name, column in plain.items()})
    import pyarrow.parquet as pq

    pq.write_table(arrow, tmp_path / "t.parquet", row_group_size=37)
    kinds = {
        "mapping": plain, "pandas": frame, "polars": pl.DataFrame(frame.to_dict("list")), "arrow": arrow,
        "reader": arrow.to_reader(max_chunksize=23), "parquet": tmp_path / "t.parquet",
        "categories": frame.assign(s=frame["s"].astype("category")),
        "iterator": (frame.iloc[i : i + 50] for i in range(0, 200, 50)),
    }  # fmt: skip
    expected = FeatureRanker("mi", batch_size=50).fit(plain).scores_
    assert expected["batches"].tolist() == [4, 4, 4]
    for kind, source in kinds.items():
        got = FeatureRanker("mi", batch_size=50).fit(source)
        assert got.scores_.tolist() == expected.tolist(), kind
        assert got.n_rows_ == 200


def test_missing_values_of_tables_are_the_empty_text():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": [1.0, None, 2.0, None], "s": ["a", None, "b", "a"], "y": [0, 1, 0, 1]})
    ranker = FeatureRanker("mi").fit(frame)
    assert dict(zip(ranker.scores_["feature"], ranker.scores_["coverage"], strict=True)) == {
        "x": 50.0,
        "s": 75.0,
    }


def test_the_hash_of_the_public_tool():
    assert _core.rank_xxh64(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1
