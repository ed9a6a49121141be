// y = x · Wᵀ: matrix products for many rows. The order of the sum over k is the same for every tile, every m and every
// row.
#pragma once

#include "ptx.cuh"

namespace cleave {

// Arguments of all products: y[m, n] (+)= x[m, k] · w[n, k]ᵀ + bias[n]. Rows of `x` and `y` lie `x_stride` and
// `y_stride` elements apart; `w` is dense. `x` and `w` are aligned to 16 bytes; x_stride and k are multiples of 16 /
// sizeof(T). `bias` may be null. With `accumulate` the product is added to `y`. `y` must not overlap any input.
template <class T, class O> struct Product {
    O *y;
    uint32_t y_stride;
    const T *x;
    uint32_t x_stride;
    const T *w;
    const float *bias;
    uint32_t m, n, k;
    uint32_t accumulate;

    __device__ void write(uint32_t row, uint32_t column, float value) const
    {
        if (row >= m || column >= n)
            return;
        O *at = y + uint64_t(row) * y_stride + column;
        *at = from_float<O>(finish(at, column, value));
    }
    // Stores `column` (even) and the next one, in a single access where alignment allows.
    __device__ void write(uint32_t row, uint32_t column, float first, float second) const
    {
        O *at = y + uint64_t(row) * y_stride + column;
        if (row < m && column + 1 < n && reinterpret_cast<uint64_t>(at) % (2 * sizeof(O)) == 0) {
            struct alignas(2 * sizeof(O)) Two {
                O x, y;
            };
            const Two two = {from_float<O>(finish(at, column, first)), from_float<O>(finish(at + 1, column + 1, second))};
            *reinterpret_cast<Two *>(at) = two;
        } else {
            write(row, column, first);
            write(row, column + 1, second);
        }
    }

  private:
    __device__ float finish(const O *at, uint32_t column, float value) const
    {
        if (bias != nullptr)
            value += bias[column];
        return accumulate != 0 ? to_float(*at) + value : value;
    }
};

// One block's tile of y on tensor cores: `M` × `N`, with `K` of k per step, `Stages` buffers, and `WarpsM` × `WarpsN`
// warps.
template <int M, int N, int K, int WarpsM, int WarpsN, int Stages> struct MmaTile {
    static constexpr int m = M, n = N, k = K, warps_m = WarpsM, warps_n = WarpsN, stages = Stages;
    static constexpr int threads = 32 * WarpsM * WarpsN;
    static constexpr int chunks = K / 8; // of 16 bytes, in a row
    static constexpr int stage = (M + N) * K;
    static constexpr int shared_bytes = 2 * Stages * stage;
    static_assert(chunks == 4 || chunks == 8, "rows of 64 or 128 bytes");
    static_assert(M / WarpsM % 16 == 0 && N / WarpsN % 16 == 0, "whole fragments");

    // Offset of a row's chunk. Chunks are permuted so that the chunks of eight rows, as ldmatrix reads them, lie in
    // different banks.
    __device__ static int at(int row, int chunk) { return row * K + (chunk ^ row / (8 / chunks) % chunks) * 8; }
};

// Grid: x = m / Tile::m, y = n / Tile::n, rounded up. Block: Tile::threads. Shared: Tile::shared_bytes. Elements have
// 16 bits. Uses multi-stage cp.async and mma like CUTLASS's sm_80 kernels. An element of y is summed over k in steps of
// 16.
template <class Tile, class T, class O> __device__ void gemm_mma(const Product<T, O> &product)
{
    constexpr int Fm = Tile::m / Tile::warps_m / 16, Fn = Tile::n / Tile::warps_n / 8;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t row0 = blockIdx.x * Tile::m, column0 = blockIdx.y * Tile::n;
    if (row0 >= product.m || column0 >= product.n)
        return;
    T *const shared = reinterpret_cast<T *>(shared_memory());
    const int steps = (product.k + Tile::k - 1) / Tile::k;

    const auto load = [&](int step) {
        if (step < steps) {
            T *const stage = shared + step % Tile::stages * Tile::stage;
            for (int i = threadIdx.x; i < (Tile::m + Tile::n) * Tile::chunks; i += Tile::threads) {
                const int line = i / Tile::chunks, chunk = i % Tile::chunks;
                const uint32_t k = step * Tile::k + chunk * 8;
                const bool of_x = line < Tile::m;
                const uint32_t row = of_x ? row0 + line : column0 + line - Tile::m;
                const bool valid = k < product.k && row < (of_x ? product.m : product.n);
                const T *from = of_x ? product.x : product.w;
                if (valid)
                    from += uint64_t(row) * (of_x ? product.x_stride : product.k) + k;
                cp_async(stage + Tile::at(line, chunk), from, valid);
            }
        }
        cp_async_commit();
    };

    float sums[Fm][Fn][4] = {};
    const int warp_m = warp % Tile::warps_m * (Tile::m / Tile::warps_m);
    const int warp_n = Tile::m + warp / Tile::warps_m * (Tile::n / Tile::warps_n);
    const int eight = lane / 8, within = lane % 8;
#pragma unroll
    for (int step = 0; step < Tile::stages - 1; step++)
        load(step);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Tile::stages - 2>();
        __syncthreads(); // this step's data is visible to all; nobody reads the buffer that is loaded next
        load(step + Tile::stages - 1);
        const T *const stage = shared + step % Tile::stages * Tile::stage;
#pragma unroll
        for (int k = 0; k < Tile::chunks; k += 2) {
            uint32_t a[Fm][4], b[Fn / 2][4];
#pragma unroll
            for (int i = 0; i < Fm; i++)
                ldmatrix(a[i], stage + Tile::at(warp_m + 16 * i + eight % 2 * 8 + within, k + eight / 2));
#pragma unroll
            for (int j = 0; j < Fn / 2; j++)
                ldmatrix(b[j], stage + Tile::at(warp_n + 16 * j + eight / 2 * 8 + within, k + eight % 2));
#pragma unroll
            for (int i = 0; i < Fm; i++)
#pragma unroll
                for (int j = 0; j < Fn; j++) {
                    const uint32_t two[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    mma16816<T>(sums[i][j], a[i], two);
                }
        }
    }
#pragma unroll
    for (int i = 0; i < Fm; i++)
#pragma unroll
        for (int j = 0; j < Fn; j++) {
            const uint32_t row = row0 + warp_m + 16 * i + lane / 4;
            const uint32_t column = column0 + warp_n - Tile::m + 8 * j + lane % 4 * 2;
            product.write(row, column, sums[i][j][0], sums[i][j][1]);
            product.write(row + 8, column, sums[i][j][2], sums[i][j][3]);
        }
}

// The tile for most products, and a narrow one for few rows, which gives more blocks to stream W.
using WideTile = MmaTile<128, 128, 32, 2, 4, 4>;
using FlatTile = MmaTile<64, 32, 64, 2, 2, 6>;

constexpr int gemm_rows = 128;
constexpr int gemm_columns = 128;
constexpr int gemm_threads = 256;
constexpr int gemm_shared = 65536;
static_assert(WideTile::m == gemm_rows && WideTile::n == gemm_columns && WideTile::threads == gemm_threads &&
                  WideTile::shared_bytes == gemm_shared,
              "launch shape of gemm_");
constexpr int gemm_flat_rows = 64;
constexpr int gemm_flat_columns = 32;
constexpr int gemm_flat_threads = 128;
constexpr int gemm_flat_shared = 73728;
static_assert(FlatTile::m == gemm_flat_rows && FlatTile::n == gemm_flat_columns && FlatTile::threads == gemm_flat_threads &&
                  FlatTile::shared_bytes == gemm_flat_shared,
              "launch shape of gemm_flat_");

// Products of float matrices on CUDA cores. A step covers 16 of k, which are added in order.
struct FloatTile {
    static constexpr int m = 64, n = 64, k = 16, stages = 3, threads = 256;
    static constexpr int row = k + 4; // 16 bytes more: eight rows' 16 bytes lie in different banks
    static constexpr int shared_bytes = stages * (m + n) * row * int(sizeof(float));
};
constexpr int gemm_float_rows = 64;
constexpr int gemm_float_columns = 64;
constexpr int gemm_float_threads = 256;
constexpr int gemm_float_shared = 30720;
static_assert(FloatTile::m == gemm_float_rows && FloatTile::n == gemm_float_columns &&
                  FloatTile::threads == gemm_float_threads && FloatTile::shared_bytes == gemm_float_shared,
              "launch shape of gemm_float_float");

__device__ inline void gemm_float(const Product<float, float> &product)
{
    using Tile = FloatTile;
    using Vec = vec<float>;
    const uint32_t row0 = blockIdx.x * Tile::m, column0 = blockIdx.y * Tile::n;
    if (row0 >= product.m || column0 >= product.n)
        return;
    float *const shared = reinterpret_cast<float *>(shared_memory());
    const int steps = (product.k + Tile::k - 1) / Tile::k;

    const auto load = [&](int step) {
        if (step < steps) {
            float *const stage = shared + step % Tile::stages * (Tile::m + Tile::n) * Tile::row;
            for (int i = threadIdx.x; i < (Tile::m + Tile::n) * Tile::k / 4; i += Tile::threads) {
                const int line = i / (Tile::k / 4), chunk = i % (Tile::k / 4) * 4;
                const uint32_t k = step * Tile::k + chunk;
                const bool of_x = line < Tile::m;
                const uint32_t row = of_x ? row0 + line : column0 + line - Tile::m;
                const bool valid = k < product.k && row < (of_x ? product.m : product.n);
                const float *from = of_x ? product.x : product.w;
                if (valid)
                    from += uint64_t(row) * (of_x ? product.x_stride : product.k) + k;
                cp_async(stage + line * Tile::row + chunk, from, valid);
            }
        }
        cp_async_commit();
    };

    float sums[4][4] = {};
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int step = 0; step < Tile::stages - 1; step++)
        load(step);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Tile::stages - 2>();
        __syncthreads();
        load(step + Tile::stages - 1);
        const float *const x = shared + step % Tile::stages * (Tile::m + Tile::n) * Tile::row;
        const float *const w = x + Tile::m * Tile::row;
#pragma unroll
        for (int k = 0; k < Tile::k; k += 4) {
            Vec a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[i] = *reinterpret_cast<const Vec *>(x + (ty + 16 * i) * Tile::row + k);
                b[i] = *reinterpret_cast<const Vec *>(w + (tx + 16 * i) * Tile::row + k);
            }
#pragma unroll
            for (int c = 0; c < 4; c++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        sums[i][j] = fmaf(a[i].at[c], b[j].at[c], sums[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            product.write(row0 + ty + 16 * i, column0 + tx + 16 * j, sums[i][j]);
}

} // namespace cleave
