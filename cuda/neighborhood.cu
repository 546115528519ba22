// Softmax attention over neighborhoods of a grid of up to three axes, forward and backward, without weights in memory.
//
// A block takes a tile of queries (forward, gradient of queries) or of keys (gradient of keys and values) that are
// neighbours along the last axis of a dilation group. They share their windows on the other axes, so the block goes over
// whole pieces of rows on the other side, a chunk at a time through shared memory, with the streaming softmax of flash
// attention. The queries that see a key are contiguous along each axis too (both ends of a window never go back), found by
// bisection: no atomics, the same bits every time. Accumulation is in float32 for every type of input.
//
// Tensors are (batch, tokens, heads, columns), as many as 128 columns. geometry: batch, heads, kv_heads, dim, value_dim,
// then length, window, stride, dilation, causal of three axes (missing ones first: 1, 1, 1, 1, 0).
// Source: rust/core/src/neighborhood, of which this is the CUDA face; Hassani, Hwu and Shi 2024, section 3.

struct Half {
    unsigned short bits;
};
struct Brain {
    unsigned short bits;
};

namespace {

constexpr int COLUMNS = 128, THREADS = 128, QUADS = THREADS / 4;
constexpr int TILE = 32;   // queries and keys of a chunk, forward
constexpr int SMALL = 16;  // backward
constexpr unsigned ALL = 0xFFFFFFFFu;

__device__ float bits_as_float(unsigned bits) { return __int_as_float((int)bits); }
__device__ unsigned float_as_bits(float x) { return (unsigned)__float_as_int(x); }

__device__ float load(const float* from, long long at) { return from[at]; }
__device__ float load(const Brain* from, long long at) { return bits_as_float((unsigned)from[at].bits << 16); }
__device__ float load(const Half* from, long long at) {
    const unsigned h = from[at].bits, magnitude = h & 0x7FFFu;
    float x = bits_as_float(magnitude << 13) * 5.192296858534828e33f;  // 2^112: the exponents' bias
    if (magnitude >= 0x7C00u) x = bits_as_float((magnitude << 13) | 0x7F800000u);
    return h & 0x8000u ? -x : x;
}

__device__ void store(float* to, long long at, float x) { to[at] = x; }
__device__ void store(Brain* to, long long at, float x) {
    const unsigned b = float_as_bits(x);
    const bool nan = (b & 0x7FFFFFFFu) > 0x7F800000u;
    to[at].bits = (unsigned short)(nan ? (b >> 16) | 0x40u : (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16);
}
__device__ void store(Half* to, long long at, float x) {
    const unsigned b = float_as_bits(x), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7FFFFFFFu;
    unsigned h;
    if (magnitude > 0x7F800000u) {
        h = 0x7E00u;
    } else if (magnitude >= 0x477FF000u) {
        h = 0x7C00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: the addition rounds
        h = float_as_bits(bits_as_float(magnitude) + 0.5f) - 0x3F000000u;
    } else {
        h = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    }
    to[at].bits = (unsigned short)(sign | h);
}

struct Axis {
    long long length, window, stride, dilation, causal;

    // Tokens of a dilation group.
    __device__ long long group(long long g) const { return (length - g + dilation - 1) / dilation; }
    // The first and one past the last position that query j of a group of m sees.
    __device__ long long start(long long m, long long j) const {
        const long long block = j / stride * stride;
        if (causal) {
            const long long leader = block + stride - 1 < m - 1 ? block + stride - 1 : m - 1;
            return leader + 1 > window ? leader + 1 - window : 0;
        }
        const long long leader = block + stride / 2 < m - 1 ? block + stride / 2 : m - 1;
        const long long first = leader - window / 2 > 0 ? leader - window / 2 : 0;
        return first < m - window ? first : m - window;
    }
    __device__ long long end(long long m, long long j) const { return causal ? j + 1 : start(m, j) + window; }
    // The first query whose window ends after position t, and one past the last whose window starts at or before it.
    __device__ long long first_seer(long long m, long long t) const {
        long long low = 0, high = m;
        while (low < high) {
            const long long middle = (low + high) / 2;
            if (end(m, middle) > t) high = middle;
            else low = middle + 1;
        }
        return low;
    }
    __device__ long long last_seer(long long m, long long t) const {
        long long low = 0, high = m;
        while (low < high) {
            const long long middle = (low + high) / 2;
            if (start(m, middle) <= t) low = middle + 1;
            else high = middle;
        }
        return low;
    }
};

struct Problem {
    long long batch, heads, kv_heads, dim, value_dim;
    Axis a, b, c;

    __device__ explicit Problem(const long long* g)
        : batch(g[0]), heads(g[1]), kv_heads(g[2]), dim(g[3]), value_dim(g[4]),
          a{g[5], g[6], g[7], g[8], g[9]}, b{g[10], g[11], g[12], g[13], g[14]}, c{g[15], g[16], g[17], g[18], g[19]} {}

    __device__ long long tokens() const { return a.length * b.length * c.length; }
    __device__ long long tiles(int size) const { return (c.group(0) + size - 1) / size; }
};

// A line of a dilation group: where it stands on the first two axes, and its group on the last.
struct Line {
    long long ga, ja, ma, gb, jb, mb, gc, mc, tile;

    __device__ Line(const Problem& p, long long block, int size) {
        tile = block % p.tiles(size);
        block /= p.tiles(size);
        gc = block % p.c.dilation;
        block /= p.c.dilation;
        const long long ib = block % p.b.length, ia = block / p.b.length;
        ga = ia % p.a.dilation, ja = ia / p.a.dilation, ma = p.a.group(ga);
        gb = ib % p.b.dilation, jb = ib / p.b.dilation, mb = p.b.group(gb);
        mc = p.c.group(gc);
    }
    // The token at positions y, x, t of this line's groups.
    __device__ long long token(const Problem& p, long long y, long long x, long long t) const {
        return ((ga + y * p.a.dilation) * p.b.length + gb + x * p.b.dilation) * p.c.length + gc + t * p.c.dilation;
    }
};

__device__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL, x, 1);
    return x + __shfl_xor_sync(ALL, x, 2);
}
__device__ float quad_max(float x) {
    float other = __shfl_xor_sync(ALL, x, 1);
    x = other > x ? other : x;
    other = __shfl_xor_sync(ALL, x, 2);
    return other > x ? other : x;
}

// ROWS tokens of a line into shared memory, from position `first` on; zeros after `last`.
template <int ROWS, class T>
__device__ void fetch(float (*to)[COLUMNS + 1], const T* from, const Problem& p, const Line& line, long long batch,
                      long long y, long long x, long long first, long long last, long long heads, long long head,
                      long long columns, float scale) {
    for (int i = threadIdx.x; i < ROWS * columns; i += THREADS) {
        const int row = i / (int)columns, column = i % (int)columns;
        const long long t = first + row;
        const long long at = ((batch * p.tokens() + line.token(p, y, x, t < last ? t : first)) * heads + head) * columns + column;
        to[row][column] = t < last ? load(from, at) * scale : 0.0f;
    }
}

template <class T>
__device__ void forward(const T* query, const T* key, const T* value, T* out, float* lse, const long long* geometry,
                        double scale) {
    __shared__ float left[TILE][COLUMNS + 1];
    __shared__ float right[TILE][COLUMNS + 1];
    __shared__ float weights[TILE][TILE + 1];
    const Problem p(geometry);
    const Line line(p, blockIdx.x, TILE);
    const long long first = line.tile * TILE;
    if (first >= line.mc) return;
    const long long batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, kv = head / (p.heads / p.kv_heads);
    const int row = threadIdx.x / 4, quad = threadIdx.x % 4;
    const long long last = first + TILE < line.mc ? first + TILE : line.mc, own = first + row;
    const bool there = own < last;
    const long long from = there ? p.c.start(line.mc, own) : 0, to = there ? p.c.end(line.mc, own) : 0;
    fetch<TILE>(left, query, p, line, batch, line.ja, line.jb, first, last, p.heads, head, p.dim, (float)scale);

    float sums[COLUMNS / 4], top = -1e30f, total = 0.0f;
    for (int i = 0; i < COLUMNS / 4; ++i) sums[i] = 0.0f;
    const long long begin = p.c.start(line.mc, first), end = p.c.end(line.mc, last - 1);
    for (long long y = p.a.start(line.ma, line.ja); y < p.a.end(line.ma, line.ja); ++y)
        for (long long x = p.b.start(line.mb, line.jb); x < p.b.end(line.mb, line.jb); ++x)
            for (long long chunk = begin; chunk < end; chunk += TILE) {
                __syncthreads();
                fetch<TILE>(right, key, p, line, batch, y, x, chunk, end, p.kv_heads, kv, p.dim, 1.0f);
                __syncthreads();
                float score[TILE / 4], most = -1e30f;
                for (int j = 0; j < TILE / 4; ++j) {
                    const int column = quad + 4 * j;
                    float s = 0.0f;
                    for (int k = 0; k < (int)p.dim; ++k) s += left[row][k] * right[column][k];
                    const bool seen = chunk + column >= from && chunk + column < to;
                    score[j] = seen ? s : -1e30f;
                    most = score[j] > most ? score[j] : most;
                }
                most = quad_max(most);
                most = most > top ? most : top;
                const float shrink = expf(top - most);
                top = most;
                float sum = 0.0f;
                for (int j = 0; j < TILE / 4; ++j) {
                    const float e = score[j] > -1e29f ? expf(score[j] - most) : 0.0f;
                    weights[row][quad + 4 * j] = e;
                    sum += e;
                }
                total = total * shrink + quad_sum(sum);
                __syncthreads();
                fetch<TILE>(right, value, p, line, batch, y, x, chunk, end, p.kv_heads, kv, p.value_dim, 1.0f);
                __syncthreads();
                for (int i = 0; 4 * i + quad < (int)p.value_dim; ++i) sums[i] *= shrink;
                for (int column = 0; column < TILE; ++column) {
                    const float w = weights[row][column];
                    for (int i = 0; 4 * i + quad < (int)p.value_dim; ++i) sums[i] += w * right[column][4 * i + quad];
                }
            }
    if (!there) return;
    const long long at = (batch * p.tokens() + line.token(p, line.ja, line.jb, own)) * p.heads + head;
    for (int i = 0; 4 * i + quad < (int)p.value_dim; ++i) store(out, at * p.value_dim + 4 * i + quad, sums[i] / total);
    if (quad == 0) lse[at] = top + logf(total);
}

// What the weights of a query and their gradients are made from; `shift` is the sum of out times its gradient, less the
// gradient of lse.
template <class T>
__device__ void by_query(const T* query, const T* key, const T* value, const T* grad, const float* lse,
                         const float* shift, T* to, const long long* geometry, double scale) {
    __shared__ float left[SMALL][COLUMNS + 1];
    __shared__ float up[SMALL][COLUMNS + 1];
    __shared__ float keys[SMALL][COLUMNS + 1];
    __shared__ float values[SMALL][COLUMNS + 1];
    __shared__ float slopes[SMALL][SMALL + 1];
    const Problem p(geometry);
    const Line line(p, blockIdx.x, SMALL);
    const long long first = line.tile * SMALL;
    if (first >= line.mc) return;
    const long long batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, kv = head / (p.heads / p.kv_heads);
    const int row = threadIdx.x / 8, eighth = threadIdx.x % 8;
    const long long last = first + SMALL < line.mc ? first + SMALL : line.mc, own = first + row;
    const bool there = own < last;
    const long long from = there ? p.c.start(line.mc, own) : 0, until = there ? p.c.end(line.mc, own) : 0;
    const long long at = (batch * p.tokens() + line.token(p, line.ja, line.jb, there ? own : first)) * p.heads + head;
    const float log = lse[at], less = shift[at];
    fetch<SMALL>(left, query, p, line, batch, line.ja, line.jb, first, last, p.heads, head, p.dim, (float)scale);
    fetch<SMALL>(up, grad, p, line, batch, line.ja, line.jb, first, last, p.heads, head, p.value_dim, 1.0f);
    float sums[COLUMNS / 8];
    for (int i = 0; i < COLUMNS / 8; ++i) sums[i] = 0.0f;
    const long long begin = p.c.start(line.mc, first), end = p.c.end(line.mc, last - 1);
    for (long long y = p.a.start(line.ma, line.ja); y < p.a.end(line.ma, line.ja); ++y)
        for (long long x = p.b.start(line.mb, line.jb); x < p.b.end(line.mb, line.jb); ++x)
            for (long long chunk = begin; chunk < end; chunk += SMALL) {
                __syncthreads();
                fetch<SMALL>(keys, key, p, line, batch, y, x, chunk, end, p.kv_heads, kv, p.dim, 1.0f);
                fetch<SMALL>(values, value, p, line, batch, y, x, chunk, end, p.kv_heads, kv, p.value_dim, 1.0f);
                __syncthreads();
                for (int column = eighth; column < SMALL; column += 8) {
                    float s = 0.0f, d = 0.0f;
                    for (int k = 0; k < (int)p.dim; ++k) s += left[row][k] * keys[column][k];
                    for (int k = 0; k < (int)p.value_dim; ++k) d += up[row][k] * values[column][k];
                    const bool seen = chunk + column >= from && chunk + column < until;
                    slopes[row][column] = seen ? expf(s - log) * (d - less) : 0.0f;
                }
                __syncthreads();
                for (int column = 0; column < SMALL; ++column) {
                    const float w = slopes[row][column];
                    for (int i = 0; 8 * i + eighth < (int)p.dim; ++i) sums[i] += w * keys[column][8 * i + eighth];
                }
            }
    if (there)
        for (int i = 0; 8 * i + eighth < (int)p.dim; ++i)
            store(to, at * p.dim + 8 * i + eighth, sums[i] * (float)scale);
}

template <class T>
__device__ void by_key(const T* query, const T* key, const T* value, const T* grad, const float* lse,
                       const float* shift, T* to_key, T* to_value, const long long* geometry, double scale) {
    __shared__ float left[SMALL][COLUMNS + 1];
    __shared__ float up[SMALL][COLUMNS + 1];
    __shared__ float keys[SMALL][COLUMNS + 1];
    __shared__ float values[SMALL][COLUMNS + 1];
    __shared__ float weights[SMALL][SMALL + 1];
    __shared__ float slopes[SMALL][SMALL + 1];
    const Problem p(geometry);
    const Line line(p, blockIdx.x, SMALL);
    const long long first = line.tile * SMALL;
    if (first >= line.mc) return;
    const long long batch = blockIdx.y / p.kv_heads, kv = blockIdx.y % p.kv_heads, share = p.heads / p.kv_heads;
    const int row = threadIdx.x / 8, eighth = threadIdx.x % 8;  // row: a key of the tile
    const long long last = first + SMALL < line.mc ? first + SMALL : line.mc, own = first + row;
    fetch<SMALL>(keys, key, p, line, batch, line.ja, line.jb, first, last, p.kv_heads, kv, p.dim, 1.0f);
    fetch<SMALL>(values, value, p, line, batch, line.ja, line.jb, first, last, p.kv_heads, kv, p.value_dim, 1.0f);
    float of_key[COLUMNS / 8], of_value[COLUMNS / 8];
    for (int i = 0; i < COLUMNS / 8; ++i) of_key[i] = of_value[i] = 0.0f;
    const long long begin = p.c.first_seer(line.mc, first), end = p.c.last_seer(line.mc, last - 1);
    const long long ya = p.a.first_seer(line.ma, line.ja), yz = p.a.last_seer(line.ma, line.ja);
    const long long xa = p.b.first_seer(line.mb, line.jb), xz = p.b.last_seer(line.mb, line.jb);
    for (long long head = kv * share; head < (kv + 1) * share; ++head)
        for (long long y = ya; y < yz; ++y)
            for (long long x = xa; x < xz; ++x)
                for (long long chunk = begin; chunk < end; chunk += SMALL) {
                    __syncthreads();
                    fetch<SMALL>(left, query, p, line, batch, y, x, chunk, end, p.heads, head, p.dim, (float)scale);
                    fetch<SMALL>(up, grad, p, line, batch, y, x, chunk, end, p.heads, head, p.value_dim, 1.0f);
                    __syncthreads();
                    for (int i = eighth; i < SMALL; i += 8) {  // i: a query of the chunk
                        const long long j = chunk + i;
                        const bool seen = j < end && own < last && own >= p.c.start(line.mc, j < end ? j : begin) &&
                                          own < p.c.end(line.mc, j < end ? j : begin);
                        float w = 0.0f, slope = 0.0f;
                        if (seen) {
                            float s = 0.0f, d = 0.0f;
                            for (int k = 0; k < (int)p.dim; ++k) s += left[i][k] * keys[row][k];
                            for (int k = 0; k < (int)p.value_dim; ++k) d += up[i][k] * values[row][k];
                            const long long at = (batch * p.tokens() + line.token(p, y, x, j)) * p.heads + head;
                            w = expf(s - lse[at]);
                            slope = w * (d - shift[at]);
                        }
                        weights[row][i] = w;
                        slopes[row][i] = slope;
                    }
                    __syncthreads();
                    for (int i = 0; i < SMALL; ++i) {
                        const float w = weights[row][i], slope = slopes[row][i];
                        for (int k = 0; 8 * k + eighth < (int)p.value_dim; ++k) of_value[k] += w * up[i][8 * k + eighth];
                        for (int k = 0; 8 * k + eighth < (int)p.dim; ++k) of_key[k] += slope * left[i][8 * k + eighth];
                    }
                }
    if (own >= last) return;
    const long long at = (batch * p.tokens() + line.token(p, line.ja, line.jb, own)) * p.kv_heads + kv;
    for (int k = 0; 8 * k + eighth < (int)p.dim; ++k) store(to_key, at * p.dim + 8 * k + eighth, of_key[k]);
    for (int k = 0; 8 * k + eighth < (int)p.value_dim; ++k)
        store(to_value, at * p.value_dim + 8 * k + eighth, of_value[k]);
}

}  // namespace

#define KERNELS(T, name)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        forward_##name(const T* query, const T* key, const T* value, T* out, float* lse, const long long* geometry,    \
                       double scale) {                                                                                 \
        forward<T>(query, key, value, out, lse, geometry, scale);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        by_query_##name(const T* query, const T* key, const T* value, const T* grad, const float* lse,                 \
                        const float* shift, T* to, const long long* geometry, double scale) {                          \
        by_query<T>(query, key, value, grad, lse, shift, to, geometry, scale);                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        by_key_##name(const T* query, const T* key, const T* value, const T* grad, const float* lse,                   \
                      const float* shift, T* to_key, T* to_value, const long long* geometry, double scale) {           \
        by_key<T>(query, key, value, grad, lse, shift, to_key, to_value, geometry, scale);                             \
    }

KERNELS(float, f32)
KERNELS(Half, f16)
KERNELS(Brain, bf16)
