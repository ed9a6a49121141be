// gate = silu(gate) * up
#pragma once

#include "types.cuh"

namespace cleave {

constexpr int activation_threads = 256;

// `gate` and `up` are [rows, columns]; their rows lie `gate_stride` and `up_stride` elements apart. One thread handles
// one 16-byte piece of a row. Columns and strides are multiples of 16 / sizeof(T).
template <class T>
__device__ void silu_mul(T *gate, uint32_t gate_stride, const T *up, uint32_t up_stride, uint32_t rows, uint32_t columns)
{
    using Vec = vec<T>;
    const uint32_t pieces = columns / Vec::size;
    const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t row = index / pieces, column = index % pieces * Vec::size;
    if (row >= rows)
        return;
    Vec *at = reinterpret_cast<Vec *>(gate + uint64_t(row) * gate_stride + column);
    Vec g = *at;
    const Vec u = *reinterpret_cast<const Vec *>(up + uint64_t(row) * up_stride + column);
    for (int i = 0; i < Vec::size; i++) {
        const float x = to_float(g.at[i]);
        g.at[i] = from_float<T>(x / (1.0f + __expf(-x)) * to_float(u.at[i]));
    }
    *at = g;
}

// residual += x; both have `elements` floats. One thread handles one element.
__device__ inline void add(float *residual, const float *x, uint32_t elements)
{
    const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < elements)
        residual[at] += x[at];
}

} // namespace cleave
