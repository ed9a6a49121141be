#include "include/gemv.cuh"

using namespace cleave;

// y[m, n] (+)= x[m, k] · w[n, k]ᵀ + bias for m from 1 to gemv_rows. See Product and gemv.cuh.
#define GEMV(T, O)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(gemv_threads, 2)                                                               \
        gemv_##T##_##O(O *y, uint32_t y_stride, const T *x, uint32_t x_stride, const T *w, const float *bias,          \
                       uint32_t m, uint32_t n, uint32_t k, uint32_t accumulate)                                        \
    {                                                                                                                  \
        gemv(Product<T, O>{y, y_stride, x, x_stride, w, bias, m, n, k, accumulate});                                   \
    }                                                                                                                  \
    CLEAVE_ENTRY(gemv_##T##_##O)

// y[m, n] = silu(x · gateᵀ) * (x · upᵀ); both matrices are [n, k]. Launched like gemv_, with shared memory for two
// matrices.
#define GEMV_SILU(T)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(gemv_threads, 2)                                                               \
        gemv_silu_##T(T *y, uint32_t y_stride, const T *x, uint32_t x_stride, const T *gate, const T *up, uint32_t m,  \
                      uint32_t n, uint32_t k)                                                                          \
    {                                                                                                                  \
        gemv_silu(y, y_stride, x, x_stride, gate, up, m, n, k);                                                        \
    }                                                                                                                  \
    CLEAVE_ENTRY(gemv_silu_##T)

GEMV(float, float)
GEMV(bf16, bf16)
GEMV(bf16, float)
GEMV(f16, f16)
GEMV(f16, float)

GEMV_SILU(float)
GEMV_SILU(bf16)
GEMV_SILU(f16)
