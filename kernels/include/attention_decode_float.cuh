// Attention for single rows in float, without tensor cores. Float models use it for both decode and prefill.
#pragma once

#include "attention_decode.cuh"

namespace cleave {

// Each thread computes the scores of two tokens, then sums four dims over a subset of the tokens. Heads are processed
// in fours.
constexpr int float_heads = 20; // floats from one token's weights to the next: decode_heads and what keeps banks apart
template <int D> struct DecodeFloatShared {
    uint64_t rows[decode_split];
    float scales[2 * decode_split];
    alignas(16) float q[decode_heads][D];
    alignas(16) float weights[decode_split][float_heads];
    float most[decode_heads], sum[decode_heads];
    alignas(16) float share[decode_threads][4][4]; // for four heads
};

template <int D> constexpr int decode_float_shared = 32896 + 64 * D;

// Same arguments and grid as attention_decode. Shared: decode_float_shared<D>.
template <class K, int D>
__device__ void attention_decode_float(const Attention<float> &in, const DecodeWork *list, const uint32_t *count, float *sums,
                                       float *weights)
{
    static_assert(sizeof(DecodeFloatShared<D>) == decode_float_shared<D>, "shared memory of attention_decode_float");
    if (blockIdx.x >= *count)
        return;
    const DecodeItem item(in, list);
    auto &shared = *reinterpret_cast<DecodeFloatShared<D> *>(shared_memory());
    const Head<K, D> of(in.layout, in.tables + item.span.table, in.layer, item.kv_head);
    const bool aligned = rows_aligned<K>(in.layout);
    item.find_tokens(in, of, shared.rows, shared.scales);
    const float *q = in.q + uint64_t(item.work.row) * in.q_stride + item.head * D;
    for (uint32_t i = threadIdx.x; i < decode_heads * D; i += decode_threads)
        shared.q[i / D][i % D] = i < item.heads * D ? q[i] : 0.0f;
    __syncthreads();

    const uint32_t fours = (item.heads + 3) / 4;
    for (uint32_t token = threadIdx.x; token < decode_split; token += decode_threads) {
        const uint32_t position = item.work.first + token;
        const bool valid = position >= item.begin && position < item.end;
        float s[decode_heads] = {};
        const unsigned char *row = in.kv + shared.rows[token];
        for (int dim = 0; valid && dim < D; dim += 8) {
            Raw<8 * sizeof(K)> raw;
            raw.load(row + dim * sizeof(K), aligned);
            float k[8];
#pragma unroll
            for (int j = 0; j < 8; j++)
                k[j] = element<K>(raw, j);
#pragma unroll
            for (uint32_t four = 0; four < decode_heads / 4; four++)
                if (four < fours)
#pragma unroll
                    for (int i = 0; i < 4; i++)
#pragma unroll
                        for (int j = 0; j < 8; j++)
                            s[4 * four + i] += shared.q[4 * four + i][dim + j] * k[j];
        }
        const float scale = in.scale * log2_of_e * (scaled<K> ? shared.scales[token] : 1.0f);
#pragma unroll
        for (int i = 0; i < decode_heads; i++)
            shared.weights[token][i] = valid ? s[i] * scale : minus_infinity();
    }
    __syncthreads();

    for (uint32_t head = threadIdx.x / 32; head < item.heads; head += decode_threads / 32) {
        float most = minus_infinity(), sum = 0;
        for (uint32_t token = threadIdx.x % 32; token < decode_split; token += 32)
            most = max(most, shared.weights[token][head]);
        most = warp_reduce(most, Max());
        for (uint32_t token = threadIdx.x % 32; token < decode_split; token += 32) {
            float &weight = shared.weights[token][head];
            const float x = exp2_fast(weight - most);
            sum += x;
            weight = scaled<K> ? x * shared.scales[decode_split + token] : x;
        }
        sum = warp_reduce(sum, Sum());
        if (threadIdx.x % 32 == 0) {
            shared.sum[head] = sum;
            item.store_weight(in, weights, head, most, sum);
        }
    }
    // Heads that pad the last group of four still hold scores instead of weights. Their results are never read.
    __syncthreads();

    constexpr uint32_t lanes = D / 4, groups = decode_threads / lanes;
    const uint32_t group = threadIdx.x / lanes, dim = threadIdx.x % lanes * 4;
    float acc[decode_heads][4] = {};
    if (group < groups) {
        const unsigned char *values = in.kv + of.to_values() + dim * sizeof(K);
        const uint32_t begin = item.begin - item.work.first, end = item.end - item.work.first;
#pragma unroll 2
        for (uint32_t token = begin + group; token < end; token += groups) {
            Raw<4 * sizeof(K)> raw;
            raw.load(values + shared.rows[token], true);
            float v[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                v[j] = element<K>(raw, j);
#pragma unroll
            for (uint32_t four = 0; four < decode_heads / 4; four++)
                if (four < fours)
#pragma unroll
                    for (int i = 0; i < 4; i++)
#pragma unroll
                        for (int j = 0; j < 4; j++)
                            acc[4 * four + i][j] += shared.weights[token][4 * four + i] * v[j];
        }
    }
#pragma unroll
    for (uint32_t four = 0; four < decode_heads / 4; four++) {
        if (four >= fours)
            break;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                shared.share[threadIdx.x][i][j] = acc[4 * four + i][j];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < 4 * lanes; i += decode_threads) {
            const uint32_t head = 4 * four + i / lanes, lane = i % lanes;
            if (head >= item.heads)
                continue;
            float value[4] = {};
            for (uint32_t from = 0; from < groups; from++)
                for (int j = 0; j < 4; j++)
                    value[j] += shared.share[from * lanes + lane][i / lanes][j];
            item.store<D>(in, sums, head, lane * 4, value, shared.sum[head]);
        }
    }
}

} // namespace cleave
