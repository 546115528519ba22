"""Run reference cases: `python tests/reference/run.py PATH...`

A path is a case (`CASE.json`, `CASE.npz` or `CASE`) or a folder, searched for cases. Prints one line a case:
ok or not, and the error of each output beside its tolerance. Exits 1 if a case fails or has no adapter, or if
there is none at all. How a case is run is picked by its `paper` and `entry`: see `adapters/__init__.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import adapters  # noqa: E402


def cases(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The json of every case among `paths`, in order."""
    for path in map(Path, paths):
        if path.is_dir():
            yield from (found for found in sorted(path.rglob("*.json")) if _is_case(found))
        else:
            yield path if path.suffix == ".json" else path.with_suffix(".json")


def check(path: Path) -> tuple[bool, str]:
    """Whether the case passes, and the line to print."""
    name = f"{path.parent.name}/{path.stem}"
    try:
        header = _header(path)
        if header is None:
            return False, f"FAILED {name}: not a case: it needs 'paper' and 'entry'"
        run = adapters.find(*header)
        if run is None:
            return False, f"FAILED {name}: no adapter for paper {header[0]!r}, entry {header[1]!r}"
        checks = list(run(path))
    except Exception as error:  # A case that cannot be run is a failed case; the others still run.
        return False, f"FAILED {name}: {type(error).__name__}: {error}"
    ok = bool(checks) and all(each.ok for each in checks)
    return (
        ok,
        f"{'ok    ' if ok else 'FAILED'} {name}: {'; '.join(map(str, checks)) or 'nothing was checked'}",
    )


def main(paths: list[str]) -> int:
    """Run and print; the exit code."""
    if not paths:
        print("usage: python tests/reference/run.py PATH...", file=sys.stderr)
        return 2
    passed = []
    for path in cases(paths):
        ok, line = check(path)
        passed.append(ok)
        print(line, flush=True)
    print(f"{sum(passed)} of {len(passed)} cases pass")
    return 0 if passed and all(passed) else 1


def _is_case(path: Path) -> bool:
    try:
        return _header(path) is not None
    except ValueError:
        return True  # Not JSON: `check` says so, rather than nobody.


def _header(path: Path) -> tuple[str, str] | None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"paper", "entry"} <= content.keys():
        return None
    return content["paper"], content["entry"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
