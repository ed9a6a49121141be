// Sampling parameters that the host passes for each row. Their Rust twins are in src/backend/cuda/launch.rs.
#pragma once

#include "types.cuh"

namespace cleave {

// A bias on a token's logit. A row's biases are sorted by token; those of the same token stay in the order in which
// they were given.
struct TokenBias {
    uint32_t token;
    float bias;
};

// A token that occurs in the sequence so far, and how often it was generated since the last prompt. Each token is
// listed once.
struct TokenCount {
    uint32_t token;
    uint32_t generated;
};

// Parameters of one row, 72 bytes. Lists are ranges of separate arrays; their tokens may lie beyond the vocabulary.
struct SamplingRow {
    uint64_t seed, position;
    uint32_t row;      // row of the logits; `no_row`: nothing is sampled or written
    float temperature; // 0 is greedy
    float top_p;       // 1 keeps all
    float min_p;       // 0 keeps all
    uint32_t top_k;    // 0 keeps all
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    uint32_t biases, biases_len;
    uint32_t counts, counts_len; // only needed with a penalty; for presence or frequency alone, generated tokens suffice
    uint32_t masked, masked_len; // tokens that cannot be sampled, in any order: EOS and stop ids before min_new_tokens

    static constexpr uint32_t no_row = 0xffffffffu;
};
static_assert(sizeof(SamplingRow) == 72, "as in Rust");

// Outcome of sampling a row.
enum SamplingStatus : uint32_t {
    sampled = 0,
    broken_logit = 1, // some logit was NaN or +inf; the token is the lowest such id
    no_candidate = 2, // all logits are -inf, or NaN that a penalty made of an infinity
};

} // namespace cleave
