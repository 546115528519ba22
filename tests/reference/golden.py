"""Reference cases: weights and inputs made from their names, and the comparison with what was recorded.

A case is two files: `CASE.json` says what was run, `CASE.npz` holds what came out. A *model* case stores no
weights: whoever checks it makes the same ones from each entry's name and shape, puts them into a model of its
own and compares a sample of every output. All randomness is Philox, keyed by eight bytes of a SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 2048
"""How many values of an output are kept at most."""


def _normal(tag: str, shape: Sequence[int]) -> np.ndarray:
    key = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key)).standard_normal(tuple(int(n) for n in shape))


def fill(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The float32 weights called `name`.

    Variances are log-normal around 1, matrices and kernels are scaled by one over the root of their fan-in,
    biases and running means are small, and what is left (scales of normalisations, gates) is near 1.
    """
    z = _normal(f"{seed}:{name}", shape)
    fan_in = math.prod(z.shape[1:])
    if name.endswith("running_var"):
        z = np.exp(0.2 * z)
    elif z.ndim > 1 and fan_in > 1:
        z = z / math.sqrt(fan_in)
    elif name.endswith("bias") or name.endswith("running_mean"):
        z = 0.1 * z
    else:
        z = 1.0 + 0.1 * z
    return np.asarray(z, dtype=np.float32)


def make_input(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The float32 standard normal input of a seed."""
    return _normal(f"input:{seed}", shape).astype(np.float32)


def state(case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every weight of a model case by its name in the reference."""
    seed = case.get("seed", 0)
    return {name: fill(name, shape, seed) for name, shape in case["state"]}


def sample(values: np.ndarray) -> np.ndarray:
    """At most `SAMPLES` values, evenly spaced over the flattened array, both ends among them."""
    values = np.ravel(values)
    kept = min(SAMPLES, values.size)
    return values[np.linspace(0, values.size - 1, kept).astype(np.int64)]


def load(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The json and the arrays of a case; `path` with either suffix or none."""
    path = Path(path)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), dict(arrays)


def compare(path: str | Path, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The error of each output of a model case, in standard deviations of the reference's output.

    The error is the largest over the sampled values, the mean and the standard deviation. Raises ValueError
    for an output that is missing or has another shape.
    """
    case, recorded = load(path)
    errors = {}
    for name, shape in case["outputs"].items():
        if name not in outputs:
            raise ValueError(f"output {name!r} is missing")
        ours = np.asarray(outputs[name], dtype=np.float64)
        if ours.shape != tuple(shape):
            raise ValueError(f"output {name!r} must have shape {tuple(shape)}, got {ours.shape}")
        mean, deviation = recorded[f"{name}.moments"]
        differences = (
            np.abs(sample(ours) - recorded[name]).max(),
            abs(ours.mean() - mean),
            abs(ours.std() - deviation),
        )
        # np.max, not max: a NaN must not be lost in a comparison.
        errors[name] = float(np.max(differences) / max(float(deviation), 1e-12))
    return errors
