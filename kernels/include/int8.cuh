// int8 KV: an element is q * scale, with one float scale for each token and head. The bits are those of
// src/backend/int8.rs, but for which NaN a scale is.
#pragma once

#include "types.cuh"

namespace cleave {

// As integers these are in order, NaN above all: the largest of a row is what its Quantiser is made of.
__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

struct Quantiser {
    float scale;
    float divisor; // of subnormal rows the scale is coarse, or zero

    __device__ explicit Quantiser(uint32_t largest)
        : scale(__fdiv_rn(__uint_as_float(largest), 127.0f)), divisor(scale == 0.0f ? 1.0f : scale)
    {
    }

    // Rounds ties to even; NaN, which a row with a NaN or an infinity has, becomes 0.
    __device__ int8_t operator()(float x) const
    {
        x = __fdiv_rn(x, divisor);
        // Comparisons, unlike fminf and fmaxf, keep a NaN.
        x = x < -127.0f ? -127.0f : x > 127.0f ? 127.0f : x;
        return static_cast<int8_t>(__float2int_rn(x));
    }
};

} // namespace cleave
