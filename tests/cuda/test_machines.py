"""The machines themselves: kernels whose answers are known, and mistakes that the shim must catch."""

import numpy as np
import pytest
from kernels import Shim

REDUCTION = r"""
// The sum of n doubles: a strided load, warps by shuffles, the block by shared memory, the grid by an atomic.
extern "C" __global__ void reduce(const double* in, double* out, long long n) {
    __shared__ double of_warp[32];
    double sum = 0;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
        sum += in[i];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, step);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0) of_warp[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = lane < blockDim.x / 32 ? of_warp[lane] : 0;
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
        if (lane == 0) atomicAdd(out, sum);
    }
}
"""

SCAN = r"""
// Inclusive prefix sums within a block of up to 1024, in dynamic shared memory, two barriers a step.
extern "C" __global__ void scan(const int* in, int* out) {
    extern __shared__ int held[];
    const int i = threadIdx.x, at = blockIdx.x * blockDim.x + i;
    held[i] = in[at];
    __syncthreads();
    for (int step = 1; step < blockDim.x; step *= 2) {
        const int left = i >= step ? held[i - step] : 0;
        __syncthreads();
        held[i] += left;
        __syncthreads();
    }
    out[at] = held[i];
}
"""

VOTES = r"""
extern "C" __global__ void votes(const int* in, unsigned* ballots, int* flags, int* rotated, int* high) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    ballots[i] = __ballot_sync(0xFFFFFFFFu, in[i] & 1);
    flags[2 * i] = __any_sync(0xFFFFFFFFu, in[i] == 7);
    flags[2 * i + 1] = __syncthreads_count(in[i] > 3);
    rotated[i] = __shfl_sync(0xFFFFFFFFu, in[i], threadIdx.x + 1, 8);
    atomicMax(high, in[i]);
}
"""

EARLY = r"""
// Threads that are past the end leave before the barrier the others meet at.
extern "C" __global__ void early(const double* in, double* out, int n) {
    __shared__ double total;
    const int i = threadIdx.x;
    if (i >= n) return;
    if (i == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, in[i]);
    __syncthreads();
    out[i] = total;
}
"""

GRID = r"""
extern "C" __global__ void where(int* out) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int all = blockDim.x * blockDim.y * blockDim.z;
    out[block * all + thread] = 1000 * block + thread;
}
"""


@pytest.mark.parametrize("block", [32, 64, 256])
def test_reduction_with_barriers_shuffles_and_an_atomic(machine, block):
    data = (
        np.random.default_rng(0).integers(-50, 50, 5003).astype(np.float64)
    )  # Whole: the sum has no rounding.
    out = np.zeros(1)
    machine(REDUCTION).launch("reduce", 3, block, data, out, len(data))
    assert out[0] == data.sum()


@pytest.mark.parametrize("block", [1, 2, 33, 200])
def test_scan_in_dynamic_shared_memory(machine, block):
    data = np.random.default_rng(1).integers(-9, 9, (4, block)).astype(np.int32)
    out = np.empty_like(data)
    machine(SCAN).launch("scan", 4, block, data, out, shared=4 * block)
    np.testing.assert_array_equal(out, np.cumsum(data, axis=1, dtype=np.int32))


def test_votes_counts_segments_and_maximum(machine):
    data = np.random.default_rng(2).integers(0, 9, (2, 64)).astype(np.int32)
    ballots = np.zeros((2, 64), np.uint32)
    flags = np.zeros((2, 64, 2), np.int32)
    rotated, high = np.zeros((2, 64), np.int32), np.full(1, -1, np.int32)
    machine(VOTES).launch("votes", 2, 64, data, ballots, flags, rotated, high)
    warps = data.reshape(4, 32)
    expected = ((warps & 1) << np.arange(32)).sum(1).astype(np.uint32)
    np.testing.assert_array_equal(ballots.reshape(4, 32), np.repeat(expected[:, None], 32, 1))
    np.testing.assert_array_equal(flags[..., 0].reshape(4, 32)[:, 0], (warps == 7).any(1))
    np.testing.assert_array_equal(flags[..., 1], np.repeat((data > 3).sum(1)[:, None], 64, 1))
    np.testing.assert_array_equal(rotated.reshape(-1, 8), np.roll(data.reshape(-1, 8), -1, 1))
    assert high[0] == data.max()


def test_a_barrier_waits_only_for_threads_that_are_still_there(machine):
    data, out = np.arange(40, dtype=np.float64), np.zeros(40)
    machine(EARLY).launch("early", 1, 64, data, out, np.int32(40))
    assert (out == data.sum()).all()


def test_indices_in_three_dimensions(machine):
    out = np.zeros((2 * 3 * 2, 4 * 3 * 2), np.int32)
    machine(GRID).launch("where", (2, 3, 2), (4, 3, 2), out)
    np.testing.assert_array_equal(out, 1000 * np.arange(12)[:, None] + np.arange(24))


def test_the_shim_says_when_threads_never_meet(tmp_path, monkeypatch):
    import kernels

    impatient = kernels.HEADER.read_text().replace(
        "std::chrono::seconds(20)", "std::chrono::milliseconds(300)"
    )
    (tmp_path / "cuda_shim.h").write_text(impatient)
    monkeypatch.setattr(kernels, "HEADER", tmp_path / "cuda_shim.h")
    source = """extern "C" __global__ void stuck(int* out) {
        if (threadIdx.x < 16) __syncwarp(); else __syncthreads();
        out[threadIdx.x] = 1;
    }"""
    with pytest.raises(RuntimeError, match="stuck: .*of 32 threads came; the others wait elsewhere"):
        Shim(source, tmp_path).launch("stuck", 1, 32, np.zeros(32, np.int32))


def test_the_shim_refuses_a_shuffle_from_outside_the_mask(tmp_path):
    source = """extern "C" __global__ void outside(int* out) {
        if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0xFFFFu, out[threadIdx.x], 8);
    }"""
    with pytest.raises(RuntimeError, match="reads a lane outside the mask"):
        Shim(source, tmp_path).launch("outside", 1, 32, np.zeros(32, np.int32))


def test_the_shim_finds_a_missing_barrier_in_shared_memory(tmp_path):
    # Without the second barrier of a step, threads overwrite what others have yet to read.
    broken = SCAN.replace("const int left = i >= step ? held[i - step] : 0;\n        __syncthreads();",
                          "const int left = i >= step ? held[i - step] : 0;")  # fmt: skip
    assert broken != SCAN
    shim = Shim(broken, tmp_path)
    data = np.ones((40, 256), np.int32)
    out = np.empty_like(data)
    shim.launch("scan", 40, 256, data, out, shared=4 * 256)
    assert (out != np.cumsum(data, axis=1)).any()
