"""What every test runs under: hypothesis profiles, and no module collected that cannot be imported here."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "reference")]  # strategies; adapters, golden, run

slow_machine = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", **slow_machine)
settings.register_profile("ci", derandomize=True, print_blob=True, **slow_machine)
settings.register_profile("thorough", max_examples=2000, **slow_machine)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# Doctests import the module they stand in: without the extra it needs, it is left out.
NEEDS = {
    "torch": "python/mercer/nn",
    "typer": "python/mercer/cli.py",
    "rich": "python/mercer/_rank_command.py",
    "tokenizers": "python/mercer/tour",
}


def pytest_ignore_collect(collection_path, config):
    for package, place in NEEDS.items():
        if collection_path.is_relative_to(ROOT / place) and find_spec(package) is None:
            return True
    return None
