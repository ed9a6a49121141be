// Requests of OpenAI's API, read and checked as far as that goes without a model.
#ifndef OPENAI_HPP
#define OPENAI_HPP

#include "http.hpp"

#include <optional>
#include <string>
#include <variant>
#include <vector>

using Tokens = std::vector<std::int32_t>;

struct GenerationRequest {
    json body; // as the client sent it: what a front passes on
    bool chat = false;
    std::string model;                                 // empty: whichever there is
    std::string messages;                              // chat: JSON as the chat template takes it
    std::vector<std::variant<std::string, Tokens>> prompts; // completions
    std::size_t n = 1;
    std::vector<std::string> stop;
    bool stream = false, include_usage = false;
    bool logprobs = false;
    int top_logprobs = 0;

    std::uint32_t max_tokens = 0, min_tokens = 0; // max_tokens 0: until the context is full
    float temperature = 1, top_p = 1, min_p = 0;
    std::uint32_t top_k = 0; // 0: all
    float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
    std::vector<std::pair<std::int32_t, float>> logit_bias;
    std::optional<std::int64_t> seed;
    bool ignore_eos = false;
    std::uint32_t priority = 0;

    // kv_transfer_params, by which front and workers understand each other: see "Workers" in ../README.md
    bool do_remote_decode = false, do_remote_prefill = false;
    std::vector<std::uint8_t> ticket;
    std::vector<std::size_t> resume;

    std::size_t n_prompts() const { return chat ? 1 : prompts.size(); }
};

/// Reads the body of POST /v1/chat/completions or /v1/completions. Throws ApiError, whose param names the field.
GenerationRequest parse_generation(const std::string &body, bool chat);

#endif
