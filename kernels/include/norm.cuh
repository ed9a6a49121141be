// RMS norm.
#pragma once

#include "quad.cuh"

namespace cleave {

// out[i] = x[r] / sqrt(mean(x[r]²) + eps) * weight, where r = row_ids ? row_ids[i] : i. x is [any, hidden] and out is
// [rows, hidden]. x, out and weight are aligned to 16 bytes. If the row length is a multiple of four, elements are
// processed four at a time. out may be x if T is float and row_ids is null. One block handles one row of out and needs
// one float of shared memory per warp. The block size decides the order of the sum, so the host chooses it by `hidden`
// alone.
template <int D> constexpr int norm_threads = D >= 4096 ? 512 : 256; // for rows of D
template <class T>
__device__ void rms_norm(const float *x, const uint32_t *row_ids, const float *weight, T *out, uint32_t rows,
                         uint32_t hidden, float eps)
{
    const uint32_t row = blockIdx.x;
    if (row >= rows)
        return;
    const float *from = x + uint64_t(row_ids ? row_ids[row] : row) * hidden;
    T *to = out + uint64_t(row) * hidden;
    const bool whole = hidden % 4 == 0;
    float squares = 0.0f;
    for (uint32_t column = 4 * threadIdx.x; column < hidden; column += 4 * blockDim.x) {
        float four[4];
        load_quad(four, from + column, hidden - column, whole);
        for (int i = 0; i < 4; i++)
            squares += four[i] * four[i];
    }
    squares = block_reduce(squares, Sum{}, reinterpret_cast<float *>(shared_memory()));
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(hidden) + eps);
    // The second read of the row hits the L1 cache.
    for (uint32_t column = 4 * threadIdx.x; column < hidden; column += 4 * blockDim.x) {
        float four[4], w[4];
        load_quad(four, from + column, hidden - column, whole);
        load_quad(w, weight + column, hidden - column, whole);
        for (int i = 0; i < 4; i++)
            four[i] = four[i] * scale * w[i];
        store_quad(to + column, round_quad<T>(four), hidden - column, whole);
    }
}

} // namespace cleave
