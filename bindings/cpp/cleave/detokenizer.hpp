// Tokens to text, one by one.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_DETOKENIZER_HPP
#define CLEAVE_DETOKENIZER_HPP

#include "model.hpp"
#include "span.hpp"

namespace cleave {

/// Turns the tokens of one sequence into text, whole characters only. One sequence's tokens have to come in order.
class Detokenizer : public detail::Owner<cleave_detokenizer_t, cleave_detokenizer_destroy> {
public:
    Detokenizer() noexcept = default;
    static Detokenizer adopt(cleave_detokenizer_t *detokenizer) noexcept { return Detokenizer(detokenizer); }

    /// Errors: Unsupported (a model without tokenizer files), InvalidArgument, NotFound.
    static Result<Detokenizer> create(const Model &model) noexcept
    {
        cleave_error_t error;
        cleave_detokenizer_t *detokenizer = nullptr;
        if (cleave_detokenizer_create(model.get(), &detokenizer, &error) != CLEAVE_OK)
            return Error(error);
        return Detokenizer(detokenizer);
    }

    /// Takes the next token and writes the text that is complete with it, often nothing, to `text`. 256 bytes are
    /// enough for most tokens, not for all. The result is how long it is; if that is more than text.size(), nothing
    /// was written: repeat the call with the same token and more room, as after a call with an empty `text`, which asks
    /// for the length. Errors: InvalidArgument (no token of the model), NotFound.
    Result<std::size_t> push(std::int32_t token, Span<char> text) noexcept
    {
        std::size_t n = 0;
        cleave_error_t error;
        const cleave_status_t status = cleave_detokenizer_push(get(), token, text.data(), text.size(), &n, &error);
        return length(status, error, n, text);
    }

    /// The same, appended to `text`. Allocates only where its capacity is too small.
    Result<void> push(std::int32_t token, std::string &text)
    {
        return append(text, [&](char *out, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_detokenizer_push(get(), token, out, cap, n, err);
        });
    }

    /// Writes what is left at the end of a sequence: an unfinished character as U+FFFD. Then the detokenizer is as
    /// new. The result as of push.
    Result<std::size_t> flush(Span<char> text) noexcept
    {
        std::size_t n = 0;
        cleave_error_t error;
        const cleave_status_t status = cleave_detokenizer_flush(get(), text.data(), text.size(), &n, &error);
        return length(status, error, n, text);
    }

    Result<void> flush(std::string &text)
    {
        return append(text, [&](char *out, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_detokenizer_flush(get(), out, cap, n, err);
        });
    }

private:
    explicit Detokenizer(cleave_detokenizer_t *detokenizer) noexcept : Owner(detokenizer) {}

    static Result<std::size_t> length(cleave_status_t status, const cleave_error_t &error, std::size_t n,
                                      Span<char> text) noexcept
    {
        const bool no_room = status == CLEAVE_ERR_INVALID_ARGUMENT && n > text.size();
        if (status != CLEAVE_OK && !no_room)
            return Error(error);
        return n;
    }

    template <class Call> static Result<void> append(std::string &text, Call call)
    {
        char piece[256];
        std::size_t n = 0;
        cleave_error_t error;
        cleave_status_t status = call(piece, sizeof piece, &n, &error);
        if (status == CLEAVE_OK) {
            text.append(piece, n);
        } else if (status == CLEAVE_ERR_INVALID_ARGUMENT && n > sizeof piece) {
            const std::size_t before = text.size();
            text.resize(before + n);
            status = call(&text[before], n, &n, &error);
            text.resize(status == CLEAVE_OK ? before + n : before);
        }
        return detail::result_of(status, error);
    }
};

} // namespace cleave

#endif
