#include "include/attention_entries.cuh"
#include "include/attention_prefill.cuh"

using namespace cleave;

// Attention over tiles of query rows. Grid and shared memory: see attention_prefill.
#define PREFILL(T, name, K, D)                                                                                         \
    extern "C" __global__ void __launch_bounds__(prefill_threads)                                                      \
        attention_prefill_##T##_##name##_##D(ATTENTION_ARGUMENTS(T, PrefillWork))                                      \
    {                                                                                                                  \
        attention_prefill<T, K, D>(ATTENTION_INPUT(T), list, count);                                                   \
    }                                                                                                                  \
    CLEAVE_ENTRY(attention_prefill_##T##_##name##_##D)

FOR_KV_TYPES(PREFILL, f16)
