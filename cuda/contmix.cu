// Context mixing: depthwise convolution whose kernel each pixel gets from logits, softmax and relative bias on the way:
//   out[i] = sum over j of softmax_j(logits[i, j] + bias[j - i + k - 1]) value[j],
// j over the k x k window of i, moved inside the map at its border. The kernels are never stored: k² numbers a pixel and
// group are read once. logits (B, g, H, W, k k), bias (g, 2k-1, 2k-1), value and out (B, g, H, W, c).
//
// A warp takes a pixel of a group: its lanes share the window for the greatest logit and the sum of exponentials, and then
// the channels. Source: Lou and Yu 2025, OverLoCK, eq. 3; python/mercer/nn/conv/_contmix.py is the plain form.

namespace {

constexpr unsigned ALL = 0xFFFFFFFFu;
constexpr int WARPS = 4;

template <class T>
__device__ void mix(const T* logits, const T* bias, const T* value, T* out, long long pixels, long long groups,
                    long long height, long long width, long long k, long long channels) {
    const int lane = threadIdx.x % 32;
    const long long item = (long long)blockIdx.x * WARPS + threadIdx.x / 32;
    if (item >= pixels) return;
    const long long x = item % width, y = item / width % height, map = item / (width * height), group = map % groups;
    const long long half = k / 2, table = 2 * k - 1;
    long long top = y - half, left = x - half;
    top = top < 0 ? 0 : top > height - k ? height - k : top;
    left = left < 0 ? 0 : left > width - k ? width - k : left;
    const T* own = logits + item * k * k;
    const T* relative = bias + (group * table + top - y + k - 1) * table + left - x + k - 1;
    T most = T(-1) / T(0);
    for (long long j = lane; j < k * k; j += 32) {
        const T logit = own[j] + relative[j / k * table + j % k];
        most = logit > most ? logit : most;
    }
    for (int apart = 16; apart > 0; apart /= 2) {
        const T other = __shfl_xor_sync(ALL, most, apart);
        most = other > most ? other : most;
    }
    T total = T(0);
    for (long long j = lane; j < k * k; j += 32) total += T(exp(own[j] + relative[j / k * table + j % k] - most));
    for (int apart = 16; apart > 0; apart /= 2) total += __shfl_xor_sync(ALL, total, apart);
    const T* plane = value + map * height * width * channels;
    for (long long c = lane; c < channels; c += 32) {
        T sum = T(0);
        for (long long j = 0; j < k * k; ++j) {
            const T weight = T(exp(own[j] + relative[j / k * table + j % k] - most));
            sum = fma(weight, plane[((top + j / k) * width + left + j % k) * channels + c], sum);
        }
        out[item * channels + c] = sum / total;
    }
}

}  // namespace

#define KERNELS(T, kind)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        contmix_##kind(const T* logits, const T* bias, const T* value, T* out, long long pixels, long long groups,     \
                       long long height, long long width, long long k, long long channels) {                           \
        mix<T>(logits, bias, value, out, pixels, groups, height, width, k, channels);                                  \
    }

KERNELS(float, f32)
KERNELS(double, f64)
