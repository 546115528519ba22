"""Two machines that run the same kernels: CPU threads under the host shim, and a GPU through CuPy.

A machine is made from a .cu source and has one method, ``launch(kernel, grid, block, *args, shared=0)``. Arrays are
NumPy's and are written in place; Python ints go as ``long long``, floats as ``double``.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

__all__ = ["Gpu", "Nvrtc", "Shim"]

HEADER = Path(__file__).parent / "shim" / "cuda_shim.h"
KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)'
)
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([\w:<> ]+?)\s+(\w+)\s*\[\s*\]\s*;")


class Shim:
    """Compiles with the machine's g++ and runs on its threads."""

    def __init__(self, source: str, folder: Path) -> None:
        """`folder` is where the library is put."""
        compiler = shutil.which("g++")
        if compiler is None:
            raise FileNotFoundError("g++")
        # Macros first: a source may stamp its kernels out.
        done = subprocess.run(
            [compiler, "-E", "-P", "-x", "c++", "-"], input=source, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        source = done.stdout
        self._parameters = {name: _split(parameters) for name, parameters in KERNEL.findall(source)}
        source = DYNAMIC.sub(r"\1* \2 = static_cast<\1*>(shim::dynamic_shared());", source)
        unit, library = folder / "kernel.cpp", folder / "kernel.so"
        unit.write_text(source + "".join(map(self._launcher, self._parameters)))
        # No contraction, as NVRTC is told too: error-free sums and products mean what they say.
        options = [
            "-std=c++20",
            "-O2",
            "-march=native",
            "-ffp-contract=off",
            "-pthread",
            "-shared",
            "-fPIC",
            "-w",
        ]
        done = subprocess.run(
            [compiler, *options, "-include", str(HEADER), str(unit), "-o", str(library)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        self._library = ctypes.CDLL(str(library))

    def _launcher(self, name: str) -> str:
        parameters = self._parameters[name]
        names = ", ".join(re.findall(r"(\w+)$", p)[0] for p in parameters)
        return (
            f'\nextern "C" int shim_launch_{name}(const unsigned* d, unsigned long bytes, char* error, '
            f"{', '.join(parameters)}) {{\n"
            f"    const auto what = shim::run(dim3(d[0], d[1], d[2]), dim3(d[3], d[4], d[5]), bytes, "
            f"[&] {{ {name}({names}); }});\n"
            f'    std::snprintf(error, 1024, "%s", what.c_str());\n    return !what.empty();\n}}\n'
        )

    def launch(self, kernel: str, grid, block, *args, shared: int = 0) -> None:
        """Run to the end; RuntimeError says what a thread did wrong."""
        dims = (ctypes.c_uint * 6)(*_three(grid), *_three(block))
        error = ctypes.create_string_buffer(1024)
        given = [_c_value(p, a) for p, a in zip(self._parameters[kernel], args, strict=True)]
        if getattr(self._library, f"shim_launch_{kernel}")(dims, ctypes.c_ulong(shared), error, *given):
            raise RuntimeError(f"{kernel}: {error.value.decode()}")


class Gpu:
    """Compiles with NVRTC and runs on the current CUDA device, through CuPy."""

    def __init__(self, source: str) -> None:
        import cupy

        from mercer.nn._cuda import OPTIONS

        self._module = cupy.RawModule(code=source, options=OPTIONS)

    def launch(self, kernel: str, grid, block, *args, shared: int = 0) -> None:
        """Copy in, run, copy back."""
        import cupy

        held = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        given = [
            np.int64(a) if isinstance(a, int) else np.float64(a) if isinstance(a, float) else a for a in held
        ]
        self._module.get_function(kernel)(_three(grid), _three(block), tuple(given), shared_mem=shared)
        for host, device in zip(args, held, strict=True):
            if isinstance(host, np.ndarray) and host.flags.writeable:
                host[...] = cupy.asnumpy(device)


class Nvrtc:
    """NVIDIA's run-time compiler, which needs no GPU and no driver."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(self.find()))

    @staticmethod
    def find() -> Path:
        """The library that came with torch, or the system's; FileNotFoundError where there is none."""
        try:
            import nvidia

            for folder in nvidia.__path__:
                for library in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True):
                    return library
        except ImportError:
            pass
        for library in sorted(Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.*"), reverse=True):
            return library
        raise FileNotFoundError("libnvrtc")

    def architectures(self) -> list[int]:
        """The architectures this version compiles for, as 80, 90, …"""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(found))
        return list(found)

    def compile(self, source: str, options: list[str]) -> bytes:
        """The machine code; RuntimeError holds the compiler's log."""
        program = ctypes.c_void_p()
        self._check(
            self._library.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
            )
        )
        try:
            given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
            if self._library.nvrtcCompileProgram(program, len(options), given):
                raise RuntimeError(self._read(program, "ProgramLog").decode(errors="replace"))
            return self._read(program, "CUBIN")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, text))
        return text.raw

    def _check(self, code: int) -> None:
        if code:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(self._library.nvrtcGetErrorString(code).decode())


def _split(parameters: str) -> list[str]:
    return [" ".join(p.split()) for p in parameters.split(",") if p.strip()]


def _three(n) -> tuple[int, int, int]:
    n = (n,) if isinstance(n, int) else tuple(n)
    return (*n, 1, 1)[:3]


def _c_value(parameter: str, value):
    if isinstance(value, np.ndarray):
        assert "*" in parameter and value.flags.c_contiguous, parameter
        return ctypes.c_void_p(value.ctypes.data)
    kind = parameter.rsplit(" ", 1)[0].replace("const ", "")
    return {
        "double": ctypes.c_double,
        "float": ctypes.c_float,
        "int": ctypes.c_int,
        "unsigned": ctypes.c_uint,
        "long long": ctypes.c_longlong,
    }[kind](value)
