// Sums of exponential kernels over data, for a grid of bandwidths in one pass over the distances:
//   sum over j of w_j exp(-t(x_i, y_j) scale_h),  t = |x - y|^2 (Gaussian) or |x - y| (exponential),
// as the least t of each query and the sums relative to it: a streaming log-sum-exp, nothing of size n x m is made.
//
// A block takes QUERIES queries and the data of its slice (blockIdx.y of gridDim.y), ROWS rows at a time. Its 128 threads
// hold a 4 x 4 tile of distances each, sums of squared differences over DEPTH columns at a time from shared memory; then
// each warp takes 8 queries, and lane h of it keeps the sum of bandwidth h. The slices are merged by the caller.
// Source: rust/core/src/density, of which this is the CUDA face; Biroli and Mezard, arXiv 2408.05807, for its use.

namespace {

constexpr int QUERIES = 32, ROWS = 64, DEPTH = 16, THREADS = 128, WARPS = THREADS / 32;
constexpr int GRID = 32;  // bandwidths a launch, one a lane
constexpr unsigned ALL = 0xFFFFFFFFu;

template <class T>
__device__ T infinity() {
    return T(__longlong_as_double(0x7FF0000000000000LL));
}

template <class T>
__device__ T warp_min(T value) {
    for (int apart = 16; apart > 0; apart /= 2) {
        const T other = __shfl_xor_sync(ALL, value, apart);
        value = other < value ? other : value;
    }
    return value;
}

template <class T>
__device__ T warp_sum(T value) {
    for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL, value, apart);
    return value;
}

// x (m, columns), y (n, columns), weights (n) read where weighted, scales (grid) or, scale_step apart, one row a query;
// least (slices, m), sums (slices, m, grid). leave_out: query i leaves out row i.
template <class T>
__device__ void kernel_sums(const T* x, const T* y, const T* weights, const T* scales, T* least, T* sums, long long m,
                            long long n, long long columns, long long grid, long long scale_step, long long weighted,
                            long long leave_out, long long root) {
    __shared__ T left[DEPTH][QUERIES + 1];
    __shared__ T right[DEPTH][ROWS + 1];
    __shared__ T tile[QUERIES][ROWS + 1];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int across = thread % 16, down = thread / 16;  // 16 x 8 tiles of 4 rows of data, 4 queries
    const long long first = (long long)blockIdx.x * QUERIES;
    const long long slice = (n + gridDim.y - 1) / gridDim.y;
    const long long begin = slice * blockIdx.y, end = begin + slice < n ? begin + slice : n;

    T lowest[QUERIES / WARPS], sum[QUERIES / WARPS];
    for (int q = 0; q < QUERIES / WARPS; ++q) lowest[q] = infinity<T>(), sum[q] = T(0);

    for (long long start = begin; start < end; start += ROWS) {
        T apart[4][4];
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) apart[i][j] = T(0);
        for (long long column = 0; column < columns; column += DEPTH) {
            for (int k = thread; k < DEPTH * QUERIES; k += THREADS) {
                const long long row = first + k / DEPTH, at = column + k % DEPTH;
                left[k % DEPTH][k / DEPTH] = row < m && at < columns ? x[row * columns + at] : T(0);
            }
            for (int k = thread; k < DEPTH * ROWS; k += THREADS) {
                const long long row = start + k / DEPTH, at = column + k % DEPTH;
                right[k % DEPTH][k / DEPTH] = row < end && at < columns ? y[row * columns + at] : T(0);
            }
            __syncthreads();
            for (int k = 0; k < DEPTH; ++k)
                for (int i = 0; i < 4; ++i)
                    for (int j = 0; j < 4; ++j) {
                        const T u = left[k][4 * down + i] - right[k][across + 16 * j];
                        apart[i][j] = fma(u, u, apart[i][j]);
                    }
            __syncthreads();
        }
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) {
                const int query = 4 * down + i, row = across + 16 * j;
                const long long at = start + row;
                const bool counts =
                    at < end && !(leave_out && first + query == at) && !(weighted && weights[at] == T(0));
                tile[query][row] = counts ? (root ? T(sqrt(apart[i][j])) : apart[i][j]) : infinity<T>();
            }
        __syncthreads();
        for (int q = 0; q < QUERIES / WARPS; ++q) {
            const int query = warp * (QUERIES / WARPS) + q;
            if (first + query >= m) break;
            const T near = tile[query][lane], far = tile[query][lane + 32];
            const T here = warp_min(near < far ? near : far);
            if (here == infinity<T>()) continue;
            const long long own = (first + query) * scale_step;
            if (here < lowest[q]) {
                const T scale = lane < grid ? scales[own + lane] : T(0);
                sum[q] = lowest[q] == infinity<T>() ? T(0) : sum[q] * T(exp((here - lowest[q]) * scale));
                lowest[q] = here;
            }
            const long long row = start + lane;
            const T w_near = weighted && row < end ? weights[row] : T(1);
            const T w_far = weighted && row + 32 < end ? weights[row + 32] : T(1);
            for (int h = 0; h < grid; ++h) {
                const T scale = scales[own + h];
                const T e = w_near * T(exp((lowest[q] - near) * scale)) + w_far * T(exp((lowest[q] - far) * scale));
                const T total = warp_sum(e);
                if (lane == h) sum[q] += total;
            }
        }
        __syncthreads();
    }
    for (int q = 0; q < QUERIES / WARPS; ++q) {
        const long long query = first + warp * (QUERIES / WARPS) + q;
        if (query >= m) break;
        const long long at = (long long)blockIdx.y * m + query;
        if (lane == 0) least[at] = lowest[q];
        if (lane < grid) sums[at * grid + lane] = sum[q];
    }
}

}  // namespace

#define KERNELS(T, name)                                                                                             \
    extern "C" __global__ void __launch_bounds__(128)                                                                \
        name(const T* x, const T* y, const T* weights, const T* scales, T* least, T* sums, long long m, long long n, \
             long long columns, long long grid, long long scale_step, long long weighted, long long leave_out,       \
             long long root) {                                                                                       \
        kernel_sums<T>(x, y, weights, scales, least, sums, m, n, columns, grid, scale_step, weighted, leave_out, root);\
    }

KERNELS(float, kernel_sums_f32)
KERNELS(double, kernel_sums_f64)
