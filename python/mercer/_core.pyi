from numpy.typing import NDArray

__version__: str

def bessel(name: str, v: NDArray, x: NDArray, out: NDArray, threads: int) -> bool: ...
def bessel_ratio_inverse(
    v: NDArray, ratio: NDArray, complement: NDArray, out: NDArray, threads: int
) -> None: ...
def cuda_source(name: str) -> str: ...
def first_negative(values: NDArray, threads: int) -> int | None: ...
def largest_entry(x: NDArray, name: str, threads: int | None = None) -> float: ...
def log_kernel_sums(
    x: NDArray,
    y: NDArray,
    kernel: str,
    bandwidths: NDArray,
    largest: float,
    out: NDArray,
    *,
    weights: NDArray | None = None,
    leave_out: NDArray | None = None,
    participation: NDArray | None = None,
    entropy: NDArray | None = None,
    threads: int | None = None,
) -> None: ...
def num_threads() -> int: ...
def simd_level() -> str: ...
def vmf_cosine_deficit(
    x: NDArray, mean: NDArray, normalize: bool, first_row: int = 0, threads: int | None = None
) -> NDArray: ...
def vmf_expectation(
    x: NDArray,
    directions: NDArray,
    concentrations: NDArray,
    log_scales: NDArray,
    normalize: bool,
    *,
    hard: bool = False,
    sums: bool = False,
    log_prob: NDArray | None = None,
    responsibilities: NDArray | None = None,
    labels: NDArray | None = None,
    first_row: int = 0,
    threads: int | None = None,
) -> tuple[float, NDArray, NDArray, NDArray | None]: ...
def vmf_moments(
    x: NDArray,
    weights: NDArray | None,
    pivot: NDArray,
    normalize: bool,
    first_row: int = 0,
    threads: int | None = None,
) -> tuple[float, float, float, NDArray]: ...
def vmf_sample(
    out: NDArray,
    mean: NDArray,
    kappa: float,
    seed: int,
    stream: int,
    first_row: int,
    threads: int | None = None,
) -> None: ...
def private_count(
    x: NDArray,
    low: NDArray,
    high: NDArray,
    clip: bool,
    counts: NDArray,
    first_row: int = 0,
    threads: int | None = None,
) -> None: ...
def private_noise(
    values: NDArray,
    lengths: list[int],
    gaussian: bool,
    nums: list[int],
    shifts: list[int],
    seed: int | None = None,
    stream: int = 0,
    threads: int | None = None,
) -> None: ...
def private_sum_up(trees: NDArray) -> None: ...
def public_normals(seed: int, rows: int, d: int) -> NDArray: ...

class PrivateTreeSums:
    def __init__(self, trees: NDArray, low: NDArray, high: NDArray) -> None: ...
    def query(self, y: NDArray, threads: int | None = None) -> NDArray: ...

class FourierFeatures:
    values: int
    @staticmethod
    def drawn(
        kernel: str,
        seed: int,
        m: int,
        d: int,
        bandwidth: float,
        *,
        phased: bool = False,
        structured: bool = False,
    ) -> FourierFeatures: ...
    @staticmethod
    def given(omega: NDArray, phases: NDArray | None = None) -> FourierFeatures: ...
    def add(
        self,
        x: NDArray,
        bits: int,
        sums: NDArray,
        starts: list[int],
        first_row: int = 0,
        threads: int | None = None,
    ) -> None: ...
    def query(
        self, y: NDArray, v: NDArray, threads: int | None = None
    ) -> tuple[NDArray, NDArray, NDArray]: ...
