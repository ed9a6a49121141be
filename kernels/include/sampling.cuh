// Samples the next token of each row of logits. The token always equals the one that src/sampling/sampler.rs draws.
#pragma once

#include "sampling_params.cuh"
#include "sampling_select.cuh"

namespace cleave {

struct SamplingLists {
    const TokenBias *biases;
    const TokenCount *counts;
    const uint32_t *masked;
};

// Applies the penalties of src/sampling/penalties.rs in place.
__device__ inline void apply_penalties(float *logits, uint32_t vocab, const SamplingRow &p, const SamplingLists &lists)
{
    const TokenBias *const biases = lists.biases + p.biases;
    for (uint32_t i = threadIdx.x; i < p.biases_len; i += blockDim.x) {
        const uint32_t token = biases[i].token;
        if (token >= vocab || (i > 0 && biases[i - 1].token == token))
            continue;
        float logit = logits[token];
        for (uint32_t j = i; j < p.biases_len && biases[j].token == token; j++)
            logit = __fadd_rn(logit, biases[j].bias);
        logits[token] = logit;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < p.counts_len; i += blockDim.x) {
        const TokenCount of = lists.counts[p.counts + i];
        if (of.token >= vocab)
            continue;
        float logit = logits[of.token];
        if (p.repetition_penalty != 1.0f)
            logit = logit > 0.0f ? __fdiv_rn(logit, p.repetition_penalty) : __fmul_rn(logit, p.repetition_penalty);
        if (of.generated > 0 && (p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f)) {
            const float frequency = __fmul_rn(p.frequency_penalty, float(of.generated));
            logit = __fsub_rn(logit, __fadd_rn(frequency, p.presence_penalty));
        }
        logits[of.token] = logit;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < p.masked_len; i += blockDim.x) {
        const uint32_t token = lists.masked[p.masked + i];
        if (token < vocab)
            logits[token] = -INFINITY;
    }
    __syncthreads();
}

// Draws a token from a row whose largest logit is finite.
__device__ inline uint32_t draw(const Sampling &sampling, const SamplingRow &p, float largest)
{
    const Softmax softmax = {double(largest), __ddiv_rn(1.0, double(p.temperature))};
    constexpr uint32_t last = SamplingMemory::bins_len - 1;
    const auto bin_of = [](double distance) { return distance < last / 64.0 ? uint32_t(distance * 64.0) : last; };
    Bound bound = no_bound;
    if (p.top_k > 0 && p.top_k < sampling.vocab) {
        const auto one = [](uint32_t, float logit) -> Weight { return logit > -INFINITY; };
        // top_k compares the logits themselves, at any temperature.
        const auto bin = [&](float logit) { return bin_of(softmax.largest - double(logit)); };
        bound = sampling.select(one, bin, [&](Weight) -> Weight { return p.top_k - 1; });
    }
    // The bound is checked first: few tokens pass it, and the exponential in double is the expensive part.
    const auto weight = [&](uint32_t id, float logit) -> Weight {
        return bound.keeps(order_of(logit), id) ? softmax.weight(logit) : 0;
    };
    if (p.top_p < 1.0f) {
        const auto bin = [&](float logit) { return bin_of(softmax.distance(logit)); };
        // The sum reaches a value exactly where it first exceeds that value minus one.
        const Bound nucleus = sampling.select(weight, bin, [&](Weight total) {
            return static_cast<Weight>(ceil(__dmul_rn(double(p.top_p), __ull2double_rn(total)))) - 1;
        });
        bound = nucleus.order < bound.order ? nucleus : Bound{bound.order, min(nucleus.id, bound.id)};
    }
    const Weight least = p.min_p > 0.0f ? static_cast<Weight>(ceil(__dmul_rn(double(p.min_p), weight_one))) : 0;
    const auto kept = [&](uint32_t id, float logit) {
        const Weight all = weight(id, logit);
        return all >= least ? all : 0;
    };
    // The product of 53 random bits and the total, shifted right by 53.
    const Weight random = sampling_random(p.seed, p.position) << 11;
    return sampling.pick(kept, [&](Weight total) { return __umul64hi(random, total); });
}

constexpr int sampling_threads = 1024;
constexpr int sampling_shared = 33304;
static_assert(sizeof(SamplingMemory) == sampling_shared, "shared memory of sample");

// Grid: one block for each of `rows`. Block: a multiple of 32 threads; sampling_threads for large vocabularies. Shared:
// sampling_shared. `logits` is [.., vocab] with rows `stride` elements apart. Penalties and masks overwrite the logits
// of sampled rows. vocab is at most 2^22.
__device__ inline void sample(float *logits, uint32_t stride, uint32_t vocab, const SamplingRow *rows,
                              const SamplingLists &lists, uint32_t *tokens, uint32_t *status)
{
    const SamplingRow p = rows[blockIdx.x];
    if (p.row == SamplingRow::no_row)
        return;
    float *const row = logits + uint64_t(p.row) * stride;
    const Sampling sampling = {row, vocab, *reinterpret_cast<SamplingMemory *>(shared_memory())};
    const auto finish = [&](uint32_t token, uint32_t how) {
        if (threadIdx.x == 0) {
            tokens[blockIdx.x] = token;
            status[blockIdx.x] = how;
        }
    };
    // Finds the likeliest token: the smallest key, with the order in the high half and the id in the low half.
    Weight best = ~Weight(0);
    const auto look = [&](uint32_t id, float logit) {
        if (logit > -INFINITY)
            best = min(best, Weight(order_of(logit)) << 32 | id);
    };
    uint32_t broken = nothing;
    sampling.each([&](uint32_t id, float logit) {
        look(id, logit);
        if (id < vocab && !(logit < INFINITY))
            broken = min(broken, id);
    });
    const auto least = [](auto a, auto b) { return b < a ? b : a; };
    broken = sampling.reduce(broken, least);
    if (broken != nothing) {
        finish(broken, broken_logit);
        return;
    }
    if (p.biases_len + p.counts_len + p.masked_len > 0) {
        apply_penalties(row, vocab, p, lists);
        best = ~Weight(0);
        sampling.each(look);
    }
    best = sampling.reduce(best, least);
    if (best == ~Weight(0)) {
        finish(nothing, no_candidate);
        return;
    }
    const float largest = logit_of(uint32_t(best >> 32));
    // Only a penalty or bias can produce infinity here; that token is drawn.
    const bool greedy = !(p.temperature > 0.0f) || !(largest < INFINITY);
    finish(greedy ? uint32_t(best) : draw(sampling, p, largest), sampled);
}

} // namespace cleave
