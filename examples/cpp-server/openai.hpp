// Requests of OpenAI's API, read and checked as far as that goes without a model.
#pragma once

#include "http.hpp"
#include "text.hpp"

#include <random>
#include <vector>

/// A checked request.
struct Generation {
    json body; // as the client sent it, without what is null
    bool chat, stream;
    std::size_t n;            // choices of each prompt
    std::string model;        // empty: whichever there is
    json messages;            // chat: role and content of each, the content as one string
    json prompts;             // completions: each a string or an array of token ids
    std::vector<std::string> stop;
    // kv_transfer_params, by which front and workers understand each other: see "Workers" in ../README.md
    bool do_remote_decode, do_remote_prefill;
    std::vector<std::uint8_t> ticket;
    std::vector<std::size_t> resume;

    std::size_t n_prompts() const { return chat ? 1 : prompts.size(); }
    template <class T> T get(const char *name, T missing) const { return body.value(name, missing); }
};

/// What a field must be.
struct Rule {
    const char *name;
    enum Kind { Boolean, String, Object, Integer, Number, Refused } kind;
    double least = 0, most = 0;

    void check(const json &body) const
    {
        const auto at = body.find(name);
        if (at == body.end())
            return;
        const bool in_range = at->is_number() && at->get<double>() >= least && at->get<double>() <= most;
        const bool right = kind == Boolean   ? at->is_boolean()
                           : kind == String  ? at->is_string()
                           : kind == Object  ? at->is_object()
                           : kind == Integer ? at->is_number_integer() && in_range
                                             : kind == Number && in_range;
        const char *const kinds[] = {"true or false", "a string", "an object", "an integer", "a number", "left out"};
        const std::string range = " from " + json(least).dump() + " to " + json(most).dump();
        if (!right)
            throw invalid(name, std::string(name) + " must be " + kinds[kind] + (most != 0 ? range : ""));
    }
};

constexpr double any_count = 2147483648; // of tokens: more than any context
constexpr double above_0 = 1e-6;

constexpr Rule rules[] = {
    {"model", Rule::String},
    {"n", Rule::Integer, 1, 128},
    {"best_of", Rule::Integer, 1, 128},
    {"stream", Rule::Boolean},
    {"stream_options", Rule::Object},
    {"max_tokens", Rule::Integer, 1, any_count},
    {"max_completion_tokens", Rule::Integer, 1, any_count},
    {"min_tokens", Rule::Integer, 0, any_count},
    {"ignore_eos", Rule::Boolean},
    {"temperature", Rule::Number, 0, 2},
    {"top_p", Rule::Number, above_0, 1},
    {"top_k", Rule::Integer, -1, any_count},
    {"min_p", Rule::Number, 0, 1},
    {"repetition_penalty", Rule::Number, above_0, 2},
    {"presence_penalty", Rule::Number, -2, 2},
    {"frequency_penalty", Rule::Number, -2, 2},
    {"logit_bias", Rule::Object},
    {"seed", Rule::Integer, -9223372036854775808.0, 18446744073709551616.0},
    {"top_logprobs", Rule::Integer, 0, 20},
    {"priority", Rule::Integer, 0, 4294967295},
    {"echo", Rule::Boolean},
    {"response_format", Rule::Object},
    {"kv_transfer_params", Rule::Object},
    {"tools", Rule::Refused},
    {"functions", Rule::Refused},
    {"suffix", Rule::Refused},
};

/// A JSON object from outside. Depth is limited, as nlohmann::json copies and writes recursively. Throws ApiError.
inline json parse_object(const std::string &text)
{
    json value;
    try {
        value = json::parse(text, [](int depth, json::parse_event_t, json &) {
            if (depth > 64)
                throw invalid(nullptr, "the body is nested too deeply");
            return true;
        });
    } catch (const json::exception &error) {
        throw invalid(nullptr, std::string("the body is not JSON: ") + error.what());
    }
    if (!value.is_object())
        throw invalid(nullptr, "the body is not a JSON object");
    return value;
}

/// Leaves of each message what a chat template takes: its role, and its content as one string.
inline json parse_messages(const json &messages)
{
    json out = json::array();
    for (const json &message : messages) {
        std::string text;
        const json &content = message.at("content");
        if (content.is_string())
            text = content;
        else if (!content.is_array())
            throw invalid("messages", "the content of messages must be a string or an array of text parts");
        else
            for (const json &part : content) {
                if (part.at("type") != "text")
                    throw invalid("messages", "messages may have parts of type text only");
                text += part.at("text").get_ref<const std::string &>();
            }
        out.push_back({{"role", message.at("role").get_ref<const std::string &>()}, {"content", text}});
    }
    if (!messages.is_array() || out.empty())
        throw invalid("messages", "messages must be an array of messages");
    return out;
}

inline json parse_prompts(const json &prompt)
{
    const bool several = prompt.is_array() && !prompt.empty() && !prompt[0].is_number();
    const json out = several ? prompt : json::array({prompt});
    for (const json &one : out)
        if (!one.is_string() && (!one.is_array() || one.empty()))
            throw invalid("prompt", "prompt must be a string, token ids, or an array of either");
    return out;
}

inline std::vector<std::string> parse_stop(const json &stop)
{
    const std::vector<std::string> out = stop.is_string() ? json::array({stop}) : stop;
    if (out.size() > 4 || std::count(out.begin(), out.end(), "") != 0)
        throw invalid("stop", "stop must be a string or up to 4 of them, none of them empty");
    return out;
}

/// Reads the body of POST /v1/chat/completions or /v1/completions. Throws ApiError, whose param names the field.
inline Generation parse_generation(const Call &call)
{
    Generation q{};
    q.chat = call.path == "/v1/chat/completions";
    q.body = parse_object(call.body);
    for (auto at = q.body.begin(); at != q.body.end();)
        at = at->is_null() ? q.body.erase(at) : std::next(at);
    for (const Rule &rule : rules)
        rule.check(q.body);
    (q.chat ? Rule{"logprobs", Rule::Boolean} : Rule{"logprobs", Rule::Integer, 0, 5}).check(q.body);

    const char *reading = "response_format";
    try { // what json finds wrong is wrong with the field that is read
        if (q.get("response_format", json{{"type", "text"}}).at("type") != "text")
            throw invalid(reading, "only the response_format text is supported");
        q.n = q.get("n", std::size_t{1});
        reading = q.chat ? "messages" : "prompt";
        if (q.chat)
            q.messages = parse_messages(q.get(reading, json()));
        else
            q.prompts = parse_prompts(q.get(reading, json()));
        reading = "stop";
        q.stop = parse_stop(q.get(reading, json::array()));
        reading = "stream_options";
        q.stream = q.get("stream", false);
        static_cast<void>(q.get(reading, json::object()).value("include_usage", false));
        reading = "kv_transfer_params";
        const json kv = q.get(reading, json::object());
        q.do_remote_decode = kv.value("do_remote_decode", false);
        q.do_remote_prefill = kv.value("do_remote_prefill", false);
        const auto ticket = from_base64(kv.value("ticket", ""));
        if (!ticket)
            throw invalid(reading, "the ticket is not base64");
        q.ticket = *ticket;
        q.resume = kv.value("resume", q.resume);
    } catch (const json::exception &error) {
        throw invalid(reading, std::string(reading) + ": " + error.what());
    }
    q.model = q.get("model", std::string());
    if (q.n_prompts() * q.n > 1024)
        throw invalid("prompt", "prompt and n make more than 1024 choices");
    if (q.get("echo", false))
        throw invalid("echo", "echo is not supported");
    if (q.get("best_of", q.n) != q.n)
        throw invalid("best_of", "best_of must be equal to n");
    if (q.chat && q.body.contains("top_logprobs") && !q.get("logprobs", false))
        throw invalid("top_logprobs", "top_logprobs needs logprobs to be true");
    return q;
}

inline std::uint64_t random_number()
{
    static thread_local std::mt19937_64 numbers{(std::uint64_t{std::random_device()()} << 32) + std::random_device()()};
    return numbers();
}

/// "chatcmpl-" or "cmpl-", and a random rest.
inline std::string new_id(bool chat) { return (chat ? "chatcmpl-" : "cmpl-") + std::to_string(random_number()); }
