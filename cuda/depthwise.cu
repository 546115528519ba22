// Depthwise convolution with odd kernels of any size, "same" zero padding and stride 1, and the gradient of the kernels:
//   out[i, j] = bias + sum over a, b of k[a, b] x[i + (a - kh/2) r, j + (b - kw/2) r].
// The gradient of the input is the same with the kernel turned round. Maps are contiguous (N, C, H, W).
//
// A block takes a TX x TY tile of one plane, with its border and the whole kernel in shared memory; a thread keeps ROWS
// results of a column. For the kernels' gradient a block takes one channel and a slice of the batch, tile by tile; each
// thread keeps the sums of up to TAPS taps. The slices are added up by the caller.
// Source: rust/core/src/depthwise, of which this is the CUDA face.

namespace {

constexpr int TX = 32, TY = 16, THREADS = 256, ROWS = TX * TY / THREADS, TAPS = 8;

// The tile at (top, left) with its border into shared memory, zeros outside the map.
template <class T>
__device__ void load(const T* plane, T* tile, int top, int left, int high, int wide, long long height, long long width) {
    for (int at = threadIdx.x; at < high * wide; at += THREADS) {
        const long long y = top + at / wide, x = left + at % wide;
        tile[at] = y >= 0 && y < height && x >= 0 && x < width ? plane[y * width + x] : T(0);
    }
}

template <class T>
__device__ void convolve(const T* x, const T* kernel, const T* bias, T* out, long long channels, long long height,
                         long long width, long long kh, long long kw, long long dilation, long long turned,
                         long long biased, unsigned char* room) {
    const int r = int(dilation), across = TX + int(kw - 1) * r, down = TY + int(kh - 1) * r, taps = int(kh * kw);
    T* tile = reinterpret_cast<T*>(room);
    T* k = tile + across * down;
    const long long plane = blockIdx.x, channel = plane % channels;
    const int tiles = int((width + TX - 1) / TX);
    const int top = int(blockIdx.y) / tiles * TY, left = int(blockIdx.y) % tiles * TX;
    for (int tap = threadIdx.x; tap < taps; tap += THREADS)
        k[tap] = kernel[channel * taps + (turned ? taps - 1 - tap : tap)];
    load(x + plane * height * width, tile, top - int(kh / 2) * r, left - int(kw / 2) * r, down, across, height, width);
    __syncthreads();
    const int column = threadIdx.x % TX, row = threadIdx.x / TX * ROWS;
    T sum[ROWS];
    for (int i = 0; i < ROWS; ++i) sum[i] = biased ? bias[channel] : T(0);
    for (int a = 0; a < int(kh); ++a)
        for (int b = 0; b < int(kw); ++b) {
            const T tap = k[a * int(kw) + b];
            for (int i = 0; i < ROWS; ++i)
                sum[i] = fma(tap, tile[(row + i + a * r) * across + column + b * r], sum[i]);
        }
    for (int i = 0; i < ROWS; ++i)
        if (top + row + i < height && left + column < width)
            out[(plane * height + top + row + i) * width + left + column] = sum[i];
}

template <class T>
__device__ void weight_gradient(const T* x, const T* gradient, T* out, long long batch, long long channels,
                                long long height, long long width, long long kh, long long kw, long long dilation,
                                unsigned char* room) {
    const int r = int(dilation), across = TX + int(kw - 1) * r, down = TY + int(kh - 1) * r, taps = int(kh * kw);
    T* tile = reinterpret_cast<T*>(room);
    T* by = tile + across * down;
    const long long channel = blockIdx.x, slice = blockIdx.y, slices = gridDim.y;
    T sum[TAPS];
    for (int i = 0; i < TAPS; ++i) sum[i] = T(0);
    for (long long n = batch * slice / slices; n < batch * (slice + 1) / slices; ++n) {
        const long long plane = (n * channels + channel) * height * width;
        for (int top = 0; top < height; top += TY)
            for (int left = 0; left < width; left += TX) {
                __syncthreads();
                load(x + plane, tile, top - int(kh / 2) * r, left - int(kw / 2) * r, down, across, height, width);
                load(gradient + plane, by, top, left, TY, TX, height, width);
                __syncthreads();
                for (int i = 0; i < TAPS; ++i) {
                    const int tap = threadIdx.x + i * THREADS;
                    if (tap >= taps) break;
                    const T* from = tile + tap / int(kw) * r * across + tap % int(kw) * r;
                    T total = T(0);
                    for (int y = 0; y < TY; ++y)
                        for (int column = 0; column < TX; ++column)
                            total = fma(by[y * TX + column], from[y * across + column], total);
                    sum[i] += total;
                }
            }
    }
    for (int i = 0; i < TAPS; ++i) {
        const int tap = threadIdx.x + i * THREADS;
        if (tap < taps) out[(slice * channels + channel) * taps + tap] = sum[i];
    }
}

}  // namespace

#define KERNELS(T, kind)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        depthwise_##kind(const T* x, const T* kernel, const T* bias, T* out, long long channels, long long height,      \
                         long long width, long long kh, long long kw, long long dilation, long long turned,             \
                         long long biased) {                                                                            \
        extern __shared__ __align__(16) unsigned char room[];                                                           \
        convolve<T>(x, kernel, bias, out, channels, height, width, kh, kw, dilation, turned, biased, room);             \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        depthwise_weight_##kind(const T* x, const T* gradient, T* out, long long batch, long long channels,             \
                                long long height, long long width, long long kh, long long kw, long long dilation) {    \
        extern __shared__ __align__(16) unsigned char room[];                                                           \
        weight_gradient<T>(x, gradient, out, batch, channels, height, width, kh, kw, dilation, room);                   \
    }

KERNELS(float, f32)
KERNELS(double, f64)
