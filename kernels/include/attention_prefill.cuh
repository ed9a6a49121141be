// Causal attention for many rows over paged KV on tensor cores ("FlashAttention-2", Dao 2023). The query heads that
// share a KV head are rows of the same tile.
#pragma once

#include "attention_common.cuh"

namespace cleave {

constexpr int prefill_threads = 128;
template <int D> constexpr int prefill_rows = D <= 128 ? 128 : 64;
template <int D> constexpr int prefill_tokens = D <= 80 ? 64 : D <= 128 ? 48 : 32;
template <int D> constexpr int prefill_shared = (prefill_rows<D> + 2 * prefill_tokens<D>) * (D + 8) * 2 + 2 * prefill_tokens<D> * 16;

// Shared memory of one tile. Its `rows` are pairs (query row, head); the heads of a group that belong to one query row
// are adjacent. K and V are loaded `tokens` at a time, always at multiples of `tokens`, so a row's result does not
// depend on its batch. Rows in shared memory are padded by 16 bytes to avoid bank conflicts of ldmatrix and of copies.
template <class T, int D> struct PrefillShared {
    static constexpr int rows = prefill_rows<D>, tokens = prefill_tokens<D>, stride = D + 8;
    T q[rows][stride]; // holds the results at the end
    T k[tokens][stride], v[tokens][stride];
    Place places[2][tokens]; // for the current and the next tile, by parity
};

// Work of one block: `rows` rows of q from `row`, the first at `position`, and `heads` heads from `head`.
struct PrefillItem {
    uint32_t row, rows, position, table, kv_head, head, heads;

    template <class T> __device__ PrefillItem(const Attention<T> &in, const PrefillWork *list, uint32_t tile_rows)
    {
        const PrefillWork work = list[blockIdx.x];
        const Span span = in.spans[work.span];
        const uint32_t group = in.heads / in.layout.kv_heads, tiles = (group + tile_rows - 1) / tile_rows;
        const uint32_t first = blockIdx.y % tiles * tile_rows;
        kv_head = blockIdx.y / tiles;
        head = kv_head * group + first;
        heads = min(group - first, tile_rows);
        rows = min(max(tile_rows / group, 1u), span.rows - work.first_row);
        row = span.row + work.first_row;
        position = span.position + work.first_row;
        table = span.table;
    }
    // Returns the offset of the tile's row `r` in q or out.
    template <int D> __device__ uint64_t at(uint32_t r, uint32_t stride) const
    {
        return uint64_t(row + r / heads) * stride + (head + r % heads) * D;
    }
};

// Loads K (from kv) or V (from kv + to_values). Tokens at positions outside begin..end are loaded as zeros.
template <class T, class K, int D, int Tokens>
__device__ __forceinline__ void prefill_load(T (&to)[Tokens][D + 8], const unsigned char *from, const Place (&places)[Tokens],
                                             uint32_t first, uint32_t begin, uint32_t end, bool aligned)
{
    constexpr int pieces = D / 8;
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < Tokens * pieces; i += prefill_threads) {
        const uint32_t token = i / pieces, dim = i % pieces * 8;
        const bool valid = first + token >= begin && first + token < end;
        const unsigned char *at = from + places[token].row + dim * sizeof(K);
        if constexpr (same<T, K>) {
            cp_async(&to[token][dim], at, valid);
        } else {
            struct alignas(16) Four {
                uint32_t pair[4];
            } out = {};
            if (valid) {
                Raw<8 * sizeof(K)> raw;
                raw.load(at, aligned);
                float scale = 1;
                if constexpr (scaled<K>)
                    scale = *reinterpret_cast<const float *>(from + places[token].scale);
                convert<T, K, 8>(out.pair, raw, scale);
            }
            *reinterpret_cast<Four *>(&to[token][dim]) = out;
        }
    }
}

// Softmax state of sixteen rows of a warp, held for rows g and g + 8.
struct RunningSoftmax {
    float most[2], sum[2];
};

// Turns the scores `s` of one tile into weights and rescales `o`, the sum of V so far, to the new largest score. A row
// attends to positions up to own[i] within the window. s[n] holds the scores of positions `first` + 8 n + (2t, 2t + 1).
// `scale` converts scores to exponents of 2.
template <int N, int O>
__device__ __forceinline__ void prefill_softmax(float (&s)[N][4], float (&o)[O][4], RunningSoftmax &softmax, float scale,
                                                bool masked, uint32_t first, const uint32_t (&own)[2], uint32_t window)
{
    const uint32_t t = threadIdx.x % 4;
    if (masked)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t position = first + 8 * n + 2 * t + i % 2;
                if (position < first_in_window(own[i / 2], window) || position > own[i / 2])
                    s[n][i] = minus_infinity();
            }
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = softmax.most[half];
#pragma unroll
        for (int n = 0; n < N; n++)
            most = max(most, max(s[n][2 * half], s[n][2 * half + 1]));
        most = warp_reduce<4>(most, Max());
        // With a window, a row may not have attended to any token yet.
        const float shift = most == minus_infinity() ? 0.0f : most * scale;
        factor[half] = exp2_fast(softmax.most[half] * scale - shift);
        softmax.most[half] = most;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[n][i] = exp2_fast(s[n][i] * scale - shift);
                sum += s[n][i];
            }
        softmax.sum[half] = softmax.sum[half] * factor[half] + sum; // sum over this lane's columns
    }
    // In a long context most tiles do not raise the largest score.
    if (__all_sync(whole_warp, factor[0] == 1.0f && factor[1] == 1.0f))
        return;
#pragma unroll
    for (int n = 0; n < O; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[n][i] *= factor[i / 2];
}

// A tile takes Shared::rows / group query rows, at least one, where group is heads / kv_heads. Grid: [capacity of the
// list, kv_heads * ceil(group / Shared::rows)]. Threads: prefill_threads. Shared: prefill_shared<D>. Weights and
// dequantized int8 values are rounded to T. A row's result is independent of later rows only if V has no NaN or
// infinity, because V of masked tokens is multiplied by 0.
template <class T, class K, int D>
__device__ __forceinline__ void attention_prefill(const Attention<T> &in, const PrefillWork *list, const uint32_t *count)
{
    if (blockIdx.x >= *count)
        return;
    using Shared = PrefillShared<T, D>;
    static_assert(sizeof(Shared) == prefill_shared<D>, "shared memory of attention_prefill");
    constexpr int parts = Shared::rows / 64; // sixteens of rows that a warp has
    constexpr int tokens = Shared::tokens, score_tiles = tokens / 8, out_tiles = D / 8;
    Shared &shared = *reinterpret_cast<Shared *>(shared_memory());
    const PrefillItem item(in, list, Shared::rows);
    const uint32_t position = item.position, heads = item.heads, used = item.rows * heads;
    const uint32_t begin = first_in_window(position, in.window), end = position + item.rows;
    const Head<K, D> of(in.layout, in.tables + item.table, in.layer, item.kv_head);
    const bool aligned = rows_aligned<K>(in.layout);
    const unsigned char *values = in.kv + of.to_values();
    const auto find = [&](uint32_t first, Place (&places)[tokens]) {
        if (threadIdx.x < tokens)
            places[threadIdx.x] = of.at(min(max(first + threadIdx.x, begin), end - 1));
    };

    uint32_t first = begin / tokens * tokens;
    find(first, shared.places[first / tokens % 2]);
    for (uint32_t i = threadIdx.x; i < Shared::rows * (D / 8); i += prefill_threads) {
        const uint32_t r = i / (D / 8), dim = i % (D / 8) * 8;
        const bool valid = r < used;
        cp_async(&shared.q[r][dim], valid ? in.q + item.template at<D>(r, in.q_stride) + dim : in.q, valid);
    }
    __syncthreads();
    prefill_load<T, K, D>(shared.k, in.kv, shared.places[first / tokens % 2], first, begin, end, aligned);
    cp_async_commit();

    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp_row = threadIdx.x / 32 * 16 * parts;
    const bool busy = warp_row < used;
    const float scale = in.scale * log2_of_e;
    float o[parts][out_tiles][4] = {};
    RunningSoftmax softmax[parts];
    uint32_t own[parts][2];
    for (int part = 0; part < parts; part++)
        for (int half = 0; half < 2; half++) {
            softmax[part].most[half] = minus_infinity();
            softmax[part].sum[half] = 0;
            own[part][half] = position + min(warp_row + 16 * part + 8 * half + g, used - 1) / heads;
        }
    // Bounds for the warp: every row attends to all of low_end..=own_begin, and no row to anything before low_begin or
    // after own_end.
    const uint32_t own_begin = position + warp_row / heads, own_end = position + (min(warp_row + 16 * parts, used) - 1) / heads;
    const uint32_t low_end = first_in_window(own_end, in.window), low_begin = first_in_window(own_begin, in.window);

    // The V tile is loaded while its scores are computed. The next K tile is loaded during the softmax and the sum.
    for (;; first += tokens) {
        const bool last = first + tokens >= end;
        const bool wanted = busy && first <= own_end && first + tokens > low_begin;
        cp_async_wait<0>();
        __syncthreads();
        prefill_load<T, K, D>(shared.v, values, shared.places[first / tokens % 2], first, begin, end, aligned);
        cp_async_commit();
        if (!last)
            find(first + tokens, shared.places[(first / tokens + 1) % 2]);
        float s[parts][score_tiles][4] = {};
        if (wanted) {
#pragma unroll 2
            for (int k = 0; k < D; k += 16) {
                uint32_t a[parts][4];
#pragma unroll
                for (int part = 0; part < parts; part++)
                    ldmatrix(a[part], &shared.q[warp_row + 16 * part + lane % 16][k + lane / 16 * 8]);
#pragma unroll
                for (int n = 0; n < score_tiles; n += 2) {
                    uint32_t b[4];
                    ldmatrix(b, &shared.k[8 * n + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
#pragma unroll
                    for (int part = 0; part < parts; part++) {
                        mma16816<T>(s[part][n], a[part], {b[0], b[1]});
                        mma16816<T>(s[part][n + 1], a[part], {b[2], b[3]});
                    }
                }
            }
        }
        cp_async_wait<0>();
        __syncthreads();
        if (!last) {
            prefill_load<T, K, D>(shared.k, in.kv, shared.places[(first / tokens + 1) % 2], first + tokens, begin, end, aligned);
            cp_async_commit();
        }
        if (wanted) {
            const bool masked = first < low_end || first + tokens > own_begin + 1;
#pragma unroll
            for (int part = 0; part < parts; part++)
                prefill_softmax(s[part], o[part], softmax[part], scale, masked, first, own[part], in.window);
#pragma unroll
            for (int k = 0; k < tokens; k += 16) {
                uint32_t a[parts][4];
#pragma unroll
                for (int part = 0; part < parts; part++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const float(&two)[4] = s[part][k / 8 + i / 2];
                        a[part][i] = pack<T>(two[i % 2 * 2], two[i % 2 * 2 + 1]);
                    }
#pragma unroll
                for (int n = 0; n < out_tiles; n += 2) {
                    uint32_t b[4];
                    ldmatrix_trans(b, &shared.v[k + lane % 16][8 * n + lane / 16 * 8]);
#pragma unroll
                    for (int part = 0; part < parts; part++) {
                        mma16816<T>(o[part][n], a[part], {b[0], b[1]});
                        mma16816<T>(o[part][n + 1], a[part], {b[2], b[3]});
                    }
                }
            }
        }
        if (last)
            break;
    }

    // Only this warp has read its rows of q, so it can overwrite them with its results and store those in 16-byte
    // pieces.
    if (!busy)
        return;
    __syncwarp();
#pragma unroll
    for (int part = 0; part < parts; part++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float factor = 1 / warp_reduce<4>(softmax[part].sum[half], Sum());
            T *to = shared.q[warp_row + 16 * part + 8 * half + g];
#pragma unroll
            for (int n = 0; n < out_tiles; n++)
                *reinterpret_cast<uint32_t *>(to + 8 * n + 2 * t) =
                    pack<T>(o[part][n][2 * half] * factor, o[part][n][2 * half + 1] * factor);
        }
    __syncwarp();
    const PrefillItem same_item(in, list, Shared::rows); // reads it again to keep registers free in between
    for (uint32_t i = lane; i < 16 * parts * (D / 8); i += 32) {
        const uint32_t r = warp_row + i / (D / 8), dim = i % (D / 8) * 8;
        if (r < same_item.rows * same_item.heads)
            *reinterpret_cast<vec<T> *>(in.out + same_item.template at<D>(r, in.out_stride) + dim) =
                *reinterpret_cast<const vec<T> *>(&shared.q[r][dim]);
    }
}

} // namespace cleave
