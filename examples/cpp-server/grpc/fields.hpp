// Fields that requests of all gRPC services share, and refusals of unknown ones.
#pragma once

#include "../generation.hpp"
#include "status.hpp"

#include <google/protobuf/message.h>
#include <google/protobuf/unknown_field_set.h>

#include <algorithm>

/// Refuses a request that has, in any of its messages, a field that this server was not generated for: a field that is
/// ignored might change what the answer means. `name` is that of the message in the request. Throws StatusError.
inline void check_fields(const google::protobuf::Message &message, const std::string &name = "the request")
{
    const auto &reflection = *message.GetReflection();
    const auto &unknown = reflection.GetUnknownFields(message);
    if (!unknown.empty())
        throw refused(name, "field number " + std::to_string(unknown.field(0).number()) + " is unknown to this server");
    std::vector<const google::protobuf::FieldDescriptor *> fields;
    reflection.ListFields(message, &fields);
    for (const auto *field : fields) {
        if (field->message_type() == nullptr || field->is_map())
            continue;
        if (!field->is_repeated())
            check_fields(reflection.GetMessage(message, field), field->name());
        else
            for (int i = 0; i < reflection.FieldSize(message, field); i++)
                check_fields(reflection.GetRepeatedMessage(message, field, i), field->name());
    }
}

/// Converts token ids. Throws StatusError.
template <class Ids> Tokens tokens_of(const EngineHost &host, const char *field, const Ids &ids)
{
    Tokens out;
    out.reserve(static_cast<std::size_t>(ids.size()));
    for (const std::uint32_t id : ids) {
        if (id >= host.about.vocab_size)
            throw refused(field, "the model has no token " + std::to_string(id));
        out.push_back(static_cast<std::int32_t>(id));
    }
    return out;
}

/// Returns the tokens of a text. One that cannot fit into the context is refused before it is tokenised. Throws StatusError.
inline Tokens tokenize_field(const EngineHost &host, const char *field, const std::string &text)
{
    if (text.size() > host.max_prompt_bytes)
        throw refused(field, std::to_string(text.size()) + " bytes, and at most " + std::to_string(host.max_prompt_bytes) +
                                 " fit into the context");
    auto tokens = host.model.tokenize(text);
    if (!tokens)
        throw refused(field, tokens.error().message());
    return std::move(*tokens);
}

/// Refuses a prompt that is empty or leaves no room for a token. Throws StatusError.
inline void check_room(const EngineHost &host, const Tokens &prompt)
{
    const std::size_t limit = host.about.max_context_tokens;
    if (prompt.empty())
        throw refused("prompt", "it is empty");
    if (prompt.size() >= limit)
        throw refused("prompt", std::to_string(prompt.size()) + " tokens, and the context has room for " +
                                    std::to_string(limit - 1) + " with one to follow");
}

/// Refuses stop strings that are empty, too long or too many. Throws StatusError.
inline void check_stop_strings(const char *field, const std::vector<std::string> &stops)
{
    constexpr std::size_t most = 128, most_bytes = 1024;
    if (stops.size() > most)
        throw refused(field, "there are " + std::to_string(stops.size()) + ", and at most " + std::to_string(most) + " are taken");
    for (const std::string &stop : stops)
        if (stop.empty() || stop.size() > most_bytes)
            throw refused(field, "each must have 1 to " + std::to_string(most_bytes) + " bytes");
}

/// Converts a seed. The library takes 0 for a random one.
inline std::uint64_t to_seed(std::int64_t seed) { return seed != 0 ? static_cast<std::uint64_t>(seed) : UINT64_C(1) << 63; }

/// Converts a priority of 32 bits with a sign, lower first, to one without, higher first.
inline std::uint32_t to_priority(std::int32_t priority)
{
    const std::int64_t higher = -static_cast<std::int64_t>(priority) - INT32_MIN;
    return static_cast<std::uint32_t>(std::min<std::int64_t>(higher, UINT32_MAX));
}

/// Largest number of alternatives that a token can be reported with: the library's limit.
constexpr std::uint32_t most_candidates = 128;

/// Number of alternatives to ask the engine for, if `wanted` are to be reported with each token: enough for exact ranks
/// among the likeliest 20.
inline std::int32_t alternatives(const EngineHost &host, std::uint32_t wanted)
{
    return static_cast<std::int32_t>(std::max(wanted, std::min(std::uint32_t{20}, host.about.vocab_size)));
}
