"""The harness measures what was slept, and a peer's worker is a real other process."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

BENCHES = Path(__file__).parents[2] / "benches"


def load(path, name):
    """A file that is a script, not a module of a package, under a name that nothing else has."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


harness = load(BENCHES / "peers" / "harness.py", "bench_harness")
bench_run = load(BENCHES / "run.py", "bench_run")


def test_ratio_is_that_of_the_times():
    row = harness.compare(
        "sleeping", "nobody", ours=lambda: time.sleep(0.002), theirs=lambda: time.sleep(0.02),
        elements=10, threads=1, rounds=5, at_least=0.004,
    )  # fmt: skip
    assert 4 < row.ratio < 11 and row.low <= row.ratio <= row.high
    assert 2e5 <= row.ours_ns < 1e6 and 2e6 <= row.peer_ns < 4e6


@pytest.fixture
def peer_file(tmp_path):
    file = tmp_path / "peer.py"
    file.write_text(
        "import os, time\nprint('a peer that talks')\n"
        "def prepare(x):\n"
        "    def work():\n        time.sleep(0.01)\n        return x * 2 + os.getpid() * 0\n"
        "    if x[0] < 0: raise ValueError('x is negative')\n    return work\n"
    )
    return str(file)


def test_worker_times_only_its_work(peer_file):
    with harness.Worker("test", peer_file, x=np.arange(3.0)) as peer:
        assert np.array_equal(peer.result(), [0, 2, 4])
        assert 0.01 <= peer.seconds(3) < 0.05
        assert peer._process.pid != os.getpid()
        row = harness.compare(
            "w", "p", ours=lambda: time.sleep(0.001), theirs=peer, elements=1, threads=1, rounds=3
        )
    assert 3 < row.ratio < 11
    assert peer._process.returncode == 0


def test_what_goes_wrong_in_a_worker_is_told(peer_file):
    with pytest.raises(RuntimeError, match="ValueError: x is negative"):
        harness.Worker("test", peer_file, x=np.array([-1.0]))


def test_a_section_is_replaced_and_the_others_are_kept(tmp_path):
    page = tmp_path / "benchmarks.md"
    for name, text in (("a", "first"), ("b", "other"), ("a", "second")):
        bench_run.write_section(page, name, text)
    content = page.read_text()
    assert "first" not in content and content.index("second") < content.index("other")
    assert content.startswith("# Benchmarks")
