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

/// Which special tokens Model::tokenize adds.
enum class Special : std::uint32_t {
    Add = 0,                          // those that the tokenizer puts around a text
    None = CLEAVE_TOKENIZE_NO_SPECIAL, // none: the text holds them already, as chat_prompt's does
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

    /// Replaces what is in `tokens` by the ids of `text` (UTF-8).
    /// Errors: InvalidArgument (not UTF-8), Unsupported (a model without tokenizer files).
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

    /// Applies the chat template to a JSON array of messages, up to where the assistant's answer begins. Tokenise the
    /// result with Special::None. Errors: InvalidArgument (not JSON, refused by the template), Unsupported (none).
    Result<std::string> chat_prompt(std::string_view messages_json) const
    {
        std::string text;
        const auto call = [&](char *out, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_chat_prompt(get(), messages_json.data(), messages_json.size(), out, cap, n, err);
        };
        const auto done = detail::fill(text, messages_json.size() + 256, call);
        if (!done)
            return done.error();
        return text;
    }

    /// Replaces what is in `bytes` by those that `token` stands for by itself, as logprobs report them: not always whole
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
