#include "include/gemm.cuh"

using namespace cleave;

// y[m, n] (+)= x[m, k] · w[n, k]ᵀ + bias, see Product. The grid of gemm_ consists of tiles of gemm_rows × gemm_columns.
// gemm_flat_ is for few rows and uses tiles of gemm_flat_rows × gemm_flat_columns. Both give the same bits.
#define GEMM_ENTRY(name, Tile, blocks, T, O)                                                                           \
    extern "C" __global__ void __launch_bounds__(Tile::threads, blocks)                                                \
        name(O *y, uint32_t y_stride, const T *x, uint32_t x_stride, const T *w, const float *bias, uint32_t m,        \
             uint32_t n, uint32_t k, uint32_t accumulate)                                                              \
    {                                                                                                                  \
        gemm_mma<Tile>(Product<T, O>{y, y_stride, x, x_stride, w, bias, m, n, k, accumulate});                         \
    }                                                                                                                  \
    CLEAVE_ENTRY(name)

#define GEMM(T, O)                                                                                                     \
    GEMM_ENTRY(gemm_##T##_##O, WideTile, 2, T, O)                                                                      \
    GEMM_ENTRY(gemm_flat_##T##_##O, FlatTile, 2, T, O)

GEMM(bf16, bf16)
GEMM(bf16, float)
GEMM(f16, f16)
GEMM(f16, float)

// Grid: tiles of gemm_float_rows × gemm_float_columns.
extern "C" __global__ void __launch_bounds__(gemm_float_threads, 2)
    gemm_float_float(float *y, uint32_t y_stride, const float *x, uint32_t x_stride, const float *w, const float *bias,
                     uint32_t m, uint32_t n, uint32_t k, uint32_t accumulate)
{
    gemm_float(Product<float, float>{y, y_stride, x, x_stride, w, bias, m, n, k, accumulate});
}
CLEAVE_ENTRY(gemm_float_float)
