// int8 KV: an element is q * scale, with one float scale per token and head. The results equal those of
// src/backend/int8.rs bit for bit, except for the payload of a NaN scale.
#pragma once

#include "types.cuh"

namespace cleave {

// Magnitudes compare as integers in the order of |x|, with NaN largest. Quantiser takes the largest magnitude of a row.
__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

struct Quantiser {
    float scale;
    float divisor; // 1 if the scale underflows to 0, else the scale

    __device__ explicit Quantiser(uint32_t largest)
        : scale(__fdiv_rn(__uint_as_float(largest), 127.0f)), divisor(scale == 0.0f ? 1.0f : scale)
    {
    }

    // Rounds ties to even. NaN becomes 0; it arises in rows that contain a NaN or an infinity.
    __device__ int8_t operator()(float x) const
    {
        x = __fdiv_rn(x, divisor);
        // Unlike fminf and fmaxf, these comparisons keep a NaN.
        x = x < -127.0f ? -127.0f : x > 127.0f ? 127.0f : x;
        return static_cast<int8_t>(__float2int_rn(x));
    }
};

} // namespace cleave
