// A generation that a client asks for, independent of the protocol.
#pragma once

#include "engine.hpp"
#include "errors.hpp"

using Tokens = std::vector<std::int32_t>;

struct Generation {
    std::vector<cleave::Request> choices; // with their prompts
    std::vector<std::string> stop;        // the text of a choice ends before the first of these
    std::vector<std::uint8_t> ticket;     // KV of the first choice's prompt at another worker; may be empty
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
