// Embedding lookup, which produces the first residual stream.
#pragma once

#include "quad.cuh"

namespace cleave {

constexpr int embed_threads = 128;

// out[row] = table[tokens[row]]. table is [vocabulary, hidden] and out is [rows, hidden]; both are aligned to 16 bytes.
// Every token is below vocabulary. One block of any number of threads handles one row.
template <class W>
__device__ void embed(const W *table, const uint32_t *tokens, float *out, uint32_t rows, uint32_t hidden)
{
    const uint32_t row = blockIdx.x;
    if (row >= rows)
        return;
    const W *from = table + uint64_t(tokens[row]) * hidden;
    float *to = out + uint64_t(row) * hidden;
    const bool whole = hidden % 4 == 0;
    for (uint32_t column = 4 * threadIdx.x; column < hidden; column += 4 * blockDim.x) {
        float four[4];
        load_quad(four, from + column, hidden - column, whole);
        store_quad(to + column, round_quad<float>(four), hidden - column, whole);
    }
}

} // namespace cleave
