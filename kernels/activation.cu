#include "include/activation.cuh"

using namespace cleave;

// Grid: number of 16-byte pieces / block size, rounded up.
#define SILU_MUL(T)                                                                                                    \
    extern "C" __global__ void silu_mul_##T(T *gate, uint32_t gate_stride, const T *up, uint32_t up_stride,            \
                                            uint32_t rows, uint32_t columns)                                           \
    {                                                                                                                  \
        silu_mul<T>(gate, gate_stride, up, up_stride, rows, columns);                                                  \
    }                                                                                                                  \
    CLEAVE_ENTRY(silu_mul_##T)

SILU_MUL(float)
SILU_MUL(bf16)
SILU_MUL(f16)

// Grid: elements / block size, rounded up.
extern "C" __global__ void add_float(float *residual, const float *x, uint32_t elements) { add(residual, x, elements); }
CLEAVE_ENTRY(add_float)
