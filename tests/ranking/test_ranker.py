"""FeatureRanker: recovery of planted signals, numpy replicas of its medians, and what it refuses."""

import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from mercer import ranking
from mercer.ranking import FeatureRanker, RankingCounts


def planted(n=6000, seed=0):
    """The card's set: four signals, noise of several cardinalities, an identifier, a constant."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal(n)
    y = (latent + 0.5 * rng.standard_normal(n) > 0).astype(int)

    def quantised(x, k):
        return np.minimum((np.argsort(np.argsort(x)) * k) // n, k - 1)

    noisy = np.where(rng.random(n) < 0.5, latent, rng.standard_normal(n))
    zipf = np.minimum(rng.zipf(1.3, n), 300)
    return {
        "signal4": quantised(latent, 4), "signal100": quantised(latent, 100), "noisy30": quantised(noisy, 30),
        "noisy1000": quantised(noisy, 1000), "rand2": rng.integers(0, 2, n), "rand50": rng.integers(0, 50, n),
        "rand2000": rng.integers(0, 2000, n), "zipf300": zipf, "id": np.arange(n), "const": np.zeros(n, int), "y": y,
    }  # fmt: skip


SIGNALS = {"signal4", "signal100", "noisy30", "noisy1000"}


@pytest.mark.parametrize("seed", range(3))
def test_every_signal_stands_above_all_noise_with_the_correction_and_not_without(seed):
    table = planted(seed=seed)
    for correction in ("shift", "permutation", "expected"):
        scores = FeatureRanker(correction=correction).fit(table).scores_
        assert set(scores["feature"][:4]) == SIGNALS, correction
    plain = FeatureRanker("mi").fit(table).scores_["feature"]
    assert plain[0] == "id"
    assert set(plain[:4]) != SIGNALS
    corrected = FeatureRanker().fit(table).scores_
    assert corrected["score"][corrected["feature"] == "id"] == 0.0


def test_scores_are_medians_over_batches_and_a_short_last_batch_is_left_out():
    table = planted(9000)
    ranker = FeatureRanker("mi", batch_size=4000).fit(table)
    assert (ranker.n_batches_, ranker.n_rows_) == (2, 9000)
    for row in ranker.scores_:
        x, y = table[row["feature"]], table["y"]
        per_batch = [ranking.mutual_information(x[s : s + 4000], y[s : s + 4000]) for s in (0, 4000)]
        assert row["score"] == pytest.approx(np.median(per_batch), abs=1e-13)
        assert row["spread"] == pytest.approx(np.subtract(*np.quantile(per_batch, [0.75, 0.25])), abs=1e-13)
        assert (row["batches"], row["cardinality"]) == (2, len(np.unique(x)))


def test_global_scores_are_those_of_the_whole_table():
    table = planted(9000)
    for score, correction, function in (
        ("mi", None, ranking.mutual_information),
        ("ami", None, ranking.adjusted_mutual_information),
        ("symmetric_uncertainty", None, ranking.symmetric_uncertainty),
        ("mi_corrected", "expected", lambda x, y: ranking.corrected_mutual_information(x, y, correction="expected")),
        ("mi_corrected", "miller_madow",
         lambda x, y: ranking.corrected_mutual_information(x, y, correction="miller_madow")),
    ):  # fmt: skip
        ranker = FeatureRanker(score, correction, aggregate="global", batch_size=2000).fit(table)
        for row in ranker.scores_:
            assert row["score"] == pytest.approx(function(table[row["feature"]], table["y"]), abs=1e-12)


def test_threads_and_batches_of_reading_leave_no_trace(tmp_path):
    table = planted(4000)
    path = tmp_path / "t.csv"
    names = list(table)
    path.write_text(
        ",".join(names) + "\n" + "\n".join(",".join(map(str, r)) for r in zip(*table.values(), strict=True))
    )
    options = {"noise_controls": True, "interaction_order": 2, "correction": "permutation", "random_state": 3}
    found = [FeatureRanker(n_jobs=jobs, **options).fit(path).scores_.tolist() for jobs in (1, 2)]
    assert found[0] == found[1]
    from_memory = FeatureRanker(**options).fit(table).scores_.tolist()
    assert from_memory == found[0]


def test_counts_add_up_wherever_they_are_made():
    table = planted(3000)
    parts = [{name: column[s : s + 1000] for name, column in table.items()} for s in (0, 1000, 2000)]
    whole = RankingCounts("y").update(table)
    first, *rest = (RankingCounts("y").update(part) for part in parts)
    for part in rest:
        first.merge(RankingCounts.from_bytes(part.to_bytes()))
    assert first.rows == 3000 and first.label_counts == whole.label_counts
    for name in table:
        assert first.summary(name) == whole.summary(name)
        assert first.repetitions(name) == whole.repetitions(name)
        if name != "y":
            assert first.score(name) == pytest.approx(whole.score(name), abs=1e-13)
    assert pickle.loads(pickle.dumps(first)).score("signal4") == first.score("signal4")


def test_beyond_the_cap_counts_share_buckets_and_say_so():
    rng = np.random.default_rng(0)
    table = {"x": rng.integers(0, 50, 5000), "many": np.arange(5000), "y": rng.integers(0, 2, 5000)}
    counts = RankingCounts("y", max_categories=100).update(table)
    assert not counts.summary("x")["sketched"] and counts.summary("many")["sketched"]
    assert counts.score("x") == pytest.approx(ranking.mutual_information(table["x"], table["y"]), abs=1e-13)
    assert counts.summary("many")["cardinality"] == 5000
    # Merging pieces loses no row, though values may fall into other buckets than in one piece.
    half = [{n: c[s] for n, c in table.items()} for s in (slice(0, 2500), slice(2500, None))]
    merged = RankingCounts("y", max_categories=100).update(half[0]).merge(
        RankingCounts("y", max_categories=100).update(half[1])
    )  # fmt: skip
    assert merged.rows == 5000 and merged.score("many") >= 0


def test_dask_partitions_give_the_same_counts():
    dd = pytest.importorskip("dask.dataframe")
    pd = pytest.importorskip("pandas")
    table = planted(3000)
    source = dd.from_pandas(pd.DataFrame(table), npartitions=5)
    options = {"correction": "expected", "aggregate": "global"}
    theirs = FeatureRanker(**options).fit(source)
    ours = FeatureRanker(**options).fit(table)
    assert theirs.scores_["feature"].tolist() == ours.scores_["feature"].tolist()
    np.testing.assert_allclose(theirs.scores_["score"], ours.scores_["score"], atol=1e-12)


@pytest.mark.parametrize("cut", [0, 5, 20, 60, -1])
def test_counts_that_were_tampered_with_are_refused(cut):
    data = RankingCounts("y").update({"x": [1, 2, 3], "y": [0, 1, 1]}).to_bytes()
    with pytest.raises(ValueError, match="data "):
        RankingCounts.from_bytes(data[:cut])
    rng = np.random.default_rng(cut + 1)
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            RankingCounts.from_bytes(bytes(broken)).score("x")
        except ValueError:
            pass


def test_interactions_find_what_no_column_tells_alone():
    rng = np.random.default_rng(1)
    a, b, c = rng.integers(0, 2, (3, 4000))
    ranker = FeatureRanker(interaction_order=2).fit({"a": a, "b": b, "c": c, "y": a ^ b})
    assert ranker.scores_["feature"][0] == "a AND b"
    assert ranker.scores_["kind"][0] == "interaction"
    triple = FeatureRanker(interaction_order=3).fit({"a": a, "b": b, "c": c, "y": a ^ b ^ c})
    assert triple.scores_["feature"][0] == "a AND b AND c"


def test_interactions_count_the_label_once():
    table = {
        name: column for name, column in planted(2000).items() if name in ("rand2", "rand50", "signal4", "y")
    }
    options = {"correction": "expected", "aggregate": "global", "interaction_order": 2, "batch_size": 1000}
    ranker = FeatureRanker(**options).fit(table)
    assert sum(ranker.counts_.label_counts.values()) == ranker.counts_.summary("y")["rows"] == 2000
    joint = table["rand2"] * 50 + table["rand50"]
    true = ranking.corrected_mutual_information(joint, table["y"], correction="expected")
    scores = dict(zip(ranker.scores_["feature"], ranker.scores_["score"], strict=True))
    assert scores["rand2 AND rand50"] == pytest.approx(true, abs=1e-12)


def test_the_public_tools_interactions_collide_and_ours_do_not():
    n = 2000
    table = {
        "a": np.where(np.arange(n) % 2, "1", "12"),
        "b": np.where(np.arange(n) % 2, "23", "3"),
        "y": np.arange(n) % 2,
    }
    for compat, cardinality in ((False, 2), (True, 1)):
        scores = FeatureRanker(interaction_order=2, compat=compat).fit(table).scores_
        assert scores["cardinality"][scores["feature"] == "a AND b"] == cardinality


def test_made_columns_have_the_public_tools_names_and_values():
    rng = np.random.default_rng(0)
    n = 3000
    x = rng.gamma(1, 50, n).round(1)
    table = {"x": x, "tags": [["a-b", "b", "c,a", ""][i % 4] for i in range(n)], "k": ["u", "v"] * (n // 2),
             "y": (x > 30).astype(int)}  # fmt: skip
    ranker = FeatureRanker(
        "mi", transformers="fw-transformers", multivalue=["tags"], subfeatures=["k->tags", "k<->k"]
    ).fit(table)
    names = set(ranker.scores_["feature"])
    assert {
        "x_tr_sqrt",
        "x_tr_log*100",
        "x_tr_fw_log_res_10_gt_32",
        "MULTIEX-tags-a",
        "SUBFEATURE-k&b",
    } <= names
    assert "SUBFEATURE|k|k-u&v" in names
    by_name = dict(zip(ranker.scores_["feature"], ranker.scores_["score"], strict=True))
    codes = np.unique(np.round(np.log(x + 1) * 100), return_inverse=True)[1]
    assert by_name["x_tr_log*100"] == pytest.approx(ranking.mutual_information(codes, table["y"]), abs=1e-12)
    has_a = np.array(["a" in t for t in table["tags"]]).astype(int)
    assert by_name["MULTIEX-tags-a"] == pytest.approx(
        ranking.mutual_information(has_a, table["y"]), abs=1e-12
    )
    own = FeatureRanker("mi", transformers={"tenth": lambda x: np.floor(x / 10)}).fit(table)
    assert "x_tr_tenth" in own.scores_["feature"]


def test_presets_have_as_many_transformers_as_the_public_tool():
    assert [len(ranking.TRANSFORMERS[name]) for name in ("minimal", "default", "fw-transformers")] == [
        4,
        10,
        138,
    ]


def test_controls_show_the_floor_and_the_ceiling():
    scores = FeatureRanker(noise_controls=True).fit(planted()).scores_
    controls = scores[scores["kind"] == "control"]
    assert len(controls) == 11 and controls["feature"][0] == "CONTROL-target"
    floor = [row["score"] for row in controls if row["feature"] not in ("CONTROL-target",)]
    weakest = min(scores["score"][list(scores["feature"]).index(name)] for name in SIGNALS)
    assert max(floor) < weakest


def test_numeric_labels_are_binned_and_rows_weighted():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(5000)
    table = {"x": np.digitize(x, np.linspace(-2, 2, 20)), "noise": rng.integers(0, 20, 5000), "y": x}
    ranker = FeatureRanker("mi", label_bins=5).fit(table)
    assert ranker.scores_["feature"][0] == "x"
    with pytest.raises(ValueError, match="finite number with label_bins, got 'a'"):
        FeatureRanker(label_bins=5).fit({"x": [1, 2], "y": ["a", "b"]})
    y, w = (x > 0).astype(int), rng.integers(0, 3, 5000)
    weighted = FeatureRanker("mi", weight="w").fit({**table, "y": y, "w": w}).scores_
    true = ranking.mutual_information(table["x"], y, weights=w)
    assert "w" not in weighted["feature"]
    assert weighted["score"][0] == pytest.approx(true, abs=1e-12)


def test_pairs_and_3mr():
    table = planted(3000)
    ranker = FeatureRanker("mi", pairwise=True, order_3mr=True).fit(table)
    pairs = {(a, b): s for a, b, s, *_ in ranker.pairwise_.tolist()}
    true = ranking.mutual_information(table["rand50"], table["zipf300"])
    assert pairs["rand50", "zipf300"] == pytest.approx(true, abs=1e-12)
    assert len(ranker.ranks_3mr_) == 10
    assert ranker.ranks_3mr_["feature"][0] == ranker.scores_["feature"][0]


def test_few_pairs_a_batch_take_turns():
    table = planted(8000)
    ranker = FeatureRanker("mi", batch_size=1100, max_pairs=4, compat=True).fit(table)
    visits = ranker.scores_["batches"]
    assert len(visits) == 10 and visits.max() - visits.min() <= 1


def test_columns_alone_are_never_too_many():
    ranker = FeatureRanker("mi", batch_size=1000, max_pairs=4).fit(planted(8000))
    assert (ranker.scores_["batches"] == 8).all() and len(ranker.scores_) == 10


def test_the_public_tools_files_are_written_under_their_names(tmp_path):
    options = dict(
        noise_controls=True, interaction_order=2, transformers="minimal", order_3mr=True, rare_values=1
    )
    table = {**planted(3000), "price": np.random.default_rng(0).random(3000).round(3)}
    ranker = FeatureRanker(**options).fit(table)
    ranker.to_tsv(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "pairwise_ranks.tsv", "feature_singles.tsv", "feature_singles_aggregated.tsv", "3mr_ranks.tsv", "memory.tsv",
        "feature_singles_transformers_only_imp.tsv", "numeric_feature_statistics.tsv", "rare_values.tsv",
        "feature_sparsity_summary.tsv", "value_repetitions.json", "combination_estimation_counts.json", "timings.json",
        "arguments.json",
    }  # fmt: skip
    repetitions = json.loads((tmp_path / "value_repetitions.json").read_text())
    assert repetitions["rand2"] == {"0": 2, "1": 2, "10": 2, "100": 2, "1000": 2, "10000": 0, "100000": 0}
    rare = (tmp_path / "rare_values.tsv").read_text().splitlines()
    counts = np.unique(table["price"], return_counts=True)[1]
    assert sum(line.startswith("price\t") for line in rare) == (counts == 1).sum()
    assert (tmp_path / "3mr_ranks.tsv").read_text().startswith("Feature\tRank\tScore\n")
    ranker.to_tsv(tmp_path, decorate=False)
    lines = (tmp_path / "feature_singles.tsv").read_text().splitlines()
    singles = {line.split("\t")[0] for line in lines[1:]}
    assert {name for name in singles if " AND_REL " not in name} == {*ranker.scores_["feature"], "y"}


def test_json_and_report_are_whole(tmp_path):
    ranker = FeatureRanker(noise_controls=True, interaction_order=2).fit(planted(3000))
    content = json.loads(ranker.to_json())
    assert content["scores"][0]["feature"] == ranker.scores_["feature"][0]
    ranker.to_html(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    for heading in ("Ranking", "Cardinality against score", "Redundancy", "What the made columns add"):
        assert f"<h2>{heading}" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "<script" not in page


def test_names_are_text_in_the_report(tmp_path):
    FeatureRanker().fit({"<script>x": [0, 1] * 50, "b": [1, 2] * 50, "y": [0, 1] * 50}).to_html(
        tmp_path / "r.html"
    )
    assert "<script" not in (tmp_path / "r.html").read_text()


def test_a_label_that_is_sorted_is_warned_of():
    table = {"x": [0, 1] * 2000, "y": [0] * 2000 + [1] * 2000}
    with pytest.warns(UserWarning, match="single label value"):
        FeatureRanker(batch_size=2000).fit(table)


@pytest.mark.parametrize("options, message", [
    ({"score": "MI-numba-4mr"}, "score must be one of"),
    ({"correction": "bonferroni"}, "correction must be one of"),
    ({"interaction_order": 0}, "interaction_order must be"),
    ({"sampling_ratio": 0.0}, "sampling_ratio must be"),
    ({"sampling_ratio": 1.5}, r"sampling_ratio must be in \(0, 1\]"),
    ({"transformers": "verbose"}, "transformers must be a mapping or among"),
    ({"aggregate": "global"}, "has no order of rows, got 'shift'"),
    ({"multivalue": ["nope"]}, "multivalue must name columns of the source, got 'nope'"),
    ({"subfeatures": ["a+b"]}, "subfeatures must be 'a->b' or 'a<->b'"),
    ({"score": "ami", "weight": "x"}, "weight must be None"),
    ({"label_bins": [2.0, 1.0]}, "label_bins must be"),
    ({"compat": True}, "more than 1024 rows"),
])  # fmt: skip
def test_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureRanker(**options).fit({"x": [0, 1, 1], "y": [0, 1, 0]})


def test_what_is_no_source_is_refused():
    with pytest.raises(TypeError, match="source must be"):
        FeatureRanker().fit(3)
    with pytest.raises(ValueError, match="did you mean 'label'"):
        FeatureRanker().fit({"x": [1], "label": [1]}, label="labl")
    with pytest.raises(ValueError, match="at least one row"):
        FeatureRanker().fit({"x": [], "y": []})
    with pytest.raises(ValueError, match="every batch must have the columns"):
        FeatureRanker().fit(iter([{"x": [1, 2], "y": [0, 1]}, {"z": [1, 2], "y": [0, 1]}]))


def test_estimators_conventions():
    ranker = FeatureRanker("mi", batch_size=100)
    assert ranker.get_params()["batch_size"] == 100
    assert "batch_size=100" in repr(ranker)
    with pytest.raises(ValueError, match="not fitted"):
        ranker.to_json()
    fitted = ranker.fit(planted(500))
    again = pickle.loads(pickle.dumps(fitted))
    assert again.scores_.tolist() == fitted.scores_.tolist()
    assert again.feature_names_in_.tolist() == [name for name in planted(10) if name != "y"]


def test_sketches_merge_and_travel():
    a, b = ranking.HyperLogLog(p=12, warm_up=50), ranking.HyperLogLog(p=12, warm_up=50)
    a.update(str(i) for i in range(3000))
    b.update(str(i) for i in range(2000, 5000))
    merged = ranking.HyperLogLog.from_bytes(a.to_bytes()).merge(b)
    assert abs(len(merged) / 5000 - 1) < 6 * 1.04 / 64
    few = ranking.HyperLogLog()
    few.update(["x", "y", "x"])
    assert len(ranking.HyperLogLog.from_bytes(few.to_bytes())) == 2
    with pytest.raises(ValueError, match="HyperLogLog.to_bytes"):
        ranking.HyperLogLog.from_bytes(a.to_bytes()[:-3])
    counts = ranking.CountMinSketch(width=100)
    counts.add("a", 5)
    assert counts.merge(ranking.CountMinSketch(width=100))["a"] >= 5


PEAK = """
import resource, sys
from mercer.ranking import FeatureRanker
FeatureRanker(n_jobs=2).fit(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.integers(0, np.geomspace(2, 20_000, 20).astype(int), (50_000, 20))
    rows = "".join(f"{i % 2},{i}," + ",".join(map(str, row)) + "\n" for i, row in enumerate(X.tolist()))
    peak = {}
    for times in (1, 20):
        path = tmp_path / f"{times}.csv"
        with path.open("w") as f:
            f.write("y,id," + ",".join(f"f{j}" for j in range(20)) + "\n")
            for _ in range(times):
                f.write(rows)
        ran = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
        )
        peak[times] = int(ran.stdout)
    assert peak[20] <= 1.5 * peak[1]


def test_a_ranking_of_a_million_cells_answers_at_once():
    table = {f"f{i}": np.random.default_rng(i).integers(0, 1000, 20_000) for i in range(50)}
    table["y"] = table["f0"] % 2
    start = time.perf_counter()
    FeatureRanker().fit(table)
    assert time.perf_counter() - start < 10  # 0.1 s on an idle machine
