// Parts of answers in OpenAI's API: chunks, log-probabilities, usage.
#pragma once

#include "engine_request.hpp"
#include "run.hpp"

/// The part of a chunk that all choices share.
inline json frame_of(bool chat, bool stream, const std::string &id, const std::string &model, std::time_t created)
{
    const char *object = !chat ? "text_completion" : stream ? "chat.completion.chunk" : "chat.completion";
    return {{"id", id}, {"object", object}, {"created", created}, {"model", model}, {"choices", json::array()}};
}

/// Combines a chunk with the earlier ones: texts and lists are concatenated, other values replaced.
inline void add(json &whole, const json &more)
{
    if (whole.is_object() && more.is_object())
        for (const auto &[key, value] : more.items())
            add(whole[key], value);
    else if (whole.is_string() && more.is_string())
        whole.get_ref<std::string &>() += more.get_ref<const std::string &>();
    else if (whole.is_array() && more.is_array())
        whole.insert(whole.end(), more.begin(), more.end());
    else if (!more.is_null() || whole.is_null())
        whole = more;
}

/// The field `logprobs` of the chunk for a token; null if the client has not asked for them.
inline json logprobs_of(const EngineHost &host, const OpenAiRequest &q, const Piece &piece)
{
    if (piece.token.empty() || !has_logprobs(q))
        return nullptr;
    json entries = json::array(), by_text = json::object();
    for (const cleave::Event &event : piece.token) {
        const std::string text = host.model.token_bytes(event.token()).value_or(std::string());
        const float logprob = std::max(event.logprob(), -9999.0f); // JSON has no infinity
        const std::vector<std::uint8_t> bytes(text.begin(), text.end());
        entries.push_back({{"token", text}, {"logprob", logprob}, {"bytes", bytes}});
        by_text[text] = logprob;
    }
    if (q.chat) {
        json entry = entries[0];
        entries.erase(0);
        entry["top_logprobs"] = entries;
        return {{"content", json::array({entry})}};
    }
    return {{"tokens", json::array({entries[0]["token"]})},
            {"token_logprobs", json::array({entries[0]["logprob"]})},
            {"top_logprobs", json::array({by_text})},
            {"text_offset", json::array({piece.offset})}};
}

inline json usage_of(std::size_t prompt, std::size_t completion)
{
    return {{"prompt_tokens", prompt}, {"completion_tokens", completion}, {"total_tokens", prompt + completion}};
}
