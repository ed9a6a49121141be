// A model and its tokenizer.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_MODEL_HPP
#define CLEAVE_MODEL_HPP

#include "owner.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace cleave {

struct ModelInfo : cleave_model_info_t {
    std::string_view architecture() const noexcept { return cleave_model_info_t::architecture; }
};

/// Treatment of special tokens in Model::tokenize.
enum class Special : std::uint32_t {
    Add = 0,                           // adds those that the tokenizer puts around a text
    None = CLEAVE_TOKENIZE_NO_SPECIAL, // adds none: the text holds them already, as chat_prompt's does
    // Adds none, and those written out in the text stay text: for text of users between tokens of the caller's own.
    Plain = CLEAVE_TOKENIZE_NO_SPECIAL | CLEAVE_TOKENIZE_PLAIN,
};

/// Arguments of Model::chat_prompt in addition to the messages.
struct ChatOptions {
    std::string_view tools_json;     // a JSON array of tools in the form that OpenAI's API has
    std::string_view arguments_json; // a JSON object of further variables: {"enable_thinking": false}
    bool generation_prompt = true;   // ends the prompt where the assistant's answer begins
    bool continue_final_message = false; // leaves the last message open, so that generation continues its text
};

/// A Hugging Face directory: config, tokenizer, mapped weights. Caches and detokenizers keep what they need of it.
class Model : public detail::Owner<cleave_model_t, cleave_model_release> {
public:
    Model() noexcept = default;
    static Model adopt(cleave_model_t *model) noexcept { return Model(model); }

    /// Opens the model in a directory and checks it whole. [BLOCKING]
    /// Errors: NotFound, Corrupt, Unsupported, Io, OutOfMemory; the text names file, tensor and reason.
    static Result<Model> load(const std::string &directory) noexcept
    {
        cleave_error_t error;
        cleave_model_t *model = nullptr;
        if (cleave_model_load(directory.c_str(), &model, &error) != CLEAVE_OK)
            return Error(error);
        return Model(model);
    }

    Result<ModelInfo> info() const noexcept
    {
        return detail::read_info<ModelInfo, cleave_model_info_t>(
            [&](cleave_model_info_t *out, cleave_error_t *err) { return cleave_model_info(get(), out, err); });
    }

    /// Replaces the content of `tokens` by the ids of `text` (UTF-8, at most 8 MiB). [BLOCKING]
    /// Errors: InvalidArgument (not UTF-8, too long), Unsupported (a model without tokenizer files).
    Result<void> tokenize(std::string_view text, std::vector<std::int32_t> &tokens, Special special = Special::Add) const
    {
        const auto flags = static_cast<std::uint32_t>(special);
        const auto call = [&](std::int32_t *out, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_tokenize(get(), text.data(), text.size(), flags, out, cap, n, err);
        };
        return detail::fill(tokens, text.size() + 8, call);
    }
    Result<std::vector<std::int32_t>> tokenize(std::string_view text, Special special = Special::Add) const
    {
        std::vector<std::int32_t> tokens;
        const auto done = tokenize(text, tokens, special);
        if (!done)
            return done.error();
        return tokens;
    }

    /// Applies the chat template to a JSON array of messages. Tokenise the result with Special::None. [BLOCKING]
    /// Errors: InvalidArgument (not JSON, refused by the template or too much for it), Unsupported (no template).
    Result<std::string> chat_prompt(std::string_view messages_json, const ChatOptions &options = {}) const
    {
        std::string text;
        const std::string_view tools = options.tools_json, arguments = options.arguments_json;
        const std::uint32_t flags = (options.generation_prompt ? 0 : CLEAVE_CHAT_NO_GENERATION_PROMPT) |
                                    (options.continue_final_message ? CLEAVE_CHAT_CONTINUE_FINAL_MESSAGE : 0);
        const auto call = [&](char *out, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_chat_prompt(get(), messages_json.data(), messages_json.size(), tools.data(), tools.size(),
                                      arguments.data(), arguments.size(), flags, out, cap, n, err);
        };
        const auto done = detail::fill(text, messages_json.size() + tools.size() + 256, call);
        if (!done)
            return done.error();
        return text;
    }

    /// Replaces the content of `bytes` by those that `token` stands for by itself, as logprobs report them: not always whole
    /// characters; of a special token its written form. Errors: InvalidArgument (no token of the model), Unsupported.
    Result<void> token_bytes(std::int32_t token, std::string &bytes) const
    {
        return detail::fill(bytes, 32, [&](char *out, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_token_bytes(get(), token, out, cap, n, err);
        });
    }
    Result<std::string> token_bytes(std::int32_t token) const
    {
        std::string bytes;
        const auto done = token_bytes(token, bytes);
        if (!done)
            return done.error();
        return bytes;
    }

private:
    explicit Model(cleave_model_t *model) noexcept : Owner(model) {}
};

} // namespace cleave

#endif
