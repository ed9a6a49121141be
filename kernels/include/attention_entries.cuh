// Macros that generate the entry points of the attention kernels.
#pragma once

#include "attention_common.cuh"

// Parameters of an entry point: those of Attention<T>, a work list and its count; and the Attention<T> built from them.
#define ATTENTION_ARGUMENTS(T, Work)                                                                                   \
    const T *q, uint32_t q_stride, const unsigned char *kv, KvLayout layout, uint32_t layer, uint32_t heads,           \
        float scale, uint32_t window, const uint32_t *tables, const Span *spans, T *out, uint32_t out_stride,          \
        const Work *list, const uint32_t *count
#define ATTENTION_INPUT(T) {q, q_stride, kv, layout, layer, heads, scale, window, tables, spans, out, out_stride}

// Instantiates every head size with every KV element type (its part of the kernel's name, and the type).
#define FOR_HEAD_SIZES(ENTRY, ...)                                                                                     \
    ENTRY(__VA_ARGS__, 16)                                                                                             \
    ENTRY(__VA_ARGS__, 32)                                                                                             \
    ENTRY(__VA_ARGS__, 64)                                                                                             \
    ENTRY(__VA_ARGS__, 80)                                                                                             \
    ENTRY(__VA_ARGS__, 96)                                                                                             \
    ENTRY(__VA_ARGS__, 128)                                                                                            \
    ENTRY(__VA_ARGS__, 256)
#define FOR_KV_TYPES(ENTRY, T)                                                                                         \
    FOR_HEAD_SIZES(ENTRY, T, float, float)                                                                             \
    FOR_HEAD_SIZES(ENTRY, T, bf16, bf16)                                                                               \
    FOR_HEAD_SIZES(ENTRY, T, f16, f16)                                                                                 \
    FOR_HEAD_SIZES(ENTRY, T, int8, int8_t)
