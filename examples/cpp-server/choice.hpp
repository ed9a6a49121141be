// Text of one choice of a generation. No protocol is known here.
#pragma once

#include "generation.hpp"
#include "text.hpp"

/// A step of a generation.
struct Piece {
    enum Kind {
        Text, // a token, or text that was held back until the end
        End,  // the last piece of a choice
        Kv,   // the KV of a ticket has arrived, or has failed to
    } kind;
    std::size_t choice;
    std::string text{};                 // Text: may be empty, for a token that gives none yet
    std::vector<cleave::Event> token{}; // Text: the sampled token, then its most likely alternatives; empty without a token
    std::size_t offset = 0;             // Text: number of characters before this token
    bool held = false;                  // Text: some text waits for what follows, because it may begin a stop string
    const char *finish_reason = "";     // End: "stop" or "length"
    std::string stop_string{};          // End: the stop string that has ended the text; empty if none has
    std::int32_t stop_token = -1;       // End: the stop token or EOS that has ended the choice, or -1
    std::size_t cached_tokens = 0;      // End: tokens of the prompt that the prefix cache had
    cleave::Kv kv{};                    // End: the handle, if the request has keep_kv
    bool arrived = false;               // Kv
};

/// Turns the tokens of one choice into text, and finds where stop strings end it.
class Choice {
public:
    /// Throws ApiError.
    Choice(const cleave::Model &model, const Generation &generation, const cleave::Request &request)
        : priority(request.priority), keeps_kv(request.keep_kv), stops_(generation.stop, generation.keep_stop),
          stop_tokens_(generation.keep_stop ? Tokens() : request.stop_tokens),
          n_events_(1 + static_cast<std::size_t>(request.top_logprobs)), min_tokens_(request.min_new_tokens)
    {
        auto detokenizer = cleave::Detokenizer::create(model);
        if (!detokenizer)
            throw failed(detokenizer.error().message());
        detokenizer_ = std::move(*detokenizer);
        const Tokens &before = request.prompt;
        const std::size_t n = generation.continues_prompt ? std::min(before.size(), priming_tokens) : 0;
        for (auto token = before.end() - static_cast<std::ptrdiff_t>(n); token != before.end(); ++token)
            detokenize(*token);
    }

    /// Takes an event of a token. Returns a piece once all events of the token are there. Throws ApiError.
    std::optional<Piece> take(const cleave::Event &event)
    {
        events_.push_back(event);
        if (events_.size() < n_events_)
            return std::nullopt;
        Piece piece{Piece::Text, 0};
        piece.token = std::exchange(events_, {});
        last_ = piece.token[0].token();
        piece.offset = characters_;
        n_tokens_++;
        const bool ends = n_tokens_ >= min_tokens_ && std::count(stop_tokens_.begin(), stop_tokens_.end(), last_) > 0;
        if (!ends) { // otherwise the token is a stop token, whose text is not part of the answer
            piece.text = detokenize(last_);
            characters_ += characters(piece.text);
            if (n_tokens_ > min_tokens_)
                piece.text = stops_.push(piece.text);
        }
        piece.held = stops_.holds();
        return piece;
    }

    /// The text that is left at the end. An unfinished character becomes U+FFFD.
    std::string rest()
    {
        std::string text;
        static_cast<void>(detokenizer_.flush(text));
        text = stops_.push(text);
        return text + stops_.flush();
    }

    /// The last piece of the choice, which the engine has ended like this.
    Piece end(const cleave::Event &finished) const
    {
        Piece piece{Piece::End, 0};
        const bool stopped = has_stopped() || finished.finish_reason() != cleave::FinishReason::Length;
        piece.finish_reason = stopped ? "stop" : "length";
        piece.stop_string = stops_.stop();
        if (stopped && !has_stopped())
            piece.stop_token = last_;
        piece.cached_tokens = finished.cached_tokens();
        return piece;
    }

    /// Whether a stop string has ended the text. The engine may not know yet.
    bool has_stopped() const { return stops_.found(); }

    const std::uint32_t priority;
    const bool keeps_kv;

private:
    /// A character has at most four tokens, and a tokenizer that begins a text without a space needs one more.
    static constexpr std::size_t priming_tokens = 8;

    std::string detokenize(std::int32_t token)
    {
        std::string text;
        const auto pushed = detokenizer_.push(token, text);
        if (!pushed)
            throw failed(pushed.error().message());
        return text;
    }

    cleave::Detokenizer detokenizer_;
    StopMatcher stops_;
    const Tokens stop_tokens_;     // tokens whose text is left out
    const std::size_t n_events_;   // for each token
    const std::size_t min_tokens_; // stop strings do not count before
    std::vector<cleave::Event> events_; // of a token that is not whole yet
    std::size_t n_tokens_ = 0, characters_ = 0;
    std::int32_t last_ = -1;
};
