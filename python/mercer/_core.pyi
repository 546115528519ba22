from collections.abc import Sequence

from numpy.typing import NDArray

__version__: str

def bessel(name: str, v: NDArray, x: NDArray, out: NDArray, threads: int) -> bool: ...
def bessel_ratio_inverse(
    v: NDArray, ratio: NDArray, complement: NDArray, out: NDArray, threads: int
) -> None: ...
def chamfer(
    queries: NDArray,
    query_offsets: NDArray,
    documents: NDArray,
    offsets: NDArray,
    out: NDArray,
    which: NDArray | None = None,
    threads: int | None = None,
) -> None: ...
def cluster_sets(
    tokens: NDArray,
    offsets: NDArray,
    clusters: NDArray,
    init: str,
    seed: int,
    iterations: int,
    reseed: bool,
    given: NDArray | None = None,
    threads: int | None = None,
) -> tuple[NDArray, NDArray, NDArray, NDArray]: ...
def cuda_source(name: str) -> str: ...
def fde_sketch(seed: int, stream: int, length: int, size: int) -> tuple[NDArray, NDArray]: ...
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
def neighborhood_attention(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    axes: list[tuple[int, int, int, int, bool]],
    scale: float,
    out: NDArray,
    lse: NDArray,
    threads: int | None = None,
) -> None: ...
def neighborhood_attention_gradients(
    given: tuple[NDArray | None, ...],
    wanted: tuple[NDArray, NDArray, NDArray],
    axes: list[tuple[int, int, int, int, bool]],
    scale: float,
    threads: int | None = None,
) -> None: ...
def neighborhood_products(
    query: NDArray,
    key: NDArray,
    axes: list[tuple[int, int, int, int, bool]],
    out: NDArray,
    threads: int | None = None,
) -> None: ...
def neighborhood_aggregate(
    weights: NDArray,
    rows: NDArray,
    axes: list[tuple[int, int, int, int, bool]],
    out: NDArray,
    threads: int | None = None,
) -> None: ...
def neighborhood_inverse(
    weights: NDArray,
    rows: NDArray,
    axes: list[tuple[int, int, int, int, bool]],
    out: NDArray,
    threads: int | None = None,
) -> None: ...
def lsh_bits(seed: int, stream: int, rows: int, columns: int) -> NDArray: ...
def lsh_cross_polytope(
    x: NDArray,
    rotations: NDArray,
    fast: bool,
    hashes: int,
    axes: int,
    out: NDArray,
    threads: int | None = None,
) -> None: ...
def lsh_e2(
    x: NDArray,
    directions: NDArray,
    shifts: NDArray,
    width: float,
    out: NDArray,
    threads: int | None = None,
) -> None: ...
def lsh_minhash(
    items: NDArray, offsets: NDArray, orders: NDArray, out: NDArray, threads: int | None = None
) -> None: ...
def lsh_normals(seed: int, stream: int, rows: int, columns: int) -> NDArray: ...
def lsh_simhash(
    x: NDArray, planes: NDArray, gray: bool, out: NDArray, threads: int | None = None
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
def private_trees(leaves: NDArray) -> NDArray: ...
def private_moments(
    x: NDArray,
    bounds: NDArray | None,
    centre: NDArray,
    radius: float | None,
    clip: bool,
    steps: float,
    bits: int,
    limit: NDArray,
    most: tuple[int, int],
    sums: NDArray,
    starts: list[int],
    first_row: int = 0,
    threads: int | None = None,
    order: NDArray | None = None,
    unit: bool = False,
) -> None: ...
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
        order: NDArray | None = None,
        unit: bool = False,
    ) -> None: ...
    def query(
        self, y: NDArray, v: NDArray, threads: int | None = None
    ) -> tuple[NDArray, NDArray, NDArray]: ...

class FdeEncoder:
    def __init__(
        self,
        planes: NDArray,
        projections: NDArray | None,
        fill: bool,
        final_dim: int | None = None,
        dense: bool = False,
        places: NDArray | None = None,
        signs: NDArray | None = None,
        matrix: NDArray | None = None,
        seed: int = 0,
        stream: int = 0,
    ) -> None: ...
    def encode(
        self, tokens: NDArray, offsets: NDArray, queries: bool, out: NDArray, threads: int | None = None
    ) -> None: ...
    def encode_sparse(
        self, tokens: NDArray, offsets: NDArray, threads: int | None = None
    ) -> tuple[NDArray, NDArray, NDArray]: ...
    def partition(self, tokens: NDArray, out: NDArray, threads: int | None = None) -> None: ...

class PqCodebooks:
    def __init__(self, dim: int, data: NDArray) -> None: ...
    @staticmethod
    def fit(
        x: NDArray,
        block: int,
        centers: int,
        iterations: int,
        seed: int,
        out: NDArray,
        threads: int | None = None,
    ) -> None: ...
    def encode(self, x: NDArray, codes: NDArray, threads: int | None = None) -> None: ...
    def scores(self, queries: NDArray, codes: NDArray, threads: int | None = None) -> NDArray: ...

class RankBatch:
    @staticmethod
    def from_codes(columns: Sequence[tuple[NDArray, list[bytes]]], rows: int) -> RankBatch: ...
    @staticmethod
    def from_integers(columns: Sequence[NDArray], rows: int) -> RankBatch: ...
    def __len__(self) -> int: ...
    @property
    def rows(self) -> int: ...
    def codes(self, i: int) -> NDArray: ...
    def counts(self, i: int) -> NDArray: ...
    def ranks(self, i: int) -> NDArray: ...
    def hashes(self, i: int) -> NDArray: ...
    def values(self, i: int) -> list[bytes]: ...
    def cardinalities(self) -> list[int]: ...
    def bytes_per_value(self) -> list[float]: ...
    def missing_share(self, missing: list[bytes]) -> list[float]: ...
    def select(self, which: list[int]) -> RankBatch: ...
    def extended(self, others: list[RankBatch]) -> RankBatch: ...
    def interactions(self, tuples: list[list[int]], concatenate: bool, threads: int | None) -> RankBatch: ...
    def relabelled(self, i: int, labels: list[bytes]) -> RankBatch: ...
    def transformed(
        self, i: int, numbers: NDArray, majority: float, nan: float, threads: int | None
    ) -> tuple[RankBatch, list[int]]: ...
    def score(
        self,
        pairs: Sequence[tuple[int, int]],
        name: str,
        *,
        first: bool = False,
        by_sum: bool = False,
        rounds: int = 1,
        seed: int = 0,
        weights: NDArray | None = None,
        ratio: float = 1.0,
        threads: int | None = None,
    ) -> NDArray: ...

class RankReader:
    def __init__(
        self,
        paths: list[str],
        *,
        delimiter: int | None,
        quotes: bool,
        by_line: bool,
        names: list[str] | None,
        skip_header: bool,
        namespaces: list[str],
        wanted: list[str] | None,
        utf8: bool,
        every: int,
        max_line: int,
        block: int,
        threads: int | None,
    ) -> None: ...
    def next_batch(self, rows: int) -> RankBatch | None: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def all_names(self) -> list[str]: ...
    @property
    def progress(self) -> tuple[int, int]: ...
    @property
    def skipped(self) -> tuple[int, int, int, int, int]: ...
    @property
    def first_bad(self) -> tuple[int, str] | None: ...

class RankTables:
    def __init__(
        self, values: int, repetitions: int, exact: int, precision: int, missing: list[bytes]
    ) -> None: ...
    def observe(
        self,
        batch: RankBatch,
        names: list[str],
        label: int | None = None,
        before: bool = False,
        threads: int | None = None,
    ) -> None: ...
    def merge(self, other: RankTables) -> None: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: bytes) -> RankTables: ...
    @property
    def names(self) -> list[str]: ...
    def summary(self, name: str) -> tuple[int, int, int, float, bool, bool] | None: ...
    def more_than(self, name: str, n: int) -> int | None: ...
    def rare(self, name: str, n: int) -> list[tuple[bytes, int]] | None: ...
    def labels(self) -> list[tuple[bytes, int]]: ...
    def score(self, name: str, score: str, *, rounds: int = 1, seed: int = 0) -> float | None: ...

class RankHyperLogLog:
    def __init__(self, precision: int, warm_up: int) -> None: ...
    def add(self, values: list[bytes]) -> None: ...
    def merge(self, other: RankHyperLogLog) -> None: ...
    def estimate(self) -> float: ...
    def parts(self) -> tuple[int, int, list[int], bytes]: ...
    @staticmethod
    def from_parts(
        precision: int, warm_up: int, few: list[int], registers: bytes
    ) -> RankHyperLogLog | None: ...

class RankCountMin:
    def __init__(self, width: int, depth: int) -> None: ...
    def add(self, value: bytes, times: int) -> None: ...
    def estimate(self, value: bytes) -> int: ...
    def merge(self, other: RankCountMin) -> bool: ...

def rank_information(columns: Sequence[NDArray], b: NDArray, threads: int | None = None) -> NDArray: ...
def rank_expected(a: NDArray, b: NDArray, n: int) -> float: ...
def rank_3mr(
    relevance: NDArray, redundancy: NDArray, relation: NDArray, alpha: float, beta: float, strategy: str
) -> list[tuple[int, float]]: ...
def rank_xxh64(value: bytes) -> int: ...
def gelu(x: NDArray, out: NDArray, derivative: bool = False, threads: int | None = None) -> None: ...
def depthwise_method(sizes: Sequence[int], kernel: tuple[int, int]) -> str: ...
def depthwise_convolve(
    x: NDArray,
    kernel: NDArray,
    bias: NDArray | None,
    turned: bool,
    out: NDArray,
    dilation: int = 1,
    method_name: str | None = None,
    threads: int | None = None,
) -> None: ...
def depthwise_weight_gradient(
    x: NDArray,
    gradient: NDArray,
    out: NDArray,
    dilation: int = 1,
    method_name: str | None = None,
    threads: int | None = None,
) -> None: ...
