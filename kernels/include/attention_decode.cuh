// Split attention for single rows over a long context ("Flash-Decoding", Dao et al. 2023) on tensor cores, and the
// kernel that merges the pieces. attention_decode_float.cuh computes the pieces for float models.
#pragma once

#include "attention_common.cuh"

namespace cleave {

constexpr int decode_threads = 128;
constexpr int decode_heads = 16; // query heads that a block takes

// Work of one block of attention_decode. Grid: [capacity of the work list, kv_heads * ceil(group / decode_heads)],
// where group is heads / kv_heads.
struct DecodeItem {
    DecodeWork work;
    Span span;
    uint32_t kv_head, head, heads; // query heads of this block
    uint32_t begin, end;           // range of positions; the end is excluded

    template <class T> __device__ DecodeItem(const Attention<T> &in, const DecodeWork *list)
    {
        work = list[blockIdx.x];
        span = in.spans[work.span];
        const uint32_t group = in.heads / in.layout.kv_heads, tiles = (group + decode_heads - 1) / decode_heads;
        const uint32_t tile = blockIdx.y % tiles;
        kv_head = blockIdx.y / tiles;
        head = kv_head * group + tile * decode_heads;
        heads = min(group - tile * decode_heads, uint32_t(decode_heads));
        const uint32_t position = span.position + work.row - span.row;
        begin = max(work.first, first_in_window(position, in.window));
        end = min(position + 1, work.first + decode_split);
    }

    // Writes the K offsets of the piece's tokens to `rows`, in bytes from kv. For int8 it also writes the scales of K,
    // then those of V, [decode_split] each, to `scales`. A token that the row does not attend to is replaced by one
    // that it does, so that reading it is safe; its weight is zero.
    template <class T, class K, int D>
    __device__ void find_tokens(const Attention<T> &in, const Head<K, D> &of, uint64_t *rows, float *scales) const
    {
        for (uint32_t token = threadIdx.x; token < decode_split; token += decode_threads) {
            const Place place = of.at(min(max(work.first + token, begin), end - 1));
            rows[token] = place.row;
            if constexpr (scaled<K>) {
                scales[token] = *reinterpret_cast<const float *>(in.kv + place.scale);
                scales[decode_split + token] = *reinterpret_cast<const float *>(in.kv + place.scale + of.to_values());
            }
        }
    }

    // Stores four elements of this block's head `i`, starting at `dim`; `sum` is the sum of the weights.
    template <int D, class T>
    __device__ void store(const Attention<T> &in, float *sums, uint32_t i, uint32_t dim, const float (&value)[4], float sum) const
    {
        if (work.slot == no_slot) {
            T *to = in.out + uint64_t(work.row) * in.out_stride + (head + i) * D + dim;
            store_four(to, value, 1 / sum);
        } else {
            store_four(sums + (uint64_t(work.slot) * in.heads + head + i) * D + dim, value);
        }
    }
    // Stores the largest score, as an exponent of 2, and the sum of the weights.
    template <class T>
    __device__ void store_weight(const Attention<T> &in, float *weights, uint32_t i, float most, float sum) const
    {
        if (work.slot != no_slot) {
            float *to = weights + (uint64_t(work.slot) * in.heads + head + i) * 2;
            to[0] = most;
            to[1] = sum;
        }
    }
};

// The warps share the tokens of a piece, 64 tokens each. A warp computes the scores of 16 heads (the rows of an mma)
// for its tokens. It then uses the largest score of the whole block to compute its part of the weighted sum. The parts
// of all warps are added after every 64 dims.
//
// K and V go from memory to mma fragments without shared memory. An mma gives the same result under any assignment of
// dims (for QK) or tokens (for PV) to k, and of columns, as long as both operands agree. A lane's 16 bytes of a K row
// therefore serve as the k values of its column in several mma's, and its 16 bytes of a V row serve as several columns.
constexpr int warp_tokens = decode_split / (decode_threads / 32);
constexpr int decode_row = 68; // floats from one head to the next in a warp's share: 64 and what keeps banks apart
struct DecodeShared {
    uint64_t rows[decode_split];
    float scales[2 * decode_split];
    float most[4][decode_heads], sum[4][decode_heads];
    alignas(16) float share[2][4][decode_heads][decode_row];
};
constexpr int decode_shared = 39424;
static_assert(sizeof(DecodeShared) == decode_shared, "shared memory of attention_decode");

// s[step][tile] holds the scores of tokens 16 step + 8 tile + (2t, 2t + 1) for heads g and g + 8.
template <class T, class K, int D>
__device__ __forceinline__ void decode_scores(float (&s)[warp_tokens / 16][2][4], const Attention<T> &in, const T *q,
                                              uint32_t heads, const uint64_t *rows, bool aligned)
{
    constexpr int N = D % 32 == 0 ? 8 : 4; // dims of a lane's piece
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 1
    for (int dim = 0; dim < D; dim += 4 * N) {
        Raw<N * sizeof(T)> a[2] = {};
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (g + 8 * i < heads)
                a[i].load(reinterpret_cast<const unsigned char *>(q + (g + 8 * i) * D + dim + N * t), true);
#pragma unroll
        for (int step = 0; step < warp_tokens / 16; step++)
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                Raw<N * sizeof(K)> raw;
                raw.load(in.kv + rows[16 * step + 8 * tile + g] + (dim + N * t) * sizeof(K), aligned);
                uint32_t b[N / 2];
                convert<T, K, N>(b, raw);
#pragma unroll
                for (int k = 0; k < N / 4; k++)
                    mma16816<T>(s[step][tile], {a[0].word[2 * k], a[1].word[2 * k], a[0].word[2 * k + 1], a[1].word[2 * k + 1]},
                                {b[2 * k], b[2 * k + 1]});
            }
    }
}

// Computes the warp's part of the weighted sum for N dims per lane, starting at `dim`, times `factor`. p[step] holds
// the weights as mma fragments.
template <class T, class K, int N>
__device__ __forceinline__ void decode_values(float (&share)[decode_heads][decode_row], const uint32_t (&p)[warp_tokens / 16][4],
                                              const unsigned char *values, const uint64_t *rows, uint32_t dim, float factor,
                                              bool aligned)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float acc[N][4] = {};
#pragma unroll
    for (int step = 0; step < warp_tokens / 16; step++) {
        uint32_t v[4][N / 2];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            Raw<N * sizeof(K)> raw;
            raw.load(values + rows[16 * step + 2 * t + k % 2 + k / 2 * 8] + (dim + N * g) * sizeof(K), aligned);
            convert<T, K, N>(v[k], raw);
        }
#pragma unroll
        for (int j = 0; j < N / 2; j++) {
            mma16816<T>(acc[2 * j], p[step], {__byte_perm(v[0][j], v[1][j], 0x5410), __byte_perm(v[2][j], v[3][j], 0x5410)});
            mma16816<T>(acc[2 * j + 1], p[step], {__byte_perm(v[0][j], v[1][j], 0x7632), __byte_perm(v[2][j], v[3][j], 0x7632)});
        }
    }
    // Column c of acc[j] is dimension N c + j.
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < N; j++)
            share[g + i / 2 * 8][N * (2 * t + i % 2) + j] = acc[j][i] * factor;
}

// Threads: decode_threads. Shared: decode_shared. See DecodeItem for the grid and DecodeWork for the list. `sums` is
// [slots, heads, D] and `weights` is [slots, heads, 2]; both are 16-byte aligned. Scores and int8 scales are float;
// weights are rounded to T.
template <class T, class K, int D>
__device__ void attention_decode(const Attention<T> &in, const DecodeWork *list, const uint32_t *count, float *sums, float *weights)
{
    if (blockIdx.x >= *count)
        return;
    const DecodeItem item(in, list);
    DecodeShared &shared = *reinterpret_cast<DecodeShared *>(shared_memory());
    const Head<K, D> of(in.layout, in.tables + item.span.table, in.layer, item.kv_head);
    const bool aligned = rows_aligned<K>(in.layout);
    item.find_tokens(in, of, shared.rows, shared.scales);
    __syncthreads();

    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    constexpr int steps = warp_tokens / 16;
    const uint32_t token = warp * warp_tokens, first = item.work.first + token; // the first token of this warp
    const bool busy = first < item.end && first + warp_tokens > item.begin;
    const uint64_t *rows = shared.rows + token;
    float s[steps][2][4] = {};
    if (busy)
        decode_scores<T, K, D>(s, in, in.q + uint64_t(item.work.row) * in.q_stride + item.head * D, item.heads, rows, aligned);

    const float scale = in.scale * log2_of_e;
    float most[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
    for (int step = 0; step < steps; step++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t at = 16 * step + i / 4 * 8 + 2 * t + i % 2;
            float &x = s[step][i / 4][i % 4];
            x *= scaled<K> ? scale * shared.scales[token + at] : scale;
            if (first + at < item.begin || first + at >= item.end)
                x = minus_infinity();
            most[i % 4 / 2] = max(most[i % 4 / 2], x);
        }
    for (int half = 0; half < 2; half++) {
        most[half] = warp_reduce<4>(most[half], Max());
        if (t == 0)
            shared.most[warp][g + 8 * half] = most[half];
    }
    __syncthreads();
    for (int half = 0; half < 2; half++)
        for (uint32_t w = 0; w < 4; w++)
            most[half] = max(most[half], shared.most[w][g + 8 * half]);

    // The int8 scales of V are folded into the weights relative to the largest scale, which keeps the full range of
    // half precision.
    float largest = 0, relative = 1;
    if constexpr (scaled<K>) {
        for (int i = 0; i < warp_tokens / 4; i++)
            largest = max(largest, shared.scales[decode_split + token + 4 * i + t]);
        largest = warp_reduce<4>(largest, Max());
        relative = largest > 0 ? 1 / largest : 0;
    }
    uint32_t p[steps][4];
    float sum[2] = {0, 0};
#pragma unroll
    for (int step = 0; step < steps; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) { // tile i / 2, head g + 8 (i % 2)
            float x[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                x[j] = exp2_fast(s[step][i / 2][i % 2 * 2 + j] - most[i % 2]);
                sum[i % 2] += x[j];
                if constexpr (scaled<K>)
                    x[j] *= shared.scales[decode_split + token + 16 * step + i / 2 * 8 + 2 * t + j] * relative;
            }
            p[step][i] = pack<T>(x[0], x[1]);
        }
    for (int half = 0; half < 2; half++) {
        sum[half] = warp_reduce<4>(sum[half], Sum());
        if (t == 0)
            shared.sum[warp][g + 8 * half] = sum[half];
    }

    const unsigned char *values = in.kv + of.to_values();
#pragma unroll 1
    for (uint32_t dim = 0; dim < D; dim += 64) {
        auto &share = shared.share[dim / 64 % 2];
        const uint32_t dims = min(D - dim, 64u);
        if (busy) {
            const float factor = scaled<K> ? largest : 1.0f;
            if (D >= 64 && dims == 64)
                decode_values<T, K, 8>(share[warp], p, values, rows, dim, factor, aligned);
            else if (D % 64 != 0)
                decode_values<T, K, D % 64 == 0 ? 8 : D % 64 / 8>(share[warp], p, values, rows, dim, factor, aligned);
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < item.heads * dims / 4; i += decode_threads) {
            const uint32_t head = i / (dims / 4), column = i % (dims / 4) * 4;
            float value[4] = {}, whole = 0;
            for (uint32_t w = 0; w < 4; w++) {
                const uint32_t begin = item.work.first + w * warp_tokens;
                if (begin >= item.end || begin + warp_tokens <= item.begin)
                    continue;
                whole += shared.sum[w][head];
                for (int j = 0; j < 4; j++)
                    value[j] += share[w][head][column + j];
            }
            item.store<D>(in, sums, head, dim + column, value, whole);
            if (dim + column == 0) {
                float largest_score = shared.most[0][head];
                for (uint32_t w = 1; w < 4; w++)
                    largest_score = max(largest_score, shared.most[w][head]);
                item.store_weight(in, weights, head, largest_score, whole);
            }
        }
    }
}

constexpr int merge_shared = (5 * decode_threads + 4) * 4;

// Threads: decode_threads. Grid: [capacity of the list, heads]. Shared: merge_shared. Each piece has the factor 2^(its
// largest score - the largest of all). out is the sum of the scaled pieces divided by the sum of their scaled weights.
// Each group of D / 4 threads takes every groups-th piece in ascending order. The sums of the groups are then added in
// ascending order, so that the result is deterministic.
template <class T, int D>
__device__ void attention_merge(T *out, uint32_t out_stride, uint32_t heads, const DecodeMerge *list, const uint32_t *count,
                                const float *sums, const float *weights)
{
    if (blockIdx.x >= *count)
        return;
    const DecodeMerge item = list[blockIdx.x];
    const uint32_t head = blockIdx.y;
    float *const shares = reinterpret_cast<float *>(shared_memory()), *const scratch = shares + 4 * decode_threads;
    float *const share_weights = scratch + 4;
    struct alignas(8) Weight {
        float most, sum;
    };
    const Weight *of = reinterpret_cast<const Weight *>(weights) + uint64_t(item.slot) * heads + head;
    float most = minus_infinity();
    for (uint32_t i = threadIdx.x; i < item.slots; i += decode_threads)
        most = max(most, of[uint64_t(i) * heads].most);
    most = block_reduce(most, Max(), scratch);

    constexpr uint32_t lanes = D / 4, groups = decode_threads / lanes;
    const uint32_t group = threadIdx.x / lanes, dim = threadIdx.x % lanes * 4;
    vec<float> value = {};
    float sum = 0;
    if (group < groups) {
#pragma unroll 4
        for (uint32_t i = group; i < item.slots; i += groups) {
            const Weight weight = of[uint64_t(i) * heads];
            const float factor = exp2_fast(weight.most - most);
            const vec<float> piece =
                *reinterpret_cast<const vec<float> *>(sums + ((uint64_t(item.slot) + i) * heads + head) * D + dim);
            sum += weight.sum * factor;
            for (int j = 0; j < 4; j++)
                value.at[j] += piece.at[j] * factor;
        }
        *reinterpret_cast<vec<float> *>(shares + 4 * threadIdx.x) = value;
        share_weights[threadIdx.x] = sum;
    }
    __syncthreads();
    if (group > 0)
        return;
    for (uint32_t i = 1; i < groups; i++) {
        sum += share_weights[i * lanes];
        for (int j = 0; j < 4; j++)
            value.at[j] += shares[4 * (i * lanes + threadIdx.x) + j];
    }
    T *to = out + uint64_t(item.row) * out_stride + head * D + dim;
    store_four(to, value.at, 1 / sum);
}

} // namespace cleave
