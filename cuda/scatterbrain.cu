// The exact part of Scatterbrain on its sparse support: tiles of queries and keys, such as the equal clusters of two orders
// sorted by a hash. For every query of a tile: the largest score, the sum over the tile's keys of A v relative to its
// exponential, and the sum of phi(q)·phi(k) v, the estimate that the exact values replace. Rows of v end with a 1, so that
// the last column of both sums adds up the weights.
//
// A block takes up to QUERIES queries of a tile and goes over its keys, KEYS at a time, through shared memory, with a
// streaming softmax. count says in how many tiles a pair is (its share is one over that), 0 that it does not count.
// Source: Chen, Dao, Winsor, Song, Rudra and Ré 2021, section 4; the plain form is _on_support in
// python/mercer/nn/attention/scatterbrain/_estimator.py.

namespace {

constexpr int QUERIES = 32, KEYS = 32, DEPTH = 32, WIDTH = 256, THREADS = 128;
constexpr unsigned ALL = 0xFFFFFFFFu;

__device__ float quad_max(float x) {
    float other = __shfl_xor_sync(ALL, x, 1);
    x = other > x ? other : x;
    other = __shfl_xor_sync(ALL, x, 2);
    return other > x ? other : x;
}

// product[j] += rows of x (n, columns) at left, times rows of y at right + 4 j, for the thread's query and its keys.
__device__ void products(float (*left)[DEPTH + 1], float (*right)[DEPTH + 1], const float* x, const float* y,
                         const long long* at_x, const long long* at_y, int many_x, int many_y, long long columns,
                         float* product) {
    const int row = threadIdx.x / 4, quad = threadIdx.x % 4;
    for (long long column = 0; column < columns; column += DEPTH) {
        __syncthreads();
        for (int i = threadIdx.x; i < QUERIES * DEPTH; i += THREADS) {
            const int r = i / DEPTH, c = i % DEPTH;
            const bool there = column + c < columns;
            left[r][c] = there && r < many_x ? x[at_x[r] * columns + column + c] : 0.0f;
            right[r][c] = there && r < many_y ? y[at_y[r] * columns + column + c] : 0.0f;
        }
        __syncthreads();
        for (int j = 0; j < KEYS / 4; ++j)
            for (int c = 0; c < DEPTH; ++c) product[j] += left[row][c] * right[quad + 4 * j][c];
    }
}

}  // namespace

// q (N, t, dim), k (N, s, dim), v (N, s, value_dim), fq (N, t, m), fk (N, s, m); queries (N or 1, tiles, a), keys
// (N or 1, tiles, b), count (N or 1, tiles, a, b): own_* says whether each problem has its own.
// top (N, tiles, a); exact and low (N, tiles, a, value_dim), value_dim <= WIDTH.
extern "C" __global__ void __launch_bounds__(128)
    tiles(const float* q, const float* k, const float* v, const float* fq, const float* fk, const long long* queries,
          const long long* keys, const signed char* count, float* top, float* exact, float* low, long long t, long long s,
          long long dim, long long value_dim, long long m, long long many, long long a, long long b,
          long long own_queries, long long own_keys, long long own_count, double temperature) {
    __shared__ float left[QUERIES][DEPTH + 1];
    __shared__ float right[KEYS][DEPTH + 1];
    __shared__ float weights[QUERIES][KEYS + 1];
    __shared__ float estimates[QUERIES][KEYS + 1];
    __shared__ long long at_q[QUERIES];
    __shared__ long long at_k[KEYS];
    const long long pieces = (a + QUERIES - 1) / QUERIES, tile = blockIdx.x / pieces, problem = blockIdx.y;
    const long long first = blockIdx.x % pieces * QUERIES;
    const int here = (int)(a - first < QUERIES ? a - first : QUERIES);
    const int row = threadIdx.x / 4, quad = threadIdx.x % 4;
    queries += (problem * own_queries * many + tile) * a + first;
    keys += (problem * own_keys * many + tile) * b;
    count += ((problem * own_count * many + tile) * a + first) * b;
    q += problem * t * dim, k += problem * s * dim, v += problem * s * value_dim, fq += problem * t * m, fk += problem * s * m;
    if (threadIdx.x < here) at_q[threadIdx.x] = queries[threadIdx.x];

    float sums[WIDTH / 4], estimated[WIDTH / 4], most = -1e30f;
    for (int i = 0; i < WIDTH / 4; ++i) sums[i] = estimated[i] = 0.0f;
    for (long long start = 0; start < b; start += KEYS) {
        const int there = (int)(b - start < KEYS ? b - start : KEYS);
        __syncthreads();
        if (threadIdx.x < there) at_k[threadIdx.x] = keys[start + threadIdx.x];
        float score[KEYS / 4], estimate[KEYS / 4];
        for (int j = 0; j < KEYS / 4; ++j) score[j] = estimate[j] = 0.0f;
        products(left, right, q, k, at_q, at_k, here, there, dim, score);
        if (m > 0) products(left, right, fq, fk, at_q, at_k, here, there, m, estimate);
        float largest = most;
        for (int j = 0; j < KEYS / 4; ++j) {
            const int column = quad + 4 * j;
            const int times = row < here && column < there ? count[row * b + start + column] : 0;
            score[j] = times > 0 ? score[j] * (float)temperature - logf((float)times) : -1e30f;
            estimates[row][column] = times > 0 ? estimate[j] / (float)times : 0.0f;
            largest = score[j] > largest ? score[j] : largest;
        }
        largest = quad_max(largest);
        const float shrink = expf(most - largest);
        most = largest;
        for (int j = 0; j < KEYS / 4; ++j) weights[row][quad + 4 * j] = score[j] > -1e29f ? expf(score[j] - most) : 0.0f;
        __syncthreads();
        for (int i = 0; 4 * i + quad < (int)value_dim; ++i) {
            float sum = sums[i] * shrink, other = estimated[i];
            for (int column = 0; column < there; ++column) {
                const float x = v[at_k[column] * value_dim + 4 * i + quad];
                sum += weights[row][column] * x;
                other += estimates[row][column] * x;
            }
            sums[i] = sum, estimated[i] = other;
        }
    }
    if (row >= here) return;
    const long long at = (problem * many + tile) * a + first + row;
    if (quad == 0) top[at] = most;
    for (int i = 0; 4 * i + quad < (int)value_dim; ++i) {
        exact[at * value_dim + 4 * i + quad] = sums[i];
        if (m > 0) low[at * value_dim + 4 * i + quad] = estimated[i];
    }
}
