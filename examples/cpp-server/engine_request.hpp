// From a client's request to the engine's.
#pragma once

#include "engine.hpp"
#include "openai.hpp"

using Tokens = std::vector<std::int32_t>;

/// The tokens of each prompt. Throws ApiError, also if the request is for another model.
inline std::vector<Tokens> tokenize(const EngineHost &host, const Generation &q)
{
    if (!q.model.empty() && q.model != host.options.model_name)
        throw no_such_model(q.model);
    const char *const field = q.chat ? "messages" : "prompt";
    const auto need = [&](auto result) {
        if (!result)
            throw invalid(field, result.error().message());
        return std::move(*result);
    };
    std::vector<Tokens> out;
    if (q.chat) {
        const std::string text = need(host.model.chat_prompt(q.messages.dump()));
        out.push_back(need(host.model.tokenize(text, cleave::Special::None)));
    }
    for (const json &prompt : q.prompts) {
        if (prompt.is_string()) {
            out.push_back(need(host.model.tokenize(prompt.get_ref<const std::string &>())));
            continue;
        }
        for (const json &token : prompt)
            if (!token.is_number_unsigned() || token >= host.about.vocab_size)
                throw invalid(field, "the model has no token " + dump(token));
        out.push_back(prompt.get<Tokens>());
    }
    const std::size_t most = host.about.max_context_tokens;
    for (const Tokens &tokens : out)
        if (tokens.size() > most)
            throw ApiError(400, "invalid_request_error",
                           "This model's maximum context length is " + std::to_string(most) +
                               " tokens. However, the prompt has " + std::to_string(tokens.size()) + " tokens.",
                           field, "context_length_exceeded");
    return out;
}

inline std::int32_t top_logprobs(const Generation &q) { return q.get(q.chat ? "top_logprobs" : "logprobs", 0); }

/// Choice `choice` of the n of a prompt, as an engine takes it. Throws ApiError.
inline cleave::Request engine_request(const EngineHost &host, const Generation &q, const Tokens &prompt,
                                      std::size_t choice)
{
    cleave::Request r;
    r.prompt = prompt;
    // 0: until the context is full
    r.max_new_tokens = q.get("max_completion_tokens", q.get("max_tokens", q.chat ? 0u : 16u));
    r.min_new_tokens = q.get("min_tokens", 0u);
    if (r.max_new_tokens > 0 && r.min_new_tokens > r.max_new_tokens)
        throw invalid("min_tokens", "min_tokens must not be above max_tokens");
    r.temperature = q.get("temperature", 1.0f);
    r.top_k = static_cast<std::uint32_t>(std::max(q.get("top_k", std::int64_t{0}), std::int64_t{0})); // -1: all
    r.top_p = q.get("top_p", 1.0f);
    r.min_p = q.get("min_p", 0.0f);
    r.repetition_penalty = q.get("repetition_penalty", 1.0f);
    r.presence_penalty = q.get("presence_penalty", 0.0f);
    r.frequency_penalty = q.get("frequency_penalty", 0.0f);
    const json bias = q.get("logit_bias", json::object());
    for (const auto &[key, value] : bias.items()) {
        const bool id = !key.empty() && key.size() <= 9 && key.find_first_not_of("0123456789") == std::string::npos;
        if (!id || std::stoul(key) >= host.about.vocab_size || !value.is_number() || value > 100 || value < -100)
            throw invalid("logit_bias", "logit_bias must have token ids as keys, and values from -100 to 100");
        r.logit_bias.push_back({std::stoi(key), value.get<float>()});
    }
    if (q.body.contains("seed")) { // the library's 0 is a random seed: a client's is another number
        const std::uint64_t seed = q.get("seed", std::uint64_t{0}) + choice;
        r.seed = seed != 0 ? seed : UINT64_C(1) << 63;
    }
    r.ignore_eos = q.get("ignore_eos", false);
    r.priority = q.get("priority", 0u);
    r.token_logprobs = q.chat ? q.get("logprobs", false) : q.body.contains("logprobs");
    r.top_logprobs = top_logprobs(q);
    return r;
}
