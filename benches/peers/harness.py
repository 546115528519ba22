"""Times us against a peer: both doing the same work, turn by turn, in one run.

A machine that slows down slows both sides down, so what is reported is the ratio within each round: the
median of the rounds, and their interquartile range as its spread. Nothing is timed before it has run once, nor right
after the other side.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: A turn begins after so many seconds' rest and, where the work takes fewer than those, a run that is not timed.
PAUSE, SHORT = 0.05, 0.5
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of work: what an element costs us and the peer, and the ratio (above 1: we are faster)."""

    work: str
    peer: str
    ours_ns: float
    peer_ns: float
    ratio: float
    low: float
    high: float
    threads: int
    note: str = ""


def compare(
    work: str,
    peer: str,
    *,
    ours: Callable[[], Any],
    theirs: Callable[[], Any] | Worker,
    elements: int,
    threads: int,
    rounds: int = 9,
    at_least: float = 0.02,
    note: str = "",
) -> Row:
    """Alternate `ours` and `theirs`; each turn repeats the work until it takes `at_least` seconds.

    `theirs` is a function, or a `Worker` where the peer cannot share our environment.
    """
    sides = (ours, theirs)
    for side in sides:
        _seconds(side, 1)  # caches, threads, compilers
    ones = [_seconds(side, 1) for side in sides]
    repeats = [max(1, round(at_least / max(one, 1e-9))) for one in ones]
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            time.sleep(PAUSE)  # threads of BLAS and OpenMP spin on when their work is done
            if ones[side] < SHORT:
                _seconds(sides[side], 1)  # finds cores asleep and caches cold
            seconds[side].append(_seconds(sides[side], repeats[side]))
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    ours_ns, peer_ns = (1e9 * statistics.median(times) / elements for times in seconds)
    return Row(work, peer, ours_ns, peer_ns, statistics.median(ratios), low, high, threads, note)


def _seconds(side: Callable[[], Any] | Worker, repeats: int) -> float:
    """Seconds of one run of the work, out of `repeats` in a row."""
    return side.seconds(repeats) if isinstance(side, Worker) else timed(side, repeats)


def timed(work: Callable[[], Any], repeats: int) -> float:
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - start) / repeats
    finally:
        if collecting:
            gc.enable()


class Worker:
    """A peer in an environment of its own: a process that has imported it and waits for its turn.

    `file` is a Python file beside this one with `prepare(**arrays)`, which returns the work as a function
    without arguments. The arrays travel once; what is timed, in the worker, is the work.

        with Worker("logbesselk", "peer_logbesselk.py", ["logbesselk[jax]"], v=v, x=x) as peer:
            yield compare("log K", "logbesselk", ours=..., theirs=peer, elements=x.size, threads=2)
    """

    def __init__(self, name: str, file: str, requirements: Sequence[str] = (), **arrays: np.ndarray):
        python = environment(name, requirements) if requirements else sys.executable
        command = [str(python), str(HERE / "worker.py"), str(HERE / file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._ask("prepare", arrays)
        except BaseException:
            self.close()
            raise

    def seconds(self, repeats: int) -> float:
        return float(self._ask("time", {"repeats": np.array(repeats)})["seconds"])

    def result(self) -> np.ndarray:
        """What the work returns, as an array."""
        return self._ask("result", {})["result"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process: it leaves when nobody speaks to it any more."""
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _ask(self, verb: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        send(self._process.stdin, verb, arrays)
        answer = receive(self._process.stdout)
        if answer is None:
            raise RuntimeError(f"the worker ended with exit code {self._process.wait()}")
        verb, arrays = answer
        if verb == "error":
            raise RuntimeError(f"the worker: {bytes(arrays['message']).decode()}")
        return arrays


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of `.venv-bench-NAME`, made where it is missing or was made from other requirements."""
    folder = ROOT / f".venv-bench-{name}"
    python, stamp = folder / "bin" / "python", folder / ".stamp"
    wanted = json.dumps(list(requirements))
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = shutil.which("uv") or str(ROOT / ".venv" / "bin" / "uv")
        ours = ("VIRTUAL_ENV", "UV_CONSTRAINT")
        outside = {key: value for key, value in os.environ.items() if key not in ours}
        subprocess.run(
            [uv, "venv", "-q", "--allow-existing", "-p", sys.executable, folder], check=True, env=outside
        )
        install = [uv, "pip", "install", "-q", "--python", python, "numpy", *requirements]
        subprocess.run(install, check=True, env=outside)
        stamp.write_text(wanted)
    return python


def send(pipe: Any, verb: str, arrays: Mapping[str, np.ndarray]) -> None:
    """One message: the length, then an npz whose first entry is the verb. Nothing is pickled."""
    buffer = io.BytesIO()
    np.savez(buffer, __verb__=np.array(verb), **arrays)
    pipe.write(struct.pack("<Q", buffer.tell()) + buffer.getvalue())
    pipe.flush()


def receive(pipe: Any) -> tuple[str, dict[str, np.ndarray]] | None:
    """The next message, or None where the other side has closed the pipe."""
    header = pipe.read(8)
    if len(header) < 8:
        return None
    with np.load(io.BytesIO(pipe.read(struct.unpack("<Q", header)[0])), allow_pickle=False) as message:
        arrays = dict(message)
    return str(arrays.pop("__verb__")), arrays
