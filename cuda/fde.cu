// Fixed dimensional encodings of packed sets (Dhulipala et al. 2024, "MUVERA"), in two steps:
//   partition: the signs of each token's products with the planes of each repetition, as a string of bits; one warp a
//              token, its lanes over the columns.
//   blocks:    one warp a block of a repetition of a set: the sum (queries) or mean (documents) of what fell there, or
//              the nearest token by Hamming distance, the first among equals; its lanes over the coordinates. A final
//              count sketch takes the values as they come (atomic additions, so the last bit may differ from run to run).
// Products of tokens with the inner projections are an ordinary matrix product and come from outside, (tokens,
// repetitions * projected); without a projection they are the tokens themselves.
// The CPU face is rust/core/src/retrieval/encode.rs.

namespace {

constexpr unsigned ALL = 0xFFFFFFFFu;

// x (n, columns), planes (repetitions, bits, columns), strings (repetitions, n).
template <class T>
__device__ void partition(const T* x, const T* planes, int* strings, long long n, long long columns,
                          long long repetitions, long long bits) {
    const int lane = threadIdx.x % 32;
    const long long warps = (long long)gridDim.x * blockDim.x / 32;
    for (long long token = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32; token < n; token += warps)
        for (long long r = 0; r < repetitions; ++r) {
            int string = 0;
            for (long long j = 0; j < bits; ++j) {
                const T* plane = planes + (r * bits + j) * columns;
                T sum = T(0);
                for (long long c = lane; c < columns; c += 32) sum = fma(x[token * columns + c], plane[c], sum);
                for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL, sum, apart);
                string = 2 * string + (sum > T(0));
            }
            if (lane == 0) strings[r * n + token] = string;
        }
}

// strings as above; y (n, stride), repetition r from r * step on; ends (sets + 1); out (sets, repetitions * blocks *
// projected) or, sketched, (sets, size), zero at first, with place and sign of each coordinate.
template <class T>
__device__ void blocks(const int* strings, const T* y, const long long* ends, const long long* place, const T* sign,
                       T* out, long long n, long long sets, long long repetitions, long long bits,
                       long long projected, long long stride, long long step, long long size, long long queries,
                       long long fill, long long sketched) {
    const int lane = threadIdx.x % 32;
    const long long warps = (long long)gridDim.x * blockDim.x / 32, count = 1LL << bits;
    const long long jobs = sets * repetitions * count;
    for (long long job = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32; job < jobs; job += warps) {
        const long long block = job % count, r = job / count % repetitions, set = job / (count * repetitions);
        const unsigned code = (unsigned)(block ^ (block >> 1));  // the block's Gray code
        const long long begin = ends[set], end = ends[set + 1];
        const int* own = strings + r * n;
        int members = 0;
        unsigned long long nearest = ~0ULL;  // distance above token
        for (long long t = begin + lane; t < end; t += 32) {
            const int apart = __popc((unsigned)own[t] ^ code);
            members += apart == 0;
            const unsigned long long key = ((unsigned long long)apart << 40) | (unsigned long long)(t - begin);
            nearest = key < nearest ? key : nearest;
        }
        for (int apart = 16; apart > 0; apart /= 2) {
            members += __shfl_xor_sync(ALL, members, apart);
            const unsigned long long other = __shfl_xor_sync(ALL, nearest, apart);
            nearest = other < nearest ? other : nearest;
        }
        const bool filled = members == 0 && fill && !queries && bits > 0 && begin < end;
        const long long only = begin + (long long)(nearest & ((1ULL << 40) - 1));
        const long long at = (r * count + block) * projected;
        for (long long c = lane; c < projected; c += 32) {
            T sum = T(0);
            if (filled) {
                sum = y[only * stride + r * step + c];
            } else if (members > 0) {
                for (long long t = begin; t < end; ++t)
                    if ((unsigned)own[t] == code) sum += y[t * stride + r * step + c];
                if (!queries) sum /= T(members);
            }
            if (!sketched) {
                out[set * repetitions * count * projected + at + c] = sum;
            } else if (members > 0 || filled) {
                atomicAdd(out + set * size + place[at + c], sum * sign[at + c]);
            }
        }
    }
}

}  // namespace

#define KERNELS(T, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128)                                                                \
        fde_partition_##suffix(const T* x, const T* planes, int* strings, long long n, long long columns,            \
                               long long repetitions, long long bits) {                                              \
        partition<T>(x, planes, strings, n, columns, repetitions, bits);                                             \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(128)                                                                \
        fde_blocks_##suffix(const int* strings, const T* y, const long long* ends, const long long* place,           \
                            const T* sign, T* out, long long n, long long sets, long long repetitions,               \
                            long long bits, long long projected, long long stride, long long step, long long size,   \
                            long long queries, long long fill, long long sketched) {                                 \
        blocks<T>(strings, y, ends, place, sign, out, n, sets, repetitions, bits, projected, stride, step, size,     \
                  queries, fill, sketched);                                                                          \
    }

KERNELS(float, f32)
KERNELS(double, f64)
