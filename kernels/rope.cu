#include "include/rope.cuh"

using namespace cleave;

// Block: rope_threads is a good choice. Grid: rows * (heads + 2 * kv_heads) * lanes / block size, rounded up, where
// lanes is ceil(head_dim / 8) rounded up to a power of two. No shared memory.
#define ROPE_STORE(T, K, k_name)                                                                                       \
    extern "C" __global__ void rope_store_##T##_##k_name(                                                              \
        T *q, uint32_t q_stride, const T *k, uint32_t k_stride, const T *v, uint32_t v_stride, const float *q_norm,    \
        const float *k_norm, float eps, const float *cos, const float *sin, const uint32_t *slots, unsigned char *kv,  \
        KvLayout layout, uint32_t layer, uint32_t heads, uint32_t rows)                                                \
    {                                                                                                                  \
        rope_store<T, K>(q, q_stride, k, k_stride, v, v_stride, q_norm, k_norm, eps, cos, sin, slots, kv, layout,      \
                         layer, heads, rows);                                                                          \
    }                                                                                                                  \
    CLEAVE_ENTRY(rope_store_##T##_##k_name)

#define ROPE_STORE_OF(T)                                                                                               \
    ROPE_STORE(T, float, float)                                                                                        \
    ROPE_STORE(T, bf16, bf16)                                                                                          \
    ROPE_STORE(T, f16, f16)                                                                                            \
    ROPE_STORE(T, int8_t, int8)

ROPE_STORE_OF(float)
ROPE_STORE_OF(bf16)
ROPE_STORE_OF(f16)
