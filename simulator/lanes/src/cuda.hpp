// CUDA's language extensions on the CPU. The simulator's build includes this header before every kernel source
// (-include). A CUDA thread is a fiber. Operations that involve several CUDA threads (barriers, shuffles, mma) are a
// rendezvous. See runtime.cpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define CLEAVE_SIM 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static thread_local

namespace sim {

struct Uint3 {
    uint32_t x, y, z;
};

// Coordinates of the running fiber.
struct Place {
    Uint3 thread, block, block_dim, grid_dim;
    uint32_t lane; // index in its warp
};
extern thread_local Place place;

[[noreturn]] void fail(const char *what);
void sync_block();
// Gives `bytes` (at most 64) to the other lanes of `mask`, waits for all of them, and returns what lane i gave at [i].
// The result is valid until this lane's next exchange. `kind` must be the same for all lanes.
struct Given {
    unsigned char at[32][64];
};
const Given &exchange(const char *kind, uint32_t mask, const void *given, size_t bytes);
unsigned char *dynamic_shared();
void copy_later(void *to, const void *from, size_t bytes, bool valid);
void commit_copies();
void wait_for_copies(int but);

uint16_t float_to_bf16(float x);
uint16_t float_to_f16(float x);
float f16_to_float(uint16_t bits);

// ---- registry of entry points ----

using Call = void (*)(void *const *params);
struct Entry {
    // `sizes` lists the sizes of the parameters in bytes and ends with 0.
    Entry(const char *name, Call call, const size_t *sizes);
};
template <auto Kernel> struct Invoke;
template <class... Args, void (*Kernel)(Args...)> struct Invoke<Kernel> {
    template <size_t... I> static void with(void *const *params, std::index_sequence<I...>)
    {
        Kernel(*static_cast<std::remove_cv_t<Args> *>(params[I])...);
    }
    static void call(void *const *params) { with(params, std::index_sequence_for<Args...>()); }
    static constexpr size_t sizes[] = {sizeof(Args)..., 0};
};

template <class T> T from_lane(const char *kind, uint32_t mask, T value, uint32_t source)
{
    static_assert(sizeof(T) <= 64);
    T out;
    std::memcpy(&out, exchange(kind, mask, &value, sizeof(T)).at[source % 32], sizeof(T));
    return out;
}

} // namespace sim

#define CLEAVE_ENTRY(name) static const ::sim::Entry sim_entry_##name(#name, &::sim::Invoke<name>::call, ::sim::Invoke<name>::sizes);

#define threadIdx (::sim::place.thread)
#define blockIdx (::sim::place.block)
#define blockDim (::sim::place.block_dim)
#define gridDim (::sim::place.grid_dim)

inline void __syncthreads() { sim::sync_block(); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { sim::exchange("syncwarp", mask, nullptr, 0); }
inline void __threadfence() {}

template <class T> T __shfl_sync(uint32_t mask, T value, int source) { return sim::from_lane("shfl", mask, value, uint32_t(source)); }
template <class T> T __shfl_xor_sync(uint32_t mask, T value, int with)
{
    return sim::from_lane("shfl_xor", mask, value, sim::place.lane ^ uint32_t(with));
}
template <class T> T __shfl_up_sync(uint32_t mask, T value, uint32_t by)
{
    return sim::from_lane("shfl_up", mask, value, sim::place.lane >= by ? sim::place.lane - by : sim::place.lane);
}
template <class T> T __shfl_down_sync(uint32_t mask, T value, uint32_t by)
{
    return sim::from_lane("shfl_down", mask, value, sim::place.lane + by < 32 ? sim::place.lane + by : sim::place.lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate)
{
    const uint32_t mine = predicate != 0;
    const sim::Given &given = sim::exchange("ballot", mask, &mine, sizeof mine);
    uint32_t out = 0;
    for (int lane = 0; lane < 32; lane++) {
        uint32_t bit = 0;
        if (mask >> lane & 1)
            std::memcpy(&bit, given.at[lane], sizeof bit);
        out |= bit << lane;
    }
    return out;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// Plain memory operations are atomic here: one OS thread runs all fibers, and fibers switch only at a rendezvous.
template <class T> T atomicAdd(T *at, T value) { return std::exchange(*at, *at + value); }
template <class T> T atomicMax(T *at, T value) { return std::exchange(*at, *at > value ? *at : value); }
template <class T> T atomicMin(T *at, T value) { return std::exchange(*at, *at < value ? *at : value); }
template <class T> T atomicExch(T *at, T value) { return std::exchange(*at, value); }
template <class T> T atomicCAS(T *at, T expected, T value) { return std::exchange(*at, *at == expected ? value : *at); }

template <class To, class From> To sim_cast(From from)
{
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline uint32_t __float_as_uint(float x) { return sim_cast<uint32_t>(x); }
inline int32_t __float_as_int(float x) { return sim_cast<int32_t>(x); }
inline float __uint_as_float(uint32_t x) { return sim_cast<float>(x); }
inline float __int_as_float(int32_t x) { return sim_cast<float>(x); }
inline long long __double_as_longlong(double x) { return sim_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return sim_cast<double>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float x)
{
    return x != x ? 0 : x >= 2147483648.0f ? INT32_MAX : x < -2147483648.0f ? INT32_MIN : int(std::nearbyint(x));
}
inline float __fsub_rn(float a, float b) { return a - b; }
inline double __ull2double_rn(unsigned long long x) { return double(x); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(uint32_t(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)a * b >> 64); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector)
{
    const uint64_t both = uint64_t(b) << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++)
        out |= uint32_t(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
template <class T> T __ldg(const T *at) { return *at; }
template <class A, class B> auto min(A a, B b) { return b < a ? b : a; }
template <class A, class B> auto max(A a, B b) { return a < b ? b : a; }
// For two floats these are fminf and fmaxf, which prefer a number to a NaN.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
