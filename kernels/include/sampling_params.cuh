// What the host says of each row to sample from. The Rust twins are in src/backend/cuda/launch.rs.
#pragma once

#include "types.cuh"

namespace cleave {

// A bias of a token's logit. A row's are sorted by token; those of the same token keep the order they were given in.
struct TokenBias {
    uint32_t token;
    float bias;
};

// A token of the sequence so far, prompt or not, and how often it was generated since the last prompt. Each once.
struct TokenCount {
    uint32_t token;
    uint32_t generated;
};

// 72 bytes. Lists are ranges of the arrays that the kernel gets beside this; their tokens may lie beyond the vocabulary.
struct SamplingRow {
    uint64_t seed, position;
    uint32_t row;      // of the logits; `no_row`: nothing is sampled or written
    float temperature; // 0 is greedy
    float top_p;       // 1 keeps all
    float min_p;       // 0 keeps all
    uint32_t top_k;    // 0 keeps all
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    uint32_t biases, biases_len;
    uint32_t counts, counts_len; // needed with a penalty only: with no more than presence or frequency, of generated tokens
    uint32_t masked, masked_len; // tokens that cannot be sampled: EOS and stop ids before min_new_tokens. In any order

    static constexpr uint32_t no_row = 0xffffffffu;
};
static_assert(sizeof(SamplingRow) == 72, "as in Rust");

// What became of a row.
enum SamplingStatus : uint32_t {
    sampled = 0,
    broken_logit = 1, // NaN or +inf came: the token is the lowest id with one
    no_candidate = 2, // all are -inf (or NaN, which a penalty can make of infinities)
};

} // namespace cleave
