// Requests of OpenAI's API, read and checked as far as possible without a model.
#pragma once

#include "messages.hpp"
#include "text.hpp"

#include <random>
#include <vector>

/// Paths that take a request, for completions and for chats.
constexpr const char *generation_paths[] = {"/v1/completions", "/v1/chat/completions"};

/// A request that has been checked.
struct OpenAiRequest {
    json body; // the client's fields, without null ones
    bool chat, stream, include_usage, usage_in_chunks; // usage in a last chunk; in every chunk, of its choice so far
    std::size_t n;             // for each prompt
    std::string model;         // empty means any
    json messages;             // chat: input of the template
    std::size_t content_bytes; // chat: size of the texts in the messages
    json prompts;              // completions: each is a string or an array of token ids
    std::vector<std::string> stop;
    std::uint32_t max_tokens, min_tokens; // max_tokens 0 means until the context is full
    // Fields of kv_transfer_params, which workers exchange through a front or another router: see "Workers" in ../README.md.
    bool do_remote_decode, do_remote_prefill;
    std::vector<std::uint8_t> ticket;
    std::vector<std::size_t> resume;

    const char *path() const { return generation_paths[chat]; }
    std::size_t n_prompts() const { return chat ? 1 : prompts.size(); }
    template <class T> T get(const char *name, T missing) const { return body.value(name, missing); }
};

inline std::vector<std::string> parse_stop(const json &stop)
{
    const json strings = stop.is_array() ? stop : json::array({stop});
    const auto good = [](const json &one) {
        return one.is_string() && one != "" && one.get_ref<const std::string &>().size() <= max_stop_bytes;
    };
    if (strings.size() > max_stop_strings || !std::all_of(strings.begin(), strings.end(), good))
        throw invalid("stop", "stop must be a string or up to " + std::to_string(max_stop_strings) +
                                  " strings, of 1 to " + std::to_string(max_stop_bytes) + " bytes each");
    return strings;
}

inline void check_logit_bias(const json &biases)
{
    for (const auto &[key, value] : biases.items()) {
        const bool digits = !key.empty() && key.find_first_not_of("0123456789") == std::string::npos;
        if (!digits || key.size() > 10 || std::stoull(key) > INT32_MAX || !Rule{"", Rule::Number, -100, 100}.holds(value))
            throw invalid("logit_bias", "logit_bias must have token ids as keys, and numbers from -100 to 100 as values");
    }
}

/// Reads kv_transfer_params. Routers add fields of their own, which are ignored. Throws ApiError.
inline void parse_transfer(const json &sent, OpenAiRequest &q)
{
    const json params = without_nulls(sent);
    const auto wrong = invalid("kv_transfer_params", "kv_transfer_params are malformed");
    try {
        q.do_remote_decode = params.value("do_remote_decode", false);
        q.do_remote_prefill = params.value("do_remote_prefill", false);
        const auto ticket = from_base64(params.value("ticket", ""));
        if (!ticket)
            throw wrong;
        q.ticket = *ticket;
        for (const json &count : params.value("resume", json::array())) {
            if (!count.is_number_unsigned())
                throw wrong;
            q.resume.push_back(count);
        }
    } catch (const json::exception &) {
        throw wrong;
    }
}

/// Reads the body of a POST to a path of `generation_paths`. Only a request to a worker may have kv_transfer_params.
/// Throws ApiError, whose param names the field.
inline OpenAiRequest parse_openai(bool chat, const std::string &body, bool to_worker)
{
    OpenAiRequest q{};
    q.chat = chat;
    q.body = parse_object(body);
    check_fields(q.body, "", rules_of(q.chat, to_worker), harmless);
    q.model = q.get("model", std::string());
    q.stream = q.get("stream", false);
    q.n = q.get("n", std::size_t{1});
    if (q.get("continue_final_message", false) && q.get("add_generation_prompt", true))
        throw invalid("continue_final_message", "continue_final_message needs add_generation_prompt to be false");
    if (q.chat)
        q.messages = parse_messages(q.get("messages", json()), q.content_bytes);
    else
        q.prompts = parse_prompts(q.get("prompt", json()));
    if (q.n_prompts() * q.n > max_choices)
        throw invalid("n", "n times the number of prompts must be at most " + std::to_string(max_choices));
    parse_transfer(q.get("kv_transfer_params", json::object()), q);
    q.max_tokens = q.get("max_completion_tokens", q.get("max_tokens", q.chat ? 0u : 16u));
    q.min_tokens = q.get("min_tokens", 0u);
    if (q.max_tokens > 0 && q.min_tokens > q.max_tokens && !q.do_remote_decode) // routers then set max_tokens alone
        throw invalid("min_tokens", "min_tokens must not be above max_tokens");
    q.stop = parse_stop(q.get("stop", json::array()));
    if (q.chat && q.body.contains("top_logprobs") && !q.get("logprobs", false))
        throw invalid("top_logprobs", "top_logprobs needs logprobs to be true");
    check_logit_bias(q.get("logit_bias", json::object()));
    const json format = without_nulls(q.get("response_format", json{{"type", "text"}}));
    check_fields(format, "response_format.", {{"type", Rule::String}});
    if (format.value("type", "") != "text")
        throw invalid("response_format", "response_format must be of type text: other types are not supported");
    if (q.get("best_of", q.n) != q.n)
        throw invalid("best_of", "best_of must be equal to n");
    for (const auto &[name, only] : only_value)
        if (q.get(name.c_str(), only) != only)
            throw invalid(name, name + " must be " + (only ? "true" : "false") + ": it is not supported otherwise");
    const json options = without_nulls(q.get("stream_options", json::object()));
    check_fields(options, "stream_options.", {{"include_usage", Rule::Boolean}, {"continuous_usage_stats", Rule::Boolean}},
                 {"include_obfuscation"});
    q.include_usage = options.value("include_usage", false);
    q.usage_in_chunks = q.include_usage && options.value("continuous_usage_stats", false);
    return q;
}

inline std::uint64_t random_number()
{
    static thread_local std::mt19937_64 numbers{(std::uint64_t{std::random_device()()} << 32) + std::random_device()()};
    return numbers();
}

/// Returns an id: "chatcmpl-" or "cmpl-", and a random number.
inline std::string new_id(bool chat) { return (chat ? "chatcmpl-" : "cmpl-") + std::to_string(random_number()); }
