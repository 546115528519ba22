"""The chapter of the backbones, with small networks in place of the published ones."""

import re

import pytest

for needed in ("timm", "skimage", "matplotlib"):
    pytest.importorskip(needed)

from mercer.tour import backbones  # noqa: E402
from mercer.tour.chapter import Figure, Table, Tour  # noqa: E402

SMALL = (
    ("ResNet-50", "resnet10t", {}, "base2"),
    (
        "OverLoCK-XT",
        "mercer_overlock_xt",
        {
            "depth": (1, 1, 1, 1), "sub_depth": (1, 1), "embed_dim": (16, 16, 32, 48), "kernel_size": (9, 7, 7, 5),
            "sub_kernel_size": (7, 5), "sub_num_heads": (2, 3),
        },
        "ours",
    ),
)  # fmt: skip


def test_the_chapter_measures_and_draws(monkeypatch):
    monkeypatch.setattr(backbones, "NETWORKS", SMALL)
    sections = backbones.CHAPTER.run(Tour(quick=True))
    parts = [part for section in sections for part in section.parts]
    pictures = [part.svg for part in parts if isinstance(part, Figure)]
    assert len(sections) == 3 and len(pictures) == 3
    assert not re.search(r'href="(?!data:image/png)', "".join(pictures))
    speeds = [part for part in parts if isinstance(part, Table)][1]
    baseline, ours = speeds.rows
    assert baseline[3] == "" and float(ours[3].split()[0]) < float(ours[1].split()[0])
    assert float(ours[-1]) < 1e-4  # the folded network is the network
