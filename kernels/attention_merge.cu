#include "include/attention_decode.cuh"
#include "include/attention_entries.cuh"

using namespace cleave;

// Merges rows that have several pieces. Grid and shared memory: see attention_merge.
#define MERGE(T, D)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(decode_threads) attention_merge_##T##_##D(                            \
        T *out, uint32_t out_stride, uint32_t heads, const DecodeMerge *list, const uint32_t *count,                   \
        const float *sums, const float *weights)                                                                       \
    {                                                                                                                  \
        attention_merge<T, D>(out, out_stride, heads, list, count, sums, weights);                                     \
    }                                                                                                                  \
    CLEAVE_ENTRY(attention_merge_##T##_##D)

FOR_HEAD_SIZES(MERGE, float)
FOR_HEAD_SIZES(MERGE, bf16)
FOR_HEAD_SIZES(MERGE, f16)
