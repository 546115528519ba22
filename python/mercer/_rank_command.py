"""`mercer rank`: the command line of `mercer.ranking.FeatureRanker`.

The options of the public tool (outrank 0.97.5) are understood under their names, with its "True" and "False", so
that a pipeline changes the name of the command alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["rank"]

_TASKS = ("all", "ranking", "ranking_summary", "visualization", "identify_rare_values")


def _option(*names: str, help: str = "", hidden: bool = False, **more: Any) -> Any:
    return typer.Option(*names, help=help, hidden=hidden, **more)


def rank(
    source: Annotated[
        Path | None, typer.Argument(help="A .csv, .tsv, .vw or .parquet (.gz), or a folder.")
    ] = None,
    data_path: Annotated[Path | None, _option("--data_path", hidden=True)] = None,
    label: Annotated[str | None, _option("--label", "--label_column", help="Name of the label.")] = None,
    out: Annotated[
        Path | None,
        _option("--out", "--output_folder", metavar="DIR", help="Write the public tool's files there."),
    ] = None,
    report: Annotated[Path | None, _option("--report", metavar="FILE", help="Write an HTML report.")] = None,
    as_json: Annotated[bool, _option("--json", help="Print one JSON document and nothing else.")] = False,
    top: Annotated[int, _option("--top", help="Rows of the table.")] = 20,
    score: Annotated[str, _option("--score", "--heuristic", help="See FeatureRanker.")] = "mi_corrected",
    correction: Annotated[
        str, _option("--correction", help="shift, permutation, expected, miller_madow or none.")
    ] = "shift",
    condition_on: Annotated[str, _option("--condition-on", help="label or feature.")] = "label",
    aggregate: Annotated[str, _option("--aggregate", help="median or global.")] = "median",
    format: Annotated[
        str | None,
        _option("--format", "--data_source", help="csv, csv-raw, ob-csv, ob-vw, ob-raw-dump or parquet."),
    ] = None,
    delimiter: Annotated[str | None, _option("--delimiter", help="Of a delimited file.")] = None,
    encoding: Annotated[str, _option("--encoding", help="utf-8 or latin-1.")] = "utf-8",
    batch_size: Annotated[int, _option("--batch-size", "--minibatch_size", help="Rows a batch.")] = 16384,
    subsampling: Annotated[int, _option("--subsampling", help="Keep every so many-th row.")] = 1,
    ratio: Annotated[
        float,
        _option("--sampling-ratio", "--mi_stratified_sampling_ratio", help="Stratified sample, in (0, 1]."),
    ] = 1.0,
    order: Annotated[int, _option("--order", "--interaction_order", help="Joint columns of so many.")] = 1,
    transformers: Annotated[
        str, _option("--transformers", help="minimal, default, fw-transformers or none.")
    ] = "none",
    numeric: Annotated[
        list[str] | None, _option("--numeric", help="A numeric column; may be repeated.")
    ] = None,
    multivalue: Annotated[
        str,
        _option(
            "--multivalue", "--explode_multivalue_features", help="Columns to explode, with ';' between."
        ),
    ] = "",
    subfeatures: Annotated[str, _option("--subfeatures", "--subfeature_mapping", help="'a->b;c<->d'.")] = "",
    columns: Annotated[
        str | None, _option("--columns", "--feature_set_focus", help="Only these, with ',' between.")
    ] = None,
    noise: Annotated[bool, _option("--noise", help="Add noise controls.")] = False,
    pairwise: Annotated[bool, _option("--pairwise", help="Score all pairs.")] = False,
    order_3mr: Annotated[bool, _option("--3mr", help="Also order by 3MR.")] = False,
    max_pairs: Annotated[
        int, _option("--max-pairs", "--combination_number_upper_bound", help="Pairs a batch at most.")
    ] = 32768,
    label_bins: Annotated[int | None, _option("--label-bins", help="Bins of a numeric label.")] = None,
    weight: Annotated[str | None, _option("--weight", help="Column with the weight of each row.")] = None,
    rare: Annotated[
        int,
        _option("--rare", "--rare_value_count_upper_bound", help="Keep values that occur at most so often."),
    ] = 0,
    missing: Annotated[
        str,
        _option("--missing", "--missing_value_symbols", help="Values that are missing, with ',' between."),
    ] = ",{}",
    max_bad_share: Annotated[float, _option("--max-bad-share", help="Of lines that are no rows.")] = 0.01,
    compat: Annotated[bool, _option("--compat", help="The public tool's numbers.")] = False,
    threads: Annotated[int | None, _option("--threads", "--num_threads", help="Threads.")] = None,
    seed: Annotated[int, _option("--seed", help="Of controls, permutations and surrogates.")] = 0,
    quiet: Annotated[bool, _option("--quiet", help="No progress.")] = False,
    target_ranking_only: Annotated[str | None, _option("--target_ranking_only", hidden=True)] = None,
    noise_official: Annotated[str, _option("--include_noise_baseline_features", hidden=True)] = "False",
    disable_tqdm: Annotated[str, _option("--disable_tqdm", hidden=True)] = "False",
    task: Annotated[str, _option("--task", hidden=True)] = "all",
    tldr: Annotated[str, _option("--tldr", hidden=True)] = "True",
    in_names: Annotated[str, _option("--include_cardinality_in_feature_names", hidden=True)] = "True",
    max_unique: Annotated[int, _option("--max_unique_hist_constraint", hidden=True)] = 30_000,
    image_format: Annotated[str, _option("--image_format", hidden=True)] = "pdf",
    reference_json: Annotated[str, _option("--reference_model_JSON", hidden=True)] = "",
) -> None:
    """Rank the columns of a table by what they tell of the label, in one streaming pass."""
    from mercer.ranking import FeatureRanker

    path = source or data_path
    if path is None:
        _fail("a table is needed: mercer rank data.csv --label y", 2)
    official = data_path is not None
    if official:
        label, out = label or "label", out or Path("ranking_outputs")
    if task not in _TASKS:
        _fail(f"task must be one of {', '.join(_TASKS)}, got {task!r}", 2)
    if max_unique != 30_000:
        _fail(f"max_unique_hist_constraint must be 30000, the only one there is, got {max_unique}", 2)
    if task == "identify_rare_values":
        score, rare = "constant", rare or 1
    ranker = FeatureRanker(
        score,
        None if correction == "none" else correction,
        condition_on,
        batch_size=batch_size,
        aggregate=aggregate,
        subsampling=subsampling,
        sampling_ratio=ratio,
        interaction_order=order,
        transformers=None if transformers == "none" else transformers,
        numeric_columns=numeric,
        multivalue=_listed(multivalue, ";"),
        subfeatures=_listed(subfeatures, ";"),
        noise_controls=noise or _flag("include_noise_baseline_features", noise_official),
        pairwise=pairwise
        or (target_ranking_only is not None and not _flag("target_ranking_only", target_ranking_only)),
        order_3mr=order_3mr or score.endswith("3mr"),
        max_pairs=max_pairs,
        columns=None if columns is None else _listed(columns, ","),
        reference_features=_reference(reference_json),
        label_bins=label_bins,
        weight=weight,
        missing=missing.split(","),
        rare_values=rare,
        max_bad_share=max_bad_share,
        encoding=encoding,
        compat=compat,
        random_state=seed,
        n_jobs=threads,
    )
    if score.endswith("-3mr"):
        ranker.set_params(score=score.removesuffix("-3mr"))
    silent = quiet or as_json or _flag("disable_tqdm", disable_tqdm)
    try:
        with _Bar(silent) as bar:
            ranker.fit(path, label or "y", format=format, delimiter=delimiter, progress=bar)
        if out is not None:
            ranker.to_tsv(out, decorate=_flag("include_cardinality_in_feature_names", in_names))
        if report is not None:
            ranker.to_html(report)
    except (ValueError, OSError, ImportError, TypeError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped: nothing was written", 130)
    if as_json:
        print(ranker.to_json(), end="")
    elif _flag("tldr", tldr):
        _show(ranker, top)
        for place in filter(None, (out, report)):
            print(f"wrote {place}")


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _flag(name: str, value: str) -> bool:
    if value not in ("True", "False"):
        _fail(f"{name} must be True or False, got {value!r}", 2)
    return value == "True"


def _listed(value: str, separator: str) -> list[str]:
    return [] if value in ("", "False") else value.split(separator)


def _reference(path: str) -> list[str]:
    """The plain features of a reference model's description."""
    if not path:
        return []
    import json

    features = json.loads(Path(path).read_text("utf-8")).get("desc", {}).get("features", [])
    return [feature for feature in features if "," not in feature]


class _Bar:
    """Progress on a terminal by rich; nothing elsewhere."""

    def __init__(self, silent: bool) -> None:
        self._bar: Any = None
        if not silent and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Callable[..., None]:
        if self._bar is None:
            return lambda message, fraction=None: None
        self._bar.start()
        task = self._bar.add_task("reading", total=None)

        def show(message: str, fraction: float | None = None) -> None:
            total = None if fraction is None else 1.0
            self._bar.update(task, description=message, total=total, completed=fraction or 0)

        return show

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _show(ranker: Any, top: int) -> None:
    """The best columns as a table."""
    scores = ranker.scores_[:top]
    width = max([7, *(len(name) for name in scores["feature"])])
    print(f"{'feature':{width}}  {'score':>10}  {'spread':>9}  {'values':>9}  coverage")
    for row in scores:
        print(
            f"{row['feature']:{width}}  {row['score']:10.6f}  {row['spread']:9.2g}  {row['cardinality']:9,}  "
            f"{row['coverage']:6.1f} %" + ("" if row["kind"] == "column" else f"  {row['kind']}")
        )
    if ranker.ranks_3mr_ is not None:
        print("3MR: " + ", ".join(ranker.ranks_3mr_["feature"][:top]))
    bad = sum(
        count for reason, count in ranker.skipped_.items() if reason not in ("blank", "unknown_namespaces")
    )
    skipped = f", {bad:,} lines skipped" if bad else ""
    print(
        f"{len(ranker.scores_):,} columns, {ranker.n_rows_:,} rows in {ranker.n_batches_} batches, "
        f"{ranker.timings_['total']:.2f} s{skipped}"
    )
