// Requests and their layout for the C call.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_REQUEST_HPP
#define CLEAVE_REQUEST_HPP

#include "kv.hpp"

#include <cstring>
#include <optional>
#include <vector>

namespace cleave {

struct LogitBias {
    std::int32_t token;
    float bias;
};

/// One request. Every field may be left as it is: of a fresh request that means the value named here, of one that
/// continues a KV handle the handle's own. Can be submitted again; its vectors keep their memory when it is changed.
struct Request {
    /// The prompt; with a handle the tokens that follow it, may be empty.
    std::vector<std::int32_t> prompt{};
    /// The handle to continue from. Belongs to the request until that is accepted, which consumes it.
    Kv kv{};
    /// Echoed in every event.
    std::uint64_t user_tag = 0;
    /// Tokens to generate after the last prompt token, over all engines; 0: until the context is full.
    std::uint32_t max_new_tokens = 0;
    /// Stop tokens and stop sequences do not end the generation before this many tokens.
    std::uint32_t min_new_tokens = 0;

    /// Ids that end the generation, beside the model's EOS ids.
    std::vector<std::int32_t> stop_tokens{};
    std::vector<std::vector<std::int32_t>> stop_sequences{};
    /// Added to the logits of these tokens.
    std::vector<LogitBias> logit_bias{};

    /// 0: greedy.
    float temperature = 0;
    /// Sample from the k likeliest; 0: all.
    std::uint32_t top_k = 0;
    /// Sample from the likeliest that make up this much; 0: all.
    float top_p = 0;
    /// Drop what is less likely than this share of the likeliest.
    float min_p = 0;
    /// 0 and 1: none.
    float repetition_penalty = 0;
    float presence_penalty = 0;
    float frequency_penalty = 0;
    /// Equal seeds give equal samples; 0: a random one.
    std::uint64_t seed = 0;

    /// Token events carry the log-probability of their token.
    bool token_logprobs = false;
    /// Alternatives to report for each token, 0 to 128; more than 0 implies token_logprobs.
    std::int32_t top_logprobs = 0;

    /// Higher runs first.
    std::uint32_t priority = 0;
    /// Time after submission at which the request ends with Timeout. 0 and negative values count as a microsecond.
    std::optional<std::chrono::microseconds> deadline{};
    /// Prefixes are shared with requests of the same salt only.
    std::uint64_t cache_salt = 0;

    /// Finished carries a handle. Implied on a prefill engine.
    bool keep_kv = false;
    /// Repeat the token that came with the imported handle.
    bool emit_pending = false;
    /// Do not stop at the model's EOS ids.
    bool ignore_eos = false;
    /// With a handle: take every sampling and stop field from this request, and none from the handle.
    bool override_sampling = false;
    /// On a prefill engine: KvStreamStarted carries the handle as soon as the prompt begins to be computed.
    bool stream_kv = false;
    /// Computes the handle's KV here if it does not arrive.
    bool recompute = false;
    /// Further CLEAVE_REQUEST_* of the C header.
    std::uint32_t flags = 0;
};

/// Lays requests out for cleave_engine_submit. Keep one for each thread that submits: its memory is used again.
class Packer {
public:
    void clear() noexcept
    {
        requests_.clear();
        tokens_.clear();
    }

    /// Adds a request, which is copied; its handle stays its own.
    void add(const Request &request)
    {
        auto c = detail::sized<cleave_request_desc_t>();
        c.flags = flags_of(request);
        c.user_tag = request.user_tag;
        c.kv = request.kv.get();
        c.max_new_tokens = request.max_new_tokens;
        c.top_k = request.top_k;
        c.priority = request.priority;
        c.logprobs = request.top_logprobs;
        c.temperature = request.temperature;
        c.top_p = request.top_p;
        c.min_p = request.min_p;
        c.repetition_penalty = request.repetition_penalty;
        c.presence_penalty = request.presence_penalty;
        c.frequency_penalty = request.frequency_penalty;
        c.seed = request.seed;
        if (request.deadline)
            c.deadline_us = request.deadline->count() > 0 ? static_cast<std::uint64_t>(request.deadline->count()) : 1;
        c.cache_salt = request.cache_salt;
        c.min_new_tokens = request.min_new_tokens;

        c.prompt_begin = end();
        add_tokens(request.prompt);
        c.prompt_len = end() - c.prompt_begin;
        c.stop_begin = end();
        add_tokens(request.stop_tokens);
        c.stop_len = end() - c.stop_begin;
        c.stop_sequences_begin = end();
        for (const auto &sequence : request.stop_sequences) {
            tokens_.push_back(static_cast<std::int32_t>(sequence.size()));
            add_tokens(sequence);
        }
        c.stop_sequences_len = end() - c.stop_sequences_begin;
        c.logit_bias_begin = end();
        for (const LogitBias &bias : request.logit_bias) {
            std::int32_t bits;
            static_assert(sizeof bits == sizeof bias.bias, "a bias travels as the bits of a float");
            std::memcpy(&bits, &bias.bias, sizeof bits);
            tokens_.push_back(bias.token);
            tokens_.push_back(bits);
        }
        c.logit_bias_len = end() - c.logit_bias_begin;
        requests_.push_back(c);
    }

    Span<const cleave_request_desc_t> requests() const noexcept { return requests_; }
    Span<const std::int32_t> tokens() const noexcept { return tokens_; }

    /// Room for the ids of the requests.
    Span<RequestId> ids()
    {
        ids_.resize(requests_.size());
        return ids_;
    }

private:
    static std::uint32_t flags_of(const Request &request) noexcept
    {
        return request.flags | (request.keep_kv ? CLEAVE_REQUEST_KEEP_KV : 0) |
               (request.token_logprobs ? CLEAVE_REQUEST_LOGPROBS : 0) |
               (request.emit_pending ? CLEAVE_REQUEST_EMIT_PENDING : 0) |
               (request.ignore_eos ? CLEAVE_REQUEST_IGNORE_EOS : 0) |
               (request.override_sampling ? CLEAVE_REQUEST_OVERRIDE_SAMPLING : 0) |
               (request.stream_kv ? CLEAVE_REQUEST_STREAM_KV : 0) | (request.recompute ? CLEAVE_REQUEST_RECOMPUTE : 0);
    }

    std::uint32_t end() const noexcept { return static_cast<std::uint32_t>(tokens_.size()); }

    void add_tokens(const std::vector<std::int32_t> &tokens) { tokens_.insert(tokens_.end(), tokens.begin(), tokens.end()); }

    std::vector<cleave_request_desc_t> requests_;
    std::vector<std::int32_t> tokens_;
    std::vector<RequestId> ids_;
};

} // namespace cleave

#endif
