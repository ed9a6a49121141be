#include "include/norm.cuh"

using namespace cleave;

// Grid: rows. Block: norm_threads<hidden> is a good choice. Shared: 4 bytes per warp.
#define RMS_NORM(T)                                                                                                    \
    extern "C" __global__ void rms_norm_##T(const float *x, const uint32_t *row_ids, const float *weight, T *out,      \
                                            uint32_t rows, uint32_t hidden, float eps)                                 \
    {                                                                                                                  \
        rms_norm<T>(x, row_ids, weight, out, rows, hidden, eps);                                                       \
    }                                                                                                                  \
    CLEAVE_ENTRY(rms_norm_##T)

RMS_NORM(float)
RMS_NORM(bf16)
RMS_NORM(f16)
