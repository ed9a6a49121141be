#include "include/attention_decode_float.cuh"
#include "include/attention_entries.cuh"

using namespace cleave;

// Number of resident blocks for which ptxas must leave registers. Without it, ptxas spills for the smallest heads.
template <class K, int D> constexpr int blocks = D == 16 && sizeof(K) == 1 ? 4 : 1;

// Attention over pieces of the rows' contexts. Grid and shared memory: see attention_decode_float.
#define DECODE(T, name, K, D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(decode_threads, (blocks<K, D>))                                       \
        attention_decode_##T##_##name##_##D(ATTENTION_ARGUMENTS(T, DecodeWork), float *sums, float *weights)           \
    {                                                                                                                  \
        attention_decode_float<K, D>(ATTENTION_INPUT(T), list, count, sums, weights);                                  \
    }                                                                                                                  \
    CLEAVE_ENTRY(attention_decode_##T##_##name##_##D)

FOR_KV_TYPES(DECODE, float)
