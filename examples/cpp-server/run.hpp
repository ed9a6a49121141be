// Runs a generation on this server's engine and gives its text piece by piece. No protocol is known here.
#pragma once

#include "sequences.hpp"
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
    const char *finish_reason = "";     // End: "stop" or "length"
    bool arrived = false;               // Kv
};

class Run {
public:
    /// Throws ApiError.
    Run(EngineHost &host, Generation generation)
        : host_(host), requests_(std::move(generation.choices)), ticket_(std::move(generation.ticket)), sequences_(host, requests_.size())
    {
        for (const cleave::Request &request : requests_) {
            auto detokenizer = cleave::Detokenizer::create(host_.model);
            if (!detokenizer)
                throw failed(detokenizer.error().message());
            const auto n_events = 1 + static_cast<std::size_t>(request.top_logprobs);
            choices_.push_back({std::move(*detokenizer), StopMatcher(generation.stop), n_events, request.min_new_tokens});
        }
    }

    /// Submits the choices. With a ticket it submits only the first; the others will find its KV in the prefix cache.
    /// Returns whether the ticket was taken. Throws ApiError.
    bool submit()
    {
        importing_ = !ticket_.empty() && submit_ticket();
        if (!importing_)
            submit_from(0);
        return importing_;
    }

    /// The next piece, or none if there is none within `look_around`. Throws ApiError if the engine fails.
    std::optional<Piece> next()
    {
        if (pieces_.empty())
            if (const auto event = sequences_.next())
                take(*event);
        if (pieces_.empty())
            return std::nullopt;
        Piece piece = std::move(pieces_.front());
        pieces_.pop_front();
        return piece;
    }

    /// Whether every choice has ended. The piece about a ticket's KV may still come.
    bool has_ended() const { return n_finished_ == choices_.size() && pieces_.empty(); }
    bool is_importing() const { return importing_; }
    /// Number of tokens of a choice's prompt that the prefix cache had. Known at the end.
    std::size_t cached_tokens(std::size_t choice) const { return choices_[choice].cached_tokens; }

private:
    struct Choice {
        cleave::Detokenizer detokenizer;
        StopMatcher stops;
        std::size_t n_events;   // for each token
        std::size_t min_tokens; // stop strings do not count before
        std::vector<cleave::Event> token{};
        std::size_t n_tokens = 0, characters = 0, cached_tokens = 0;
        bool over = false; // ended for the client, although the engine may not know yet
    };

    /// Continues from the KV of a prefill worker. Returns false if its ticket is refused.
    bool submit_ticket()
    {
        auto kv = sequences_.import_ticket(0, ticket_);
        if (!kv) {
            std::fprintf(stderr, "a ticket was refused: %s\n", kv.error().message());
            return false;
        }
        std::vector<cleave::Request> first(1); // the ticket has the sampling parameters, stops and limits
        first[0].kv = std::move(*kv);
        first[0].emit_pending = true; // the prefill worker sampled the first token and sent it to nobody
        first[0].recompute = true;    // if the KV does not arrive, it is computed here: same answer, later
        sequences_.submit(0, std::move(first));
        return true;
    }

    void submit_from(std::size_t first)
    {
        requests_.erase(requests_.begin(), requests_.begin() + static_cast<std::ptrdiff_t>(first));
        if (!requests_.empty())
            sequences_.submit(first, std::move(requests_));
        requests_.clear();
    }

    void take(const cleave::Event &event)
    {
        const std::size_t i = sequences_.of(event);
        Choice &choice = choices_[i];
        switch (event.type()) {
        case cleave::EventType::Token:
        case cleave::EventType::TopLogprob: // these events follow their token
            choice.token.push_back(event);
            if (choice.token.size() == choice.n_events)
                take_token(i, std::exchange(choice.token, {}));
            break;
        case cleave::EventType::Finished: finish(i, event); break;
        case cleave::EventType::KvReady: {
            importing_ = false;
            Piece piece{Piece::Kv, i};
            piece.arrived = event.status() == cleave::Status::Ok;
            pieces_.push_back(std::move(piece));
            submit_from(1);
            break;
        }
        default: break;
        }
    }

    void take_token(std::size_t i, std::vector<cleave::Event> token)
    {
        Choice &choice = choices_[i];
        if (choice.over)
            return;
        Piece piece{Piece::Text, i};
        const auto pushed = choice.detokenizer.push(token[0].token(), piece.text);
        if (!pushed)
            throw failed(pushed.error().message());
        piece.token = std::move(token);
        piece.offset = choice.characters;
        choice.characters += characters(piece.text);
        if (++choice.n_tokens > choice.min_tokens)
            piece.text = choice.stops.push(piece.text);
        pieces_.push_back(std::move(piece));
        if (choice.stops.found()) {
            sequences_.cancel(i);
            end(i, "stop");
        }
    }

    void finish(std::size_t i, const cleave::Event &event)
    {
        Choice &choice = choices_[i];
        n_finished_++;
        choice.cached_tokens = event.cached_tokens();
        if (choice.over)
            return;
        if (event.finish_reason() == cleave::FinishReason::Error)
            throw to_api_error(cleave::Error(event.status()));
        Piece rest{Piece::Text, i};
        static_cast<void>(choice.detokenizer.flush(rest.text));
        rest.text = choice.stops.push(rest.text);
        rest.text += choice.stops.flush();
        if (!rest.text.empty())
            pieces_.push_back(std::move(rest));
        end(i, event.finish_reason() == cleave::FinishReason::Length ? "length" : "stop");
    }

    void end(std::size_t i, const char *finish_reason)
    {
        choices_[i].over = true;
        Piece piece{Piece::End, i};
        piece.finish_reason = finish_reason;
        pieces_.push_back(std::move(piece));
    }

    EngineHost &host_;
    std::vector<cleave::Request> requests_; // not submitted yet
    std::vector<std::uint8_t> ticket_;
    std::vector<Choice> choices_;
    std::deque<Piece> pieces_;
    std::size_t n_finished_ = 0;
    bool importing_ = false;
    Sequences sequences_;
};
