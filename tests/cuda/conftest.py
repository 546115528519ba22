"""The machines that kernels are tried on."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kernels import Gpu, Shim  # noqa: E402


@pytest.fixture(scope="session", params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request, tmp_path_factory):
    """source -> a machine that runs its kernels; each source is compiled once a session."""
    made = {}

    def make(source):
        if source not in made:
            made[source] = (
                Shim(source, tmp_path_factory.mktemp("shim")) if request.param == "shim" else Gpu(source)
            )
        return made[source]

    if request.param == "gpu":
        cupy = pytest.importorskip("cupy")
        if not cupy.cuda.is_available():
            pytest.skip("no CUDA device")
    else:
        import shutil

        if shutil.which("g++") is None:
            pytest.skip("no g++")
    return make
