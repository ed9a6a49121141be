// Element types and their conversions, shared by nvcc and the simulator (simulator/lanes).
#pragma once

#ifndef CLEAVE_SIM
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
// Registers an entry point under the name that the host uses to launch it. Comes after its definition.
#define CLEAVE_ENTRY(name)
#endif

namespace cleave {

// Storage types only; arithmetic is done in float.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
// Packs two elements into a register, the first in the low half, in the format of mma operands.
template <class T> struct alignas(4) pair {
    T x, y;
};
// 16 bytes of elements, for the widest loads and stores.
template <class T> struct alignas(16) vec {
    static constexpr int size = 16 / sizeof(T);
    T at[size];
};

template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(int8_t x) { return static_cast<float>(x); }
__device__ inline float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
#ifdef CLEAVE_SIM
__device__ inline float to_float(f16 x) { return sim::f16_to_float(x.bits); }
#else
__device__ inline float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
#endif

// Rounds to the nearest, ties to even.
template <class T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
#ifdef CLEAVE_SIM
template <> __device__ inline bf16 from_float<bf16>(float x) { return {sim::float_to_bf16(x)}; }
template <> __device__ inline f16 from_float<f16>(float x) { return {sim::float_to_f16(x)}; }
#else
template <> __device__ inline bf16 from_float<bf16>(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }
template <> __device__ inline f16 from_float<f16>(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
#endif

} // namespace cleave
