"""Every kernel source compiles for the GPUs in use, and is what the extension carries. No GPU is needed."""

import time
from pathlib import Path

import pytest
from kernels import Nvrtc

SOURCES = sorted((Path(__file__).parents[2] / "cuda").glob("*.cu"))


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return Nvrtc()
    except (FileNotFoundError, OSError) as error:
        pytest.skip(
            f"NVRTC is not here ({error}): it comes with torch, or pip install nvidia-cuda-nvrtc-cu12"
        )


def test_there_are_sources():
    assert SOURCES


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles(nvrtc, source, architecture, record_property):
    cuda = pytest.importorskip("mercer.nn._cuda", exc_type=ImportError)
    if architecture not in nvrtc.architectures():
        pytest.skip(f"this NVRTC is older than sm_{architecture}")
    start = time.perf_counter()
    code = nvrtc.compile(source.read_text(), [f"--gpu-architecture=sm_{architecture}", *cuda.OPTIONS])
    record_property("seconds", time.perf_counter() - start)
    assert code[:4] == b"\x7fELF"


def test_a_mistake_is_told_with_its_line(nvrtc):
    with pytest.raises(RuntimeError, match=r"kernel.cu\(1\): error"):
        nvrtc.compile("__global__ void k() { undeclared = 1; }", ["--gpu-architecture=sm_80"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_extension_carries_the_source(source):
    from mercer import _core

    assert _core.cuda_source(source.stem) == source.read_text()


def test_an_unknown_family_is_a_key_error():
    from mercer import _core

    with pytest.raises(KeyError, match="no_such"):
        _core.cuda_source("no_such")
