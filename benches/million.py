"""An index of 1e6 generated documents on disk: how long it takes to build and to open, and what stays in memory.

    python benches/million.py [--documents 1000000] [--folder DIR]

16 unit tokens of 64 coordinates a document, kept in float16; encodings of 1280 coordinates in 80 bytes. Needs 2.3 GB of
disk at a million. Opening and searching are timed in a process of their own, which has seen nothing of the files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mercer.retrieval import FixedDimensionalEncoder, MultiVectorIndex, ProductQuantizer

TOKENS, D, BATCH = 16, 64, 100_000

OPEN = """
import json, sys, time
import numpy as np
from mercer.retrieval import MultiVectorIndex

def resident():
    with open("/proc/self/status") as lines:
        found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return [found["RssAnon"] >> 10, found["RssFile"] >> 10]

before = resident()
start = time.perf_counter()
index = MultiVectorIndex.open(sys.argv[1], read_only=True)
opened = time.perf_counter() - start
after = resident()
queries = np.load(sys.argv[2])
seconds, hits = [], []
for query in queries:
    start = time.perf_counter()
    hits.append(index.search(query, k=10, candidates=1000).ids)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"opened": opened, "documents": len(index), "before": before, "after": after, "searched": resident(),
                  "first": seconds[0], "median": sorted(seconds)[len(seconds) // 2], "hits": hits}))
"""


def documents(words: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, TOKENS, D) unit tokens around words."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, TOKENS, D), dtype=np.float32)
    x *= 0.5
    x += words[rng.integers(0, len(words), x.shape[:2])]
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the index is made; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(Path(folder), arguments.documents)


def measure(folder: Path, count: int) -> None:
    words = np.random.default_rng(0).standard_normal((20_000, D), dtype=np.float32)
    encoder = FixedDimensionalEncoder(D, 3, 10, 16)
    index = MultiVectorIndex(
        encoder, stage="pq", quantizer=ProductQuantizer(encoder.n_features, 16, n_iter=4)
    )
    index.save(folder / "index")
    made = spent = 0.0
    queries, wanted = [], []
    for first in range(0, count, BATCH):
        start = time.perf_counter()
        docs = documents(words, min(BATCH, count - first), first)
        made += time.perf_counter() - start
        start = time.perf_counter()
        offsets = np.arange(len(docs) + 1) * TOKENS
        index.add(range(first, first + len(docs)), docs.reshape(-1, D), offsets)
        spent += time.perf_counter() - start
        rng = np.random.default_rng(first + 1)
        for i in rng.choice(len(docs), 2, replace=False).tolist():
            query = docs[i, rng.choice(TOKENS, 8)] + rng.standard_normal((8, D), dtype=np.float32) / 16
            queries.append(query)
            wanted.append(first + i)
        print(f"  {first + len(docs):,} documents in {spent:.0f} s", flush=True)
    size = sum(path.stat().st_size for path in (folder / "index").iterdir())
    print(
        f"built: {spent:.0f} s, {count / spent:,.0f} documents a second (generating took {made:.0f} s); {size:,} bytes"
    )
    np.save(folder / "queries.npy", np.array(queries, np.float32))
    command = [sys.executable, "-c", OPEN, str(folder / "index"), str(folder / "queries.npy")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    anonymous, file = (b - a for a, b in zip(found["before"], found["after"], strict=True))
    print(f"opened {found['documents']:,} documents in {found['opened'] * 1e3:.0f} ms")
    print(f"  resident: {anonymous} MB of its own, {file} MB of mapped files")
    anonymous, file = (b - a for a, b in zip(found["before"], found["searched"], strict=True))
    right = np.mean([w in h for w, h in zip(wanted, found["hits"], strict=True)])
    print(
        f"{len(queries)} searches: first {found['first'] * 1e3:.0f} ms, median {found['median'] * 1e3:.1f} ms"
    )
    print(f"  resident: {anonymous} MB of its own, {file} MB of mapped files")
    print(f"  own document in the top 10 of {100 * right:.0f} %")


if __name__ == "__main__":
    main()
