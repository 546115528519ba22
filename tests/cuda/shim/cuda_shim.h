// Runs a CUDA kernel's logic on CPU threads: every CUDA thread of a block is a thread of the machine, blocks follow
// one another. Barriers, shared memory, warp shuffles and votes, and atomics behave as the CUDA C++ Programming Guide
// says; what it leaves undefined (a shuffle from a lane outside the mask, lanes that never meet) is an error here.
//
// A kernel is compiled with this header included first; kernels.py writes the launcher of each `extern "C" __global__`
// function and turns `extern __shared__ T name[];` into a pointer to the dynamic shared memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static  // One block runs at a time, so what all its threads share is what all threads share.
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace shim {

constexpr auto PATIENCE = std::chrono::seconds(20);

// Raised in every thread once one has failed, so that none waits for it.
struct Failed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A barrier whose number of parties falls when a thread leaves the kernel, as __syncthreads has it.
class Barrier {
  public:
    explicit Barrier(int parties) : parties_(parties) {}

    // `combine` runs once, in the last thread to come, before any goes on.
    template <class F>
    void wait(F combine, const char* what) {
        std::unique_lock lock(mutex_);
        if (broken_) throw Failed("another thread failed");
        const auto generation = generation_;
        if (++waiting_ == parties_) {
            combine();
            release();
            return;
        }
        if (!changed_.wait_for(lock, PATIENCE, [&] { return generation_ != generation || broken_; })) {
            broken_ = true;
            changed_.notify_all();
            throw Failed(std::string(what) + ": " + std::to_string(waiting_) + " of " + std::to_string(parties_) +
                         " threads came; the others wait elsewhere");
        }
        if (generation_ == generation) throw Failed("another thread failed");
    }
    void wait(const char* what) {
        wait([] {}, what);
    }
    void leave() {
        std::lock_guard lock(mutex_);
        if (--parties_ > 0 && waiting_ == parties_) release();
    }
    void join() {
        std::lock_guard lock(mutex_);
        ++parties_;
    }
    void break_up() {
        std::lock_guard lock(mutex_);
        broken_ = true;
        changed_.notify_all();
    }

  private:
    void release() {
        waiting_ = 0;
        ++generation_;
        changed_.notify_all();
    }
    std::mutex mutex_;
    std::condition_variable changed_;
    int parties_, waiting_ = 0;
    std::uint64_t generation_ = 0;
    bool broken_ = false;
};

struct Slot {
    alignas(16) unsigned char bytes[16];
};

// The lanes of a warp meet by the mask they name; disjoint masks do not disturb each other.
struct Warp {
    std::mutex mutex;
    std::map<unsigned, std::unique_ptr<Barrier>> meetings;
    Slot slots[32];
    std::uint32_t votes[32];

    Barrier& meeting(unsigned mask) {
        std::lock_guard lock(mutex);
        auto& barrier = meetings[mask];
        if (!barrier) barrier = std::make_unique<Barrier>(__builtin_popcount(mask));
        return *barrier;
    }
    void break_up() {
        std::lock_guard lock(mutex);
        for (auto& [_, barrier] : meetings) barrier->break_up();
    }
};

struct Block {
    explicit Block(int threads, std::size_t dynamic_bytes)
        : threads(threads), inside(threads), between(threads), warps((threads + 31) / 32),
          dynamic_shared(dynamic_bytes / 16 + 1) {}
    int threads;
    Barrier inside, between;
    std::vector<Warp> warps;
    std::vector<Slot> dynamic_shared;
    int counted = 0, count = 0;
    std::mutex counting;
    std::string error;

    void fail(const std::string& message) {
        {
            std::lock_guard lock(counting);
            if (error.empty() && message != "another thread failed") error = message;
        }
        inside.break_up();
        between.break_up();
        for (auto& warp : warps) warp.break_up();
    }
};

inline Block* block = nullptr;
inline thread_local int thread_number = 0;

inline int lane() { return thread_number % 32; }
inline Warp& warp() { return block->warps[thread_number / 32]; }
inline void* dynamic_shared() { return block->dynamic_shared.data(); }

inline int sync_count(int predicate) {
    {
        std::lock_guard lock(block->counting);
        block->counted += predicate != 0;
    }
    block->inside.wait([] { block->count = block->counted, block->counted = 0; }, "__syncthreads");
    const int count = block->count;
    block->inside.wait("__syncthreads");
    return count;
}

inline void check_mask(unsigned mask, const char* what) {
    if (!(mask >> lane() & 1)) throw Failed(std::string(what) + ": the calling lane is not in its own mask");
    const int lanes = std::min(32, block->threads - thread_number / 32 * 32);
    if (lanes < 32 && mask >> lanes) throw Failed(std::string(what) + ": the mask names lanes the block does not have");
}

template <class T>
T exchange(unsigned mask, T value, int source, const char* what) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(Slot));
    check_mask(mask, what);
    Warp& w = warp();
    Barrier& meeting = w.meeting(mask);
    std::memcpy(w.slots[lane()].bytes, &value, sizeof(T));
    meeting.wait(what);
    if (source != lane() && !(mask >> source & 1)) throw Failed(std::string(what) + ": reads a lane outside the mask");
    std::memcpy(&value, w.slots[source].bytes, sizeof(T));
    meeting.wait(what);
    return value;
}

inline unsigned vote(unsigned mask, bool predicate, const char* what) {
    const std::uint32_t mine = predicate;
    check_mask(mask, what);
    Warp& w = warp();
    Barrier& meeting = w.meeting(mask);
    w.votes[lane()] = mine;
    meeting.wait(what);
    unsigned ballot = 0;
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) ballot |= (w.votes[i] != 0u) << i;
    meeting.wait(what);
    return ballot;
}

// Every block of the grid, one after another, on the same threads. Returns what went wrong, or nothing.
template <class F>
std::string run(dim3 grid, dim3 shape, std::size_t dynamic_bytes, F kernel) {
    const int threads = int(shape.x * shape.y * shape.z);
    if (threads < 1 || threads > 1024) return "a block must have 1 to 1024 threads, got " + std::to_string(threads);
    gridDim = grid, blockDim = shape;
    Block state(threads, dynamic_bytes);
    block = &state;
    std::vector<std::thread> crew;
    for (int number = 0; number < threads; ++number)
        crew.emplace_back([&, number] {
            thread_number = number;
            threadIdx = dim3(number % shape.x, number / shape.x % shape.y, number / (shape.x * shape.y));
            try {
                for (unsigned z = 0; z < grid.z; ++z)
                    for (unsigned y = 0; y < grid.y; ++y)
                        for (unsigned x = 0; x < grid.x; ++x) {
                            blockIdx = dim3(x, y, z);
                            // Shared memory holds nothing at first: not zeros, nor what the last block left.
                            state.between.wait(
                                [&] { std::memset(dynamic_shared(), 0xFF, state.dynamic_shared.size() * 16); },
                                "the start of a block");
                            kernel();
                            state.inside.leave();
                            state.between.wait("the end of a block");
                            state.inside.join();
                        }
            } catch (const std::exception& e) {
                state.fail(e.what());
            }
        });
    for (auto& thread : crew) thread.join();
    block = nullptr;
    return state.error;
}

}  // namespace shim

// Barriers and votes
inline void __syncthreads() { shim::block->inside.wait("__syncthreads"); }
inline int __syncthreads_count(int predicate) { return shim::sync_count(predicate); }
inline int __syncthreads_or(int predicate) { return shim::sync_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) { return shim::sync_count(!predicate) == 0; }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { shim::vote(mask, true, "__syncwarp"); }
inline unsigned __ballot_sync(unsigned mask, int p) { return shim::vote(mask, p, "__ballot_sync"); }
inline int __any_sync(unsigned mask, int p) { return shim::vote(mask, p, "__any_sync") != 0; }
inline int __all_sync(unsigned mask, int p) { return shim::vote(mask, p, "__all_sync") == mask; }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { __threadfence(); }

// Shuffles. A source outside the segment of `width` lanes gives the caller's own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int start = shim::lane() / width * width;
    return shim::exchange(mask, value, start + (source & (width - 1)), "__shfl_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = shim::lane(), start = lane / width * width, source = lane - int(delta);
    return shim::exchange(mask, value, source < start ? lane : source, "__shfl_up_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = shim::lane(), end = lane / width * width + width, source = lane + int(delta);
    return shim::exchange(mask, value, source >= end ? lane : source, "__shfl_down_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const int lane = shim::lane(), end = lane / width * width + width, source = lane ^ bits;
    return shim::exchange(mask, value, source >= end ? lane : source, "__shfl_xor_sync");
}

// Atomics: each returns the old value.
namespace shim {
template <class T, class F>
T update(T* address, F next) {
    std::atomic_ref<T> cell(*address);
    T old = cell.load();
    while (!cell.compare_exchange_weak(old, next(old))) {
    }
    return old;
}
}  // namespace shim
template <class T>
T atomicAdd(T* a, std::type_identity_t<T> v) {
    return shim::update(a, [v](T old) { return T(old + v); });
}
template <class T>
T atomicSub(T* a, std::type_identity_t<T> v) {
    return shim::update(a, [v](T old) { return T(old - v); });
}
template <class T>
T atomicMin(T* a, std::type_identity_t<T> v) {
    return shim::update(a, [v](T old) { return std::min(old, v); });
}
template <class T>
T atomicMax(T* a, std::type_identity_t<T> v) {
    return shim::update(a, [v](T old) { return std::max(old, v); });
}
template <class T>
T atomicExch(T* a, std::type_identity_t<T> v) {
    return shim::update(a, [v](T) { return v; });
}
template <class T>
T atomicOr(T* a, std::type_identity_t<T> v) {
    return shim::update(a, [v](T old) { return T(old | v); });
}
template <class T>
T atomicAnd(T* a, std::type_identity_t<T> v) {
    return shim::update(a, [v](T old) { return T(old & v); });
}
template <class T>
T atomicCAS(T* a, std::type_identity_t<T> compare, std::type_identity_t<T> v) {
    return shim::update(a, [=](T old) { return old == compare ? v : old; });
}

// Arithmetic that CUDA names and C++ does not
using std::abs, std::max, std::min, std::isnan, std::isinf, std::isfinite;
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float fdividef(float a, float b) { return a / b; }
template <class T>
T __ldg(const T* p) {
    return *p;
}
namespace shim {
template <class To, class From>
To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace shim
inline long long __double_as_longlong(double x) { return shim::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return shim::bits<double>(x); }
inline int __float_as_int(float x) { return shim::bits<int>(x); }
inline float __int_as_float(int x) { return shim::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return shim::bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return shim::bits<float>(x); }
inline int __double2hiint(double x) { return int(shim::bits<std::uint64_t>(x) >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Vector types
#define SHIM_VECTORS(T, N)                                                    \
    struct N##2 { T x, y; };                                                  \
    struct N##3 { T x, y, z; };                                               \
    struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) N##4 { T x, y, z, w; }; \
    inline N##2 make_##N##2(T x, T y) { return {x, y}; }                      \
    inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }              \
    inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SHIM_VECTORS(float, float)
SHIM_VECTORS(double, double)
SHIM_VECTORS(int, int)
SHIM_VECTORS(unsigned, uint)
#undef SHIM_VECTORS
