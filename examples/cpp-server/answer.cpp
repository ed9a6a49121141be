#include "answer.hpp"

#include <algorithm>
#include <ctime>
#include <random>

using nlohmann::ordered_json;

namespace {

ordered_json to_json(const Usage &usage)
{
    return {{"prompt_tokens", usage.prompt_tokens},
            {"completion_tokens", usage.completion_tokens},
            {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
            {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

/// A token as text. Parts of characters become U+FFFD.
std::string text_of(const Candidate &candidate)
{
    return json::parse(dump(json(candidate.bytes))).get<std::string>();
}

/// JSON has no infinity.
double logprob_of(const Candidate &candidate) { return std::max(candidate.logprob, -9999.0f); }

ordered_json to_json(const Candidate &candidate)
{
    ordered_json bytes = ordered_json::array();
    for (const unsigned char byte : candidate.bytes)
        bytes.push_back(byte);
    return {{"token", text_of(candidate)}, {"logprob", logprob_of(candidate)}, {"bytes", bytes}};
}

std::string event(const ordered_json &data) { return "data: " + dump(data) + "\n\n"; }

} // namespace

AnswerFormat::AnswerFormat(std::string id, std::string model, bool chat)
    : id_(std::move(id)), model_(std::move(model)), created_(std::time(nullptr)), chat_(chat)
{
}

ordered_json AnswerFormat::answer(bool chunk) const
{
    const char *object = !chat_ ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
    return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_}, {"choices", ordered_json::array()}};
}

ordered_json AnswerFormat::logprobs(const Piece *pieces, std::size_t n) const
{
    ordered_json content = ordered_json::array();
    ordered_json tokens = ordered_json::array(), token_logprobs = tokens, top_logprobs = tokens, offsets = tokens;
    for (const Piece *piece = pieces; piece != pieces + n; piece++) {
        if (!piece->token)
            continue;
        if (chat_) {
            ordered_json token = to_json(*piece->token);
            token["top_logprobs"] = ordered_json::array();
            for (const Candidate &candidate : piece->top)
                token["top_logprobs"].push_back(to_json(candidate));
            content.push_back(std::move(token));
        } else {
            ordered_json top = {{text_of(*piece->token), logprob_of(*piece->token)}};
            for (const Candidate &candidate : piece->top)
                top.emplace(text_of(candidate), logprob_of(candidate));
            tokens.push_back(text_of(*piece->token));
            token_logprobs.push_back(logprob_of(*piece->token));
            top_logprobs.push_back(std::move(top));
            offsets.push_back(piece->offset);
        }
    }
    if (chat_)
        return content.empty() ? ordered_json() : ordered_json{{"content", content}};
    if (tokens.empty())
        return nullptr;
    return {{"tokens", tokens}, {"token_logprobs", token_logprobs}, {"top_logprobs", top_logprobs}, {"text_offset", offsets}};
}

std::string AnswerFormat::chunk(const Piece &piece) const
{
    ordered_json choice = {{"index", piece.choice}};
    if (!chat_)
        choice["text"] = piece.text;
    else if (piece.role)
        choice["delta"] = {{"role", "assistant"}, {"content", ""}};
    else if (piece.finish_reason.empty())
        choice["delta"] = {{"content", piece.text}};
    else
        choice["delta"] = ordered_json::object();
    choice["logprobs"] = logprobs(&piece, 1);
    choice["finish_reason"] = piece.finish_reason.empty() ? ordered_json() : ordered_json(piece.finish_reason);
    ordered_json out = answer(true);
    out["choices"].push_back(std::move(choice));
    return event(out);
}

std::string AnswerFormat::usage_chunk(const Usage &usage) const
{
    ordered_json out = answer(true);
    out["usage"] = to_json(usage);
    return event(out);
}

std::string AnswerFormat::whole(const std::vector<std::vector<Piece>> &choices, const Usage &usage) const
{
    ordered_json out = answer(false);
    for (std::size_t i = 0; i < choices.size(); i++) {
        std::string text, finish_reason;
        for (const Piece &piece : choices[i]) {
            text += piece.text;
            finish_reason = piece.finish_reason;
        }
        ordered_json choice = {{"index", i}};
        if (chat_)
            choice["message"] = {{"role", "assistant"}, {"content", text}};
        else
            choice["text"] = text;
        choice["logprobs"] = logprobs(choices[i].data(), choices[i].size());
        choice["finish_reason"] = finish_reason;
        out["choices"].push_back(std::move(choice));
    }
    out["usage"] = to_json(usage);
    return dump(out);
}

std::uint64_t random_number()
{
    static thread_local std::mt19937_64 numbers{(std::uint64_t{std::random_device()()} << 32) + std::random_device()()};
    return numbers();
}

std::string new_id(bool chat)
{
    char digits[33];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(random_number()));
    return (chat ? "chatcmpl-" : "cmpl-") + std::string(digits);
}
