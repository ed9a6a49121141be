// Copies of KV blocks: whole blocks, and conversions to another layout.
#pragma once

#include "int8.cuh"
#include "layout.cuh"
#include "quad.cuh"

namespace cleave {

constexpr int kv_copy_threads = 256;
constexpr int kv_copy_ahead = 4; // loads under way
constexpr int kv_convert_threads = 128;

// Copies the words of one block to another, using the threads of all blocks along the grid's x.
template <class Word> __device__ inline void copy_words(unsigned char *to, const unsigned char *from, uint64_t bytes)
{
    constexpr int ahead = kv_copy_ahead;
    const uint64_t words = bytes / sizeof(Word), step = uint64_t(gridDim.x) * blockDim.x;
    const Word *source = reinterpret_cast<const Word *>(from);
    Word *target = reinterpret_cast<Word *>(to);
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < words; at += ahead * step) {
        Word kept[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++)
            if (at + i * step < words)
                kept[i] = source[at + i * step];
#pragma unroll
        for (int i = 0; i < ahead; i++)
            if (at + i * step < words)
                target[at + i * step] = kept[i];
    }
}

// Copies block from_ids[i] of `from` to block to_ids[i] of `to`, for i in 0..count. Null ids mean block i. A block that
// is written must not occur in any other pair. block_bytes and the slabs are multiples of 4, and of 16 for copies 16
// bytes wide. Works with any grid: y strides over the pairs, x over the bytes.
__device__ inline void copy_blocks(unsigned char *to, const uint32_t *to_ids, const unsigned char *from,
                               const uint32_t *from_ids, uint64_t block_bytes, uint32_t count)
{
    const bool wide = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | block_bytes) % 16 == 0;
    for (uint32_t i = blockIdx.y; i < count; i += gridDim.y) {
        unsigned char *target = to + (to_ids ? to_ids[i] : i) * block_bytes;
        const unsigned char *source = from + (from_ids ? from_ids[i] : i) * block_bytes;
        if (wide)
            copy_words<vec<uint32_t>>(target, source, block_bytes);
        else
            copy_words<uint32_t>(target, source, block_bytes);
    }
}

// Converts the row of one token and head to another layout, using `lanes` neighbouring lanes. Values pass through float
// and are rounded once; rows of the same type keep their bits. All lanes of the warp must call this; lanes without a
// row pass null for `from`.
template <class From, class To>
__device__ inline void convert_row(const unsigned char *from, const KvLayout &from_layout, uint32_t from_token,
                                   unsigned char *to, const KvLayout &to_layout, uint32_t to_token, uint32_t lane,
                                   uint32_t lanes)
{
    const uint32_t dim = from != nullptr ? from_layout.head_dim : 0;
    const bool whole = dim % 4 == 0;
    const From *source = reinterpret_cast<const From *>(from) + uint64_t(from_token) * dim;
    To *target = reinterpret_cast<To *>(to) + uint64_t(to_token) * dim;
    float scale = 1.0f;
    if constexpr (same<From, int8_t>)
        if (dim > 0)
            scale = reinterpret_cast<const float *>(from + from_layout.scales_offset)[from_token];
    const auto load = [&](float(&four)[4], uint32_t at) {
        load_quad(four, source + at, dim - at, whole);
        if constexpr (same<From, int8_t>)
            for (int i = 0; i < 4; i++)
                four[i] = __fmul_rn(four[i], scale);
    };
    if constexpr (same<From, To>) {
        for (uint32_t at = 4 * lane; at < dim; at += 4 * lanes) {
            if (whole)
                *reinterpret_cast<quad<To> *>(target + at) = *reinterpret_cast<const quad<From> *>(source + at);
            else
                for (uint32_t i = at; i < at + 4 && i < dim; i++)
                    target[i] = source[i];
        }
    } else if constexpr (same<To, int8_t>) {
        uint32_t largest = 0;
        for (uint32_t at = 4 * lane; at < dim; at += 4 * lanes) {
            float four[4];
            load(four, at);
            for (int i = 0; i < 4; i++)
                largest = Max{}(largest, magnitude(four[i]));
        }
        const Quantiser quantise(lanes_reduce(largest, Max{}, lanes));
        scale = quantise.scale;
        for (uint32_t at = 4 * lane; at < dim; at += 4 * lanes) {
            float four[4];
            load(four, at);
            quad<int8_t> q;
            for (int i = 0; i < 4; i++)
                q.at[i] = quantise(four[i]);
            store_quad(target + at, q, dim - at, whole);
        }
    } else {
        for (uint32_t at = 4 * lane; at < dim; at += 4 * lanes) {
            float four[4];
            load(four, at);
            store_quad(target + at, round_quad<To>(four), dim - at, whole);
        }
    }
    if constexpr (same<To, int8_t>)
        if (dim > 0 && lane == 0)
            reinterpret_cast<float *>(to + to_layout.scales_offset)[to_token] = scale;
}

// Copies tokens first..end of a sequence from the blocks from_table of one slab to the blocks to_table of another slab,
// or to other blocks of the same slab. The layouts may differ only in block_tokens, type and shards. The rest of the
// blocks stays unchanged. Slabs are aligned to 16 bytes. A row takes lanes_of(head_dim) lanes. Works with any grid: x
// strides over tokens, y over stripes.
template <class From, class To>
__device__ void kv_convert(const unsigned char *from, const uint32_t *from_table, const KvLayout &from_layout,
                           unsigned char *to, const uint32_t *to_table, const KvLayout &to_layout, uint32_t first,
                           uint32_t end)
{
    const uint32_t heads = from_layout.kv_heads, stripes = 2 * from_layout.layers * heads;
    const uint32_t lanes = lanes_of(from_layout.head_dim), lane = threadIdx.x % lanes;
    const uint32_t at_once = blockDim.x / lanes; // rows that a block handles at once
    for (uint32_t stripe = blockIdx.y; stripe < stripes; stripe += gridDim.y) {
        const uint32_t layer = stripe / heads / 2, value = stripe / heads % 2, head = stripe % heads;
        const uint64_t from_stripe = from_layout.stripe(layer, value, head);
        const uint64_t to_stripe = to_layout.stripe(layer, value, head);
        // Iterates by the block's first row, so that the lanes of a warp stay together.
        const uint64_t step = uint64_t(gridDim.x) * at_once;
        for (uint64_t base = first + uint64_t(blockIdx.x) * at_once; base < end; base += step) {
            const uint64_t token = base + threadIdx.x / lanes;
            const uint32_t t = static_cast<uint32_t>(token);
            const unsigned char *source = nullptr;
            unsigned char *target = nullptr;
            if (token < end) {
                source = from + from_table[t / from_layout.block_tokens] * from_layout.block_bytes + from_stripe;
                target = to + to_table[t / to_layout.block_tokens] * to_layout.block_bytes + to_stripe;
            }
            convert_row<From, To>(source, from_layout, t % from_layout.block_tokens, target, to_layout,
                                  t % to_layout.block_tokens, lane, lanes);
        }
    }
}

} // namespace cleave
