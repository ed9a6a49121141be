// Translates a request of OpenAI's API to requests of the engine.
#pragma once

#include "generation.hpp"
#include "openai.hpp"

/// Refuses text that would not fit into the context even with the longest tokens. Throws ApiError.
inline void check_bytes(const EngineHost &host, const char *field, std::size_t bytes)
{
    if (bytes > host.max_prompt_bytes)
        throw too_long(host, field, std::to_string(bytes) + " bytes, and at most " +
                                        std::to_string(host.max_prompt_bytes) + " can fit");
}

/// Returns the tokens of each prompt. Text that cannot fit is refused before it is tokenised. Throws ApiError, also if
/// the request names another model.
inline std::vector<Tokens> tokenize(const EngineHost &host, const OpenAiRequest &q)
{
    if (!q.model.empty() && q.model != host.options.model_name)
        throw no_such_model(q.model);
    const char *const field = q.chat ? "messages" : "prompt";
    const auto need = [&](auto result) {
        if (!result)
            throw invalid(field, result.error().message());
        return std::move(*result);
    };
    const json bias = q.get("logit_bias", json::object());
    for (const auto &[key, value] : bias.items())
        if (std::stoul(key) >= host.about.vocab_size)
            throw invalid("logit_bias", "logit_bias: the model has no token " + std::to_string(std::stoul(key)));
    std::vector<Tokens> out;
    if (q.chat) {
        check_bytes(host, field, q.content_bytes);
        const std::string arguments = q.get("chat_template_kwargs", json::object()).dump();
        check_bytes(host, "chat_template_kwargs", arguments.size());
        cleave::ChatOptions options;
        options.arguments_json = arguments;
        options.generation_prompt = q.get("add_generation_prompt", true);
        options.continue_final_message = q.get("continue_final_message", false);
        const std::string text = need(host.model.chat_prompt(q.messages.dump(), options));
        check_bytes(host, field, text.size());
        out.push_back(need(host.model.tokenize(text, cleave::Special::None))); // the template has added the special tokens
    }
    for (const json &prompt : q.prompts) {
        if (prompt.is_string()) {
            const auto &text = prompt.get_ref<const std::string &>();
            check_bytes(host, field, text.size());
            out.push_back(need(host.model.tokenize(text)));
            continue;
        }
        for (const json &token : prompt)
            if (!token.is_number_unsigned() || token >= host.about.vocab_size)
                throw invalid(field, "prompt: the model has no token " + dump(token));
        out.push_back(prompt.get<Tokens>());
    }
    for (const Tokens &tokens : out)
        check_prompt(host, field, tokens);
    return out;
}

inline bool has_logprobs(const OpenAiRequest &q) { return q.chat ? q.get("logprobs", false) : q.body.contains("logprobs"); }

/// Converts choice `choice` of the n choices of a prompt to an engine's request.
inline cleave::Request engine_request(const OpenAiRequest &q, const Tokens &prompt, std::size_t choice)
{
    cleave::Request r;
    r.prompt = prompt;
    r.max_new_tokens = q.max_tokens;
    r.min_new_tokens = q.min_tokens;
    r.temperature = q.get("temperature", 1.0f);
    r.top_k = static_cast<std::uint32_t>(std::max(q.get("top_k", std::int64_t{0}), std::int64_t{0})); // -1 means all
    r.top_p = q.get("top_p", 1.0f);
    r.min_p = q.get("min_p", 0.0f);
    r.repetition_penalty = q.get("repetition_penalty", 1.0f);
    r.presence_penalty = q.get("presence_penalty", 0.0f);
    r.frequency_penalty = q.get("frequency_penalty", 0.0f);
    const json bias = q.get("logit_bias", json::object());
    for (const auto &[key, value] : bias.items())
        r.logit_bias.push_back({std::stoi(key), value.get<float>()});
    if (q.body.contains("seed")) { // 0 means a random seed to the library, but not to a client
        const std::uint64_t seed = static_cast<std::uint64_t>(q.get("seed", std::int64_t{0})) + choice;
        r.seed = seed != 0 ? seed : UINT64_C(1) << 63;
    }
    r.ignore_eos = q.get("ignore_eos", false);
    r.priority = q.get("priority", 0u);
    r.token_logprobs = has_logprobs(q);
    r.top_logprobs = q.get(q.chat ? "top_logprobs" : "logprobs", 0);
    return r;
}

/// Throws ApiError.
inline Generation to_generation(const EngineHost &host, const OpenAiRequest &q)
{
    Generation out;
    const auto prompts = tokenize(host, q);
    for (const Tokens &prompt : prompts)
        for (std::size_t choice = 0; choice < q.n; choice++)
            out.choices.push_back(engine_request(q, prompt, choice));
    out.stop = q.stop;
    if (q.do_remote_prefill && prompts.size() == 1) {
        out.ticket.bytes = q.ticket;
        out.ticket.streaming = host.options.has_front(); // a front passes a ticket on as soon as there is one
    }
    return out;
}
