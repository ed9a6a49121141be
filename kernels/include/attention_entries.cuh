// The macros that attention's entry points are made by.
#pragma once

#include "attention_common.cuh"

// The arguments of Attention<T>, of a work list and its count, and Attention<T> of them.
#define ATTENTION_ARGUMENTS(T, Work)                                                                                   \
    const T *q, uint32_t q_stride, const unsigned char *kv, KvLayout layout, uint32_t layer, uint32_t heads,           \
        float scale, uint32_t window, const uint32_t *tables, const Span *spans, T *out, uint32_t out_stride,          \
        const Work *list, const uint32_t *count
#define ATTENTION_INPUT(T) {q, q_stride, kv, layout, layer, heads, scale, window, tables, spans, out, out_stride}

// Every head size that there is, and every element type of KV (its part of names, the type).
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
