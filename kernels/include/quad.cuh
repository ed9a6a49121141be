// Loads and stores of four neighbouring elements as floats, for kernels that touch each element once. Also reductions
// by a few neighbouring lanes over rows of at most 256 elements, or over longer rows in steps.
#pragma once

#include "reduce.cuh"

namespace cleave {


template <class T> struct alignas(4 * sizeof(T)) quad {
    T at[4];
};

// Loads the first `count` of four elements and fills the rest with zeros. `whole` means that all four exist and are
// aligned as a quad.
template <class T> __device__ inline void load_quad(float (&out)[4], const T *from, uint32_t count, bool whole)
{
    if (whole) {
        const quad<T> four = *reinterpret_cast<const quad<T> *>(from);
        for (int i = 0; i < 4; i++)
            out[i] = to_float(four.at[i]);
    } else {
        for (uint32_t i = 0; i < 4; i++)
            out[i] = i < count ? to_float(from[i]) : 0.0f;
    }
}

// Stores the first `count` of four elements.
template <class T> __device__ inline void store_quad(T *to, const quad<T> &four, uint32_t count, bool whole)
{
    if (whole) {
        *reinterpret_cast<quad<T> *>(to) = four;
    } else {
        for (uint32_t i = 0; i < 4; i++)
            if (i < count)
                to[i] = four.at[i];
    }
}

template <class T> __device__ inline quad<T> round_quad(const float (&four)[4])
{
    quad<T> out;
    for (int i = 0; i < 4; i++)
        out.at[i] = from_float<T>(four[i]);
    return out;
}

// Number of lanes that share a row of n elements, four each: the smallest sufficient power of two, at most a warp.
__device__ inline uint32_t lanes_of(uint32_t n)
{
    uint32_t lanes = 1;
    while (4 * lanes < n && lanes < 32)
        lanes *= 2;
    return lanes;
}

// Reduces among `lanes` neighbours; each receives the result. All lanes of the warp must call this.
template <class T, class Op> __device__ inline T lanes_reduce(T value, Op op, uint32_t lanes)
{
    for (uint32_t step = lanes / 2; step > 0; step /= 2)
        value = op(value, __shfl_xor_sync(whole_warp, value, step));
    return value;
}

} // namespace cleave
