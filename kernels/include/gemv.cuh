// y = x · Wᵀ for 1 to 8 rows of x, reading W only once. The bits of a row do not depend on the number of rows.
#pragma once

#include "gemm.cuh"
#include "reduce.cuh"

namespace cleave {

constexpr int gemv_rows = 8; // of x, at most
constexpr int gemv_threads = 256;
constexpr int gemv_outputs = 16; // of a block
constexpr int gemv_shared = 4096; // for each matrix
constexpr int gemv_float_outputs = 8;

// Grid: x = n / gemv_outputs, rounded up. Block: gemv_threads. Shared: Matrices * gemv_shared. Elements have 16 bits; k
// is a multiple of 8; m is at most gemv_rows. `finish(row, column, sums)` receives one sum for each matrix in `w`; all
// are [n, k].
//
// A block takes 16 rows of W; each warp takes pieces of 64 of k. Rows of W are operand a of the mma, rows of x are
// operand b, padded to eight. Arithmetic is therefore negligible beside the loads. The mma allows any order of k as
// long as a and b agree, so lane t of four takes elements 8t..8t+7 of each 32 straight from memory. x is read through
// the caches because a block needs each element only once. The sums of the warps are added in warp order.
template <int Matrices, class T, class Finish>
__device__ void gemv_mma(const T *const (&w)[Matrices], const T *x, uint32_t x_stride, uint32_t m, uint32_t n, uint32_t k,
                         Finish finish)
{
    constexpr uint32_t Warps = 8, Piece = 64, Unroll = 2 / Matrices; // pieces at a time, and the next ones under way
    struct Loaded {
        uint32_t w[Matrices][2][2][4], x[2][4]; // [rows g and g + 8][half of the piece][8 elements]
    };
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    static_assert(gemv_outputs == 16 && gemv_threads == 32 * Warps && gemv_shared == Warps * gemv_rows * gemv_outputs * 4,
                  "the fragments of a warp");
    const uint32_t row = blockIdx.x * gemv_outputs + g;
    if (blockIdx.x * gemv_outputs >= n || m == 0)
        return;

    const auto load = [&](uint32_t from, Loaded &out) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t at = from + half * 32 + t * 8;
#pragma unroll
            for (int i = 0; i < Matrices; i++)
#pragma unroll
                for (int upper = 0; upper < 2; upper++)
                    load_once(out.w[i][upper][half], w[i] + uint64_t(row + 8 * upper) * k + at,
                              at < k && row + 8 * upper < n);
            vec<uint32_t> eight = {};
            if (at < k && g < m)
                eight = *reinterpret_cast<const vec<uint32_t> *>(x + uint64_t(g) * x_stride + at);
#pragma unroll
            for (int i = 0; i < 4; i++)
                out.x[half][i] = eight.at[i];
        }
    };

    constexpr uint32_t Step = Warps * Piece;
    const auto load_pieces = [&](uint32_t from, Loaded(&out)[Unroll]) {
#pragma unroll
        for (uint32_t u = 0; u < Unroll; u++)
            load(from + u * Step, out[u]);
    };
    float sums[Matrices][4] = {};
    const auto add = [&](const Loaded(&pieces)[Unroll]) {
#pragma unroll
        for (uint32_t u = 0; u < Unroll; u++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int two = 0; two < 4; two += 2)
#pragma unroll
                    for (int i = 0; i < Matrices; i++) {
                        const auto &rows = pieces[u].w[i];
                        const uint32_t a[4] = {rows[0][half][two], rows[1][half][two], rows[0][half][two + 1],
                                               rows[1][half][two + 1]};
                        const uint32_t b[2] = {pieces[u].x[half][two], pieces[u].x[half][two + 1]};
                        mma16816<T>(sums[i], a, b);
                    }
    };
    // One buffer is loaded while the other is added. Beyond k nothing is loaded and zeros are added.
    Loaded one[Unroll], other[Unroll];
    load_pieces(warp * Piece, one);
    for (uint32_t from = warp * Piece; from < k; from += 2 * Unroll * Step) {
        load_pieces(from + Unroll * Step, other);
        add(one);
        load_pieces(from + 2 * Unroll * Step, one);
        add(other);
    }

    float *const shared = reinterpret_cast<float *>(shared_memory()); // [matrix][warp][row of x][row of W]
#pragma unroll
    for (int i = 0; i < Matrices; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            shared[((i * Warps + warp) * 8 + 2 * t + j % 2) * 16 + g + j / 2 * 8] = sums[i][j];
    __syncthreads();
    const uint32_t of_x = threadIdx.x / 16, column = blockIdx.x * 16 + threadIdx.x % 16;
    if (of_x >= m || of_x >= 8 || column >= n)
        return;
    float total[Matrices] = {};
    for (int i = 0; i < Matrices; i++)
        for (uint32_t other = 0; other < Warps; other++)
            total[i] += shared[(i * Warps + other) * 128 + threadIdx.x];
    finish(of_x, column, total);
}

// The same for float on CUDA cores. Grid: x = n / gemv_float_outputs, rounded up. Block: gemv_threads. No shared
// memory. k is a multiple of 4. A warp takes one row of each W; a lane takes four elements of every 128.
template <int Matrices, class Finish>
__device__ void gemv_float(const float *const (&w)[Matrices], const float *x, uint32_t x_stride, uint32_t m, uint32_t n,
                           uint32_t k, Finish finish)
{
    using Vec = vec<float>;
    const uint32_t lane = threadIdx.x % 32, column = blockIdx.x * gemv_float_outputs + threadIdx.x / 32;
    if (column >= n)
        return;
    float sums[Matrices][8] = {};
#pragma unroll 4 / Matrices
    for (uint32_t at = lane * 4; at < k; at += 128) {
        uint32_t four[Matrices][4];
#pragma unroll
        for (int i = 0; i < Matrices; i++)
            load_once(four[i], w[i] + uint64_t(column) * k + at, true);
#pragma unroll
        for (int row = 0; row < 8; row++)
            if (row < m) {
                const Vec of_x = *reinterpret_cast<const Vec *>(x + uint64_t(row) * x_stride + at);
#pragma unroll
                for (int i = 0; i < Matrices; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        sums[i][row] = fmaf(__uint_as_float(four[i][c]), of_x.at[c], sums[i][row]);
            }
    }
#pragma unroll
    for (int row = 0; row < 8; row++)
        if (row < m) {
            float total[Matrices];
#pragma unroll
            for (int i = 0; i < Matrices; i++)
                total[i] = warp_reduce(sums[i][row], Sum());
            if (lane == 0)
                finish(row, column, total);
        }
}

template <int Matrices, class T, class Finish>
__device__ void gemv_of(const T *const (&w)[Matrices], const T *x, uint32_t x_stride, uint32_t m, uint32_t n, uint32_t k,
                        Finish finish)
{
    if constexpr (sizeof(T) == 4)
        gemv_float(w, x, x_stride, m, n, k, finish);
    else
        gemv_mma(w, x, x_stride, m, n, k, finish);
}

template <class T, class O> __device__ void gemv(const Product<T, O> &product)
{
    const T *const w[1] = {product.w};
    gemv_of(w, product.x, product.x_stride, product.m, product.n, product.k,
            [&](uint32_t row, uint32_t column, const float(&sums)[1]) { product.write(row, column, sums[0]); });
}

// y = silu(x · gateᵀ) * (x · upᵀ). Both products are rounded to T first, which gives the same bits as two products and
// silu_mul.
template <class T>
__device__ void gemv_silu(T *y, uint32_t y_stride, const T *x, uint32_t x_stride, const T *gate, const T *up, uint32_t m,
                          uint32_t n, uint32_t k)
{
    const T *const w[2] = {gate, up};
    gemv_of(w, x, x_stride, m, n, k, [&](uint32_t row, uint32_t column, const float(&sums)[2]) {
        const float of_gate = to_float(from_float<T>(sums[0])), of_up = to_float(from_float<T>(sums[1]));
        y[uint64_t(row) * y_stride + column] = from_float<T>(of_gate / (1.0f + __expf(-of_gate)) * of_up);
    });
}

} // namespace cleave
