// A generation that a client asks for, independent of the protocol.
#pragma once

#include "engine.hpp"
#include "errors.hpp"

using Tokens = std::vector<std::int32_t>;

/// KV of a prompt at a prefill worker.
struct Ticket {
    std::vector<std::uint8_t> bytes{}; // empty: there is none, and the prompt is computed here
    bool streaming = false; // the prefill worker has this request's own parameters, and may still be computing the prompt
    bool or_compute = true; // the prompt is computed here if its KV cannot be had; otherwise that is an error

    /// Whether a sequence is the prompt, and one token that the prefill worker has generated. A prompt that is still being
    /// computed has none.
    bool continues(const Tokens &sequence, const Tokens &prompt) const
    {
        const bool right_size = sequence.size() == prompt.size() + 1 || (streaming && sequence.size() == prompt.size());
        return right_size && std::equal(prompt.begin(), prompt.end(), sequence.begin());
    }
};

struct Generation {
    std::vector<cleave::Request> choices; // with their prompts
    std::vector<std::string> stop;        // the text of a choice ends before the first of these
    bool keep_stop = false;        // the stop string, or the text of the stop token, is part of the text
    bool continues_prompt = false; // the text continues the prompt's, whose last character may be unfinished
    Ticket ticket{};                      // of the first choice's prompt
};

/// The error for a prompt that does not fit. It has the text of OpenAI's error, because clients recognise it by that.
inline ApiError too_long(const EngineHost &host, const char *field, const std::string &size)
{
    return ApiError(400, "invalid_request_error",
                    "This model's maximum context length is " + std::to_string(host.about.max_context_tokens) +
                        " tokens. However, the prompt has " + size + ".",
                    field, "context_length_exceeded");
}

/// Refuses an empty prompt and one that does not fit into the context. `field` had it. Throws ApiError.
inline void check_prompt(const EngineHost &host, const char *field, const Tokens &prompt)
{
    if (prompt.empty())
        throw invalid(field, std::string(field) + ": a prompt is empty");
    if (prompt.size() > host.about.max_context_tokens)
        throw too_long(host, field, std::to_string(prompt.size()) + " tokens");
}

/// The error for a ticket whose KV cannot be had: it expired, its exporter is gone, or it is of another model. Somebody
/// has to prefill the prompt again.
inline ApiError lost(const std::string &why) { return unavailable("the KV of the prompt is lost: " + why); }
inline ApiError lost(const cleave::Error &error)
{
    return error.code() == cleave::Status::InvalidArgument ? invalid(nullptr, error.message()) : lost(std::string(error.message()));
}

/// Translates an error of the library for a client.
inline ApiError to_api_error(const cleave::Error &error)
{
    switch (error.code()) {
    case cleave::Status::InvalidArgument:
    case cleave::Status::OutOfMemory: // the request needs more than the whole cache holds
        return invalid(nullptr, error.message());
    case cleave::Status::WouldBlock: return ApiError(429, "rate_limit_error", error.message());
    case cleave::Status::Shutdown: return unavailable("the server is shutting down");
    default: return failed(error.message());
    }
}
