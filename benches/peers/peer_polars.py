"""polars reading a csv; runs in an environment of its own."""

import polars as pl


def prepare(path):
    path = str(path)
    return lambda: pl.read_csv(path).height
