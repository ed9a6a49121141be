// The input of requests: the messages of a chat, the prompts of a completion.
#pragma once

#include "fields.hpp"

/// Joins the text parts of a message and counts the parts. `path` is their position in the body. Throws ApiError.
inline std::string parse_content(const json &content, const std::string &path, std::size_t &parts)
{
    if (content.is_string())
        return content;
    if (!content.is_array() || content.empty())
        throw invalid("messages", path + " must be a string or an array of text parts");
    parts += content.size();
    if (parts > max_parts)
        throw invalid("messages", "messages must have at most " + std::to_string(max_parts) + " content parts");
    std::string whole;
    for (std::size_t i = 0; i < content.size(); i++) {
        const std::string place = path + "[" + std::to_string(i) + "]";
        const json part = content[i].is_object() ? without_nulls(content[i]) : json::object();
        if (part.value("type", json()) != "text")
            throw invalid("messages", place + " must be of type text: other parts are not supported");
        check_fields(part, place + ".", {{"type", Rule::String}, {"text", Rule::String}});
        if (!part.contains("text"))
            throw invalid("messages", place + " must have a text");
        whole += part["text"].get_ref<const std::string &>();
    }
    return whole;
}

/// Returns the chat template's input: role, content as one string, and name (if present) of each message. Adds up the
/// sizes of the contents in bytes. Throws ApiError.
inline json parse_messages(const json &messages, std::size_t &bytes)
{
    if (!messages.is_array() || messages.empty() || messages.size() > max_messages)
        throw invalid("messages", "messages must be an array of 1 to " + std::to_string(max_messages) + " messages");
    json out = json::array();
    std::size_t parts = 0;
    for (std::size_t i = 0; i < messages.size(); i++) {
        const std::string place = "messages[" + std::to_string(i) + "]";
        if (!messages[i].is_object())
            throw invalid("messages", place + " must be an object");
        const json message = without_nulls(messages[i]);
        check_fields(message, place + ".", {{"role", Rule::String}, {"content", Rule::Anything}, {"name", Rule::String}});
        if (message.value("role", "").empty() || !message.contains("content"))
            throw invalid("messages", place + " must have a role and a content");
        json &known = out.emplace_back(json{{"role", message["role"]}});
        known["content"] = parse_content(message["content"], place + ".content", parts);
        bytes += known["content"].get_ref<const std::string &>().size();
        if (!message.value("name", "").empty())
            known["name"] = message["name"];
    }
    return out;
}

/// Converts a string, token ids, or an array of either to an array. Throws ApiError.
inline json parse_prompts(const json &prompt)
{
    const bool several = prompt.is_array() && !prompt.empty() && (prompt[0].is_string() || prompt[0].is_array());
    json out = several ? prompt : json::array({prompt});
    if (out.size() > max_choices)
        throw invalid("prompt", "prompt must have at most " + std::to_string(max_choices) + " prompts");
    for (const json &one : out) {
        const auto is_integer = [](const json &token) { return token.is_number_integer(); };
        const bool tokens = one.is_array() && !one.empty() && std::all_of(one.begin(), one.end(), is_integer);
        if (!one.is_string() && !tokens)
            throw invalid("prompt", "prompt must be a string, token ids, or an array of either");
    }
    return out;
}
