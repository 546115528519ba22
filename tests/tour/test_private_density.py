"""The private chapter's figure."""

import re

import numpy as np

from mercer.tour.private_density import heat_maps


def test_cells_are_as_opaque_as_their_value_and_rows_run_upwards():
    values = np.array([0.0, 1.0, 2.0, 4.0, 0.0, -3.0])  # 3 columns, 2 rows, the first below
    svg = heat_maps([("a <b>", values), ("half", values / 2)], (3, 2))
    opacity = [float(v) for v in re.findall(r'fill-opacity="([\d.]+)"', svg)]
    assert opacity == [0.25, 0.5, 1.0, 0.12, 0.25, 0.5] and "a &lt;b&gt;" in svg
    y = [float(v) for v in re.findall(r'<rect x="[\d.]+" y="([\d.]+)"[^>]*fill-opacity', svg)]
    assert y[0] == y[1] > y[2]
