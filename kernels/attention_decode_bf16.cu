#include "include/attention_decode.cuh"
#include "include/attention_entries.cuh"

using namespace cleave;

// Attention over pieces of the rows' contexts. Grid and shared memory: see attention_decode.
#define DECODE(T, name, K, D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(decode_threads, sizeof(K) == 4 ? 3 : 4) attention_decode_##T##_##name##_##D(               \
        ATTENTION_ARGUMENTS(T, DecodeWork), float *sums, float *weights)                                               \
    {                                                                                                                  \
        attention_decode<T, K, D>(ATTENTION_INPUT(T), list, count, sums, weights);                                     \
    }                                                                                                                  \
    CLEAVE_ENTRY(attention_decode_##T##_##name##_##D)

FOR_KV_TYPES(DECODE, bf16)
