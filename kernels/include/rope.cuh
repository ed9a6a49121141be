// Per-head norms, rotation of q and k, and the store of k and v into KV blocks.
#pragma once

#include "int8.cuh"
#include "layout.cuh"
#include "quad.cuh"

namespace cleave {

constexpr int rope_threads = 128;
constexpr uint32_t padding_slot = 0xffffffffu; // of a row that is none

// Stores four elements of each half of a row as token `token` of a stripe. The halves lie `half` elements apart; `at`
// is the offset in a half. All lanes of the warp must call this; lanes with nothing to store pass a null `stripe`.
template <class K>
__device__ inline void store_kv(unsigned char *stripe, const KvLayout &layout, uint32_t token, uint32_t at,
                                const float (&low)[4], const float (&high)[4], uint32_t count, bool whole, uint32_t lanes)
{
    const uint32_t half = layout.head_dim / 2;
    K *to = reinterpret_cast<K *>(stripe) + uint64_t(token) * layout.head_dim + at;
    if constexpr (same<K, int8_t>) {
        uint32_t largest = 0;
        for (int i = 0; i < 4; i++)
            largest = Max{}(largest, Max{}(magnitude(low[i]), magnitude(high[i])));
        const Quantiser quantise(lanes_reduce(largest, Max{}, lanes));
        if (stripe == nullptr)
            return;
        quad<int8_t> q[2];
        for (int i = 0; i < 4; i++) {
            q[0].at[i] = quantise(low[i]);
            q[1].at[i] = quantise(high[i]);
        }
        store_quad(to, q[0], count, whole);
        store_quad(to + half, q[1], count, whole);
        if (at == 0)
            reinterpret_cast<float *>(stripe + layout.scales_offset)[token] = quantise.scale;
    } else {
        if (stripe == nullptr)
            return;
        store_quad(to, round_quad<K>(low), count, whole);
        store_quad(to + half, round_quad<K>(high), count, whole);
    }
}

// Rotates q's heads in place and writes k's and v's heads to the row's slot, which is block * block_tokens + token in
// the block. Rows whose slot is padding_slot are padding and write nothing. q is [rows, heads, head_dim]; k and v are
// [rows, kv_heads, head_dim]; their rows lie q_stride, k_stride and v_stride elements apart. cos and sin are [rows,
// head_dim / 2]. q_norm and k_norm are [head_dim], or null for no norm. Pairs are (x[i], x[i + head_dim / 2]). head_dim
// is even and at most 256. Pointers are aligned to 16 bytes. If head_dim and all strides are multiples of 8, elements
// are processed four at a time.
//
// A head takes lanes_of(head_dim / 2) neighbouring lanes with four pairs each. A row's heads are those of q, k and v,
// in this order.
template <class T, class K>
__device__ void rope_store(T *q, uint32_t q_stride, const T *k, uint32_t k_stride, const T *v, uint32_t v_stride,
                           const float *q_norm, const float *k_norm, float eps, const float *cos, const float *sin,
                           const uint32_t *slots, unsigned char *kv, const KvLayout &layout, uint32_t layer,
                           uint32_t heads, uint32_t rows)
{
    const uint32_t dim = layout.head_dim, half = dim / 2, lanes = lanes_of(half);
    const uint32_t per_row = heads + 2 * layout.kv_heads;
    const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t row = index / lanes / per_row, head = index / lanes % per_row, at = index % lanes * 4;
    const uint32_t slot = row < rows ? slots[row] : padding_slot;
    if (!__any_sync(whole_warp, slot != padding_slot))
        return;
    const bool is_q = head < heads, is_k = !is_q && head < heads + layout.kv_heads;
    const uint32_t count = slot != padding_slot && at < half ? min(4u, half - at) : 0;
    const bool vectors = (dim | q_stride | k_stride | v_stride) % 8 == 0, whole = vectors && count == 4;

    const uint32_t of_kv = is_q ? 0 : is_k ? head - heads : head - heads - layout.kv_heads;
    const T *x = is_q   ? q + uint64_t(row) * q_stride + uint64_t(head) * dim
                 : is_k ? k + uint64_t(row) * k_stride + uint64_t(of_kv) * dim
                        : v + uint64_t(row) * v_stride + uint64_t(of_kv) * dim;
    float low[4], high[4];
    load_quad(low, x + at, count, whole);
    load_quad(high, x + half + at, count, whole);

    if (q_norm != nullptr || k_norm != nullptr) {
        float squares = 0.0f;
        for (int i = 0; i < 4; i++)
            squares += low[i] * low[i] + high[i] * high[i];
        squares = lanes_reduce(squares, Sum{}, lanes);
        const float *weight = is_q ? q_norm : is_k ? k_norm : nullptr;
        if (weight != nullptr) {
            const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
            float w[2][4];
            load_quad(w[0], weight + at, count, whole);
            load_quad(w[1], weight + half + at, count, whole);
            for (int i = 0; i < 4; i++) {
                low[i] = low[i] * scale * w[0][i];
                high[i] = high[i] * scale * w[1][i];
            }
        }
    }
    if (is_q || is_k) {
        float c[4], s[4];
        load_quad(c, cos + uint64_t(row) * half + at, count, whole);
        load_quad(s, sin + uint64_t(row) * half + at, count, whole);
        for (int i = 0; i < 4; i++) {
            const float a = low[i], b = high[i];
            // Each product is rounded on its own, as on the CPU.
            low[i] = __fmul_rn(a, c[i]) - __fmul_rn(b, s[i]);
            high[i] = __fmul_rn(b, c[i]) + __fmul_rn(a, s[i]);
        }
    }
    unsigned char *stripe = nullptr;
    if (is_q) {
        T *to = q + uint64_t(row) * q_stride + uint64_t(head) * dim + at;
        store_quad(to, round_quad<T>(low), count, whole);
        store_quad(to + half, round_quad<T>(high), count, whole);
    } else if (count > 0) {
        stripe = kv + uint64_t(slot / layout.block_tokens) * layout.block_bytes + layout.stripe(layer, !is_k, of_kv);
    }
    store_kv<K>(stripe, layout, slot % layout.block_tokens, at, low, high, count, whole, lanes);
}

} // namespace cleave
