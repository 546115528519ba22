// Chamfer similarity (MaxSim) of packed sets: out[document][query] = sum over the query's tokens of the largest product
// with a token of the document. No product is ever written to global memory.
//
// A block takes one query (blockIdx.y) and one document (blockIdx.x): QUERIES tokens of the query at a time pass by the
// document's tokens, ROWS at a time, in tiles of 4 x 4 products a thread over DEPTH columns in shared memory; a warp keeps
// the running maxima of 8 query tokens. The sum is taken in the order of the tokens.
// Source: Khattab and Zaharia 2020, "ColBERT"; the CPU face is rust/core/src/retrieval/chamfer.rs.

namespace {

constexpr int QUERIES = 32, ROWS = 64, DEPTH = 16, THREADS = 128, WARPS = THREADS / 32;
constexpr unsigned ALL = 0xFFFFFFFFu;

template <class T>
__device__ T warp_max(T value) {
    for (int apart = 16; apart > 0; apart /= 2) {
        const T other = __shfl_xor_sync(ALL, value, apart);
        value = other > value ? other : value;
    }
    return value;
}

// x (query tokens, columns), x_ends (queries + 1), y (document tokens, columns), y_ends (documents + 1),
// out (documents, queries). which: documents to score, in this order, where chosen.
template <class T>
__device__ void chamfer(const T* x, const long long* x_ends, const T* y, const long long* y_ends,
                        const long long* which, T* out, long long columns, long long chosen) {
    __shared__ T left[DEPTH][QUERIES + 1];
    __shared__ T right[DEPTH][ROWS + 1];
    __shared__ T tile[QUERIES][ROWS + 1];
    __shared__ T largest[QUERIES];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int across = thread % 16, down = thread / 16;  // 16 x 8 tiles of 4 document tokens, 4 query tokens
    const long long document = chosen ? which[blockIdx.x] : blockIdx.x;
    const long long x_end = x_ends[blockIdx.y + 1], begin = y_ends[document], end = y_ends[document + 1];
    const T lowest = -T(__longlong_as_double(0x7FF0000000000000LL));
    T total = T(0);

    for (long long first = x_ends[blockIdx.y]; first < x_end; first += QUERIES) {
        T most[QUERIES / WARPS];
        for (int q = 0; q < QUERIES / WARPS; ++q) most[q] = lowest;
        for (long long start = begin; start < end; start += ROWS) {
            T sum[4][4];
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) sum[i][j] = T(0);
            for (long long column = 0; column < columns; column += DEPTH) {
                for (int k = thread; k < DEPTH * QUERIES; k += THREADS) {
                    const long long row = first + k / DEPTH, at = column + k % DEPTH;
                    left[k % DEPTH][k / DEPTH] = row < x_end && at < columns ? x[row * columns + at] : T(0);
                }
                for (int k = thread; k < DEPTH * ROWS; k += THREADS) {
                    const long long row = start + k / DEPTH, at = column + k % DEPTH;
                    right[k % DEPTH][k / DEPTH] = row < end && at < columns ? y[row * columns + at] : T(0);
                }
                __syncthreads();
                for (int k = 0; k < DEPTH; ++k)
                    for (int i = 0; i < 4; ++i)
                        for (int j = 0; j < 4; ++j)
                            sum[i][j] = fma(left[k][4 * down + i], right[k][across + 16 * j], sum[i][j]);
                __syncthreads();
            }
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) {
                    const int row = across + 16 * j;
                    tile[4 * down + i][row] = start + row < end ? sum[i][j] : lowest;
                }
            __syncthreads();
            for (int q = 0; q < QUERIES / WARPS; ++q) {
                const int query = warp * (QUERIES / WARPS) + q;
                const T near = tile[query][lane], far = tile[query][lane + 32];
                const T here = warp_max(near > far ? near : far);
                most[q] = here > most[q] ? here : most[q];
            }
            __syncthreads();
        }
        for (int q = 0; q < QUERIES / WARPS; ++q)
            if (lane == 0) largest[warp * (QUERIES / WARPS) + q] = most[q];
        __syncthreads();
        if (thread == 0)
            for (int q = 0; q < QUERIES && first + q < x_end; ++q) total += largest[q];
        __syncthreads();
    }
    if (thread == 0) out[(long long)blockIdx.x * gridDim.y + blockIdx.y] = total;
}

}  // namespace

#define KERNELS(T, name)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128)                                                             \
        name(const T* x, const long long* x_ends, const T* y, const long long* y_ends, const long long* which,    \
             T* out, long long columns, long long chosen) {                                                       \
        chamfer<T>(x, x_ends, y, y_ends, which, out, columns, chosen);                                            \
    }

KERNELS(float, chamfer_f32)
KERNELS(double, chamfer_f64)
