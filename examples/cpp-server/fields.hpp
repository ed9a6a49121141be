// Rules for the fields of requests. Limits keep the work before a prompt is tokenised small and linear in the size of
// the body.
#pragma once

#include "errors.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <vector>

constexpr std::size_t max_depth = 64;       // levels of nested JSON
constexpr std::size_t max_containers = 50000; // arrays and objects
constexpr std::size_t max_messages = 10000; // in a chat
constexpr std::size_t max_parts = 10000;    // content parts of all its messages together
constexpr std::size_t max_choices = 1024;   // prompts times n
constexpr std::size_t max_stop_strings = 4;
constexpr std::size_t max_stop_bytes = 1024;

/// Type and range that a field must have.
struct Rule {
    enum Kind {
        Boolean,
        String,
        Object,   // checked by its reader
        Anything, // checked by its reader
        Integer,  // from least to most
        Number,   // from least to most
        Positive, // a number above 0, at most `most`
        Seed,     // an integer of 64 bits
    };
    const char *name;
    Kind kind;
    double least = 0, most = 0;

    bool holds(const json &value) const
    {
        const double number = value.is_number() ? value.get<double>() : 0;
        const bool in_range = value.is_number() && least <= number && number <= most;
        switch (kind) {
        case Boolean: return value.is_boolean();
        case String: return value.is_string();
        case Object: return value.is_object();
        case Anything: return true;
        case Integer: return in_range && value.is_number_integer();
        case Number: return in_range;
        case Positive: return value.is_number() && number > 0 && number <= most;
        case Seed: return value.is_number_integer() && (!value.is_number_unsigned() || value.get<std::uint64_t>() <= INT64_MAX);
        }
        return false;
    }

    std::string demand() const
    {
        const auto text = [](double number) {
            char digits[32];
            std::snprintf(digits, sizeof digits, "%.10g", number);
            return std::string(digits);
        };
        const std::string range = " from " + text(least) + " to " + text(most);
        switch (kind) {
        case Boolean: return "true or false";
        case String: return "a string";
        case Object: return "an object";
        case Integer: return "an integer" + range;
        case Number: return "a number" + range;
        case Positive: return "a number above 0 and at most " + text(most);
        case Anything:
        case Seed: break;
        }
        return "an integer of 64 bits";
    }
};

using Rules = std::vector<Rule>;

constexpr double max_count = 2147483647; // tokens: more than any context

/// Fields for which one value is accepted: the default, which vLLM's router sends in every request.
inline const std::map<std::string, bool> only_value = {
    {"echo", false},
    {"include_reasoning", true},
    {"no_stop_trim", false},
    {"return_hidden_states", false},
    {"separate_reasoning", true},
    {"skip_special_tokens", true},
    {"stream_reasoning", true},
};

/// The fields of one endpoint. Only a worker takes those of fronts and routers.
inline Rules rules_of(bool chat, bool to_worker)
{
    Rules rules = {
        {"model", Rule::String},
        {"n", Rule::Integer, 1, 128},
        {"stream", Rule::Boolean},
        {"stream_options", Rule::Object},
        {"max_tokens", Rule::Integer, 1, max_count},
        {"min_tokens", Rule::Integer, 0, max_count},
        {"ignore_eos", Rule::Boolean},
        {"temperature", Rule::Number, 0, 2},
        {"top_p", Rule::Positive, 0, 1},
        {"top_k", Rule::Integer, -1, max_count},
        {"min_p", Rule::Number, 0, 1},
        {"repetition_penalty", Rule::Positive, 0, 2},
        {"presence_penalty", Rule::Number, -2, 2},
        {"frequency_penalty", Rule::Number, -2, 2},
        {"logit_bias", Rule::Object},
        {"seed", Rule::Seed},
        {"stop", Rule::Anything},
        {"priority", Rule::Integer, 0, 4294967295},
        {"response_format", Rule::Object},
    };
    const Rules of_chats = {
        {"messages", Rule::Anything},
        {"chat_template_kwargs", Rule::Object},
        {"add_generation_prompt", Rule::Boolean},
        {"continue_final_message", Rule::Boolean},
        {"max_completion_tokens", Rule::Integer, 1, max_count},
        {"logprobs", Rule::Boolean},
        {"top_logprobs", Rule::Integer, 0, 20},
    };
    const Rules of_completions = {
        {"prompt", Rule::Anything},
        {"logprobs", Rule::Integer, 0, 5},
        {"best_of", Rule::Integer, 1, 128},
    };
    const Rules &more = chat ? of_chats : of_completions;
    rules.insert(rules.end(), more.begin(), more.end());
    for (const auto &only : only_value)
        rules.push_back({only.first.c_str(), Rule::Boolean});
    if (to_worker)
        rules.push_back({"kv_transfer_params", Rule::Object});
    return rules;
}

/// Fields that do not change the answer. They are accepted and ignored. The list is in ../README.md.
inline const std::set<std::string> harmless = {"metadata",     "parallel_tool_calls", "prompt_cache_key",
                                               "request_id",   "safety_identifier",   "service_tier",
                                               "store",        "user"};

/// Refuses fields that break a rule, and fields without a rule unless they are `ignored`. `path` is the position of the
/// object in the body: empty, or with a dot at its end. Throws ApiError.
inline void check_fields(const json &object, const std::string &path, const Rules &rules,
                         const std::set<std::string> &ignored = {})
{
    for (const auto &[name, value] : object.items()) {
        const std::string &field = name;
        const auto is_this = [&](const Rule &rule) { return rule.name == field; };
        if (ignored.count(name) == 0 && std::none_of(rules.begin(), rules.end(), is_this))
            throw invalid(path + name, path + name + " is not supported by this server");
    }
    for (const Rule &rule : rules) {
        const auto at = object.find(rule.name);
        if (at != object.end() && !rule.holds(*at))
            throw invalid(path + rule.name, path + rule.name + " must be " + rule.demand());
    }
}

/// Refuses a body with too many arrays and objects, or too deeply nested ones, before memory is spent on them. The JSON
/// may be malformed. Throws ApiError.
inline void check_shape(const std::string &text)
{
    std::size_t open = 0, deepest = 0, containers = 0;
    bool quoted = false;
    for (std::size_t i = 0; i < text.size(); i++) {
        const char c = text[i];
        if (quoted && c == '\\') {
            i++;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (!quoted && (c == '[' || c == '{')) {
            containers++;
            deepest = std::max(deepest, ++open);
        } else if (!quoted && (c == ']' || c == '}') && open > 0) {
            open--;
        }
    }
    if (deepest > max_depth)
        throw invalid(nullptr, "the body is nested more than " + std::to_string(max_depth) + " levels deep");
    if (containers > max_containers)
        throw invalid(nullptr, "the body has more than " + std::to_string(max_containers) + " arrays and objects");
}

/// Removes null fields, which count as absent.
inline json without_nulls(json object)
{
    for (auto at = object.begin(); at != object.end();)
        at = at->is_null() ? object.erase(at) : std::next(at);
    return object;
}

/// Parses a JSON object from outside and removes its null fields. Throws ApiError.
inline json parse_object(const std::string &text)
{
    check_shape(text); // nlohmann::json copies and writes recursively
    json value = json::parse(text, nullptr, false); // with a callback it would take quadratic time
    if (value.is_discarded())
        throw invalid(nullptr, "the body is not valid JSON");
    if (!value.is_object())
        throw invalid(nullptr, "the body is not a JSON object");
    return without_nulls(std::move(value));
}
