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
        const bool taken = !ticket_.bytes.empty() && submit_ticket();
        if (!taken)
            submit_from(0);
        return taken;
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
    bool is_importing() const { return import_ != Import::None; }
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

    /// Continues from the KV of a prefill worker. Returns false if the prompt is to be computed instead, now. The ticket has
    /// sampling parameters and limits too, but those of the request count: routers ask the prefill worker for one token.
    bool submit_ticket()
    {
        auto kv = sequences_.import_ticket(0, ticket_.bytes);
        if (!kv)
            return do_without(lost(kv.error()));
        const auto tokens = kv->tokens();
        if (!tokens || !ticket_.continues(*tokens, requests_[0].prompt)) {
            sequences_.hold(std::move(*kv));
            return do_without(invalid(nullptr, "the ticket is of another prompt"));
        }
        if (requests_[0].min_new_tokens > 0 && !ticket_.streaming) {
            // The prefill worker has sampled a first token that may end the generation. Here it must not, so the prompt
            // is computed once the KV is here, except for the part in the prefix cache.
            sequences_.hold(std::move(*kv));
            import_ = Import::Recompute;
            return true;
        }
        std::vector<cleave::Request> first;
        first.push_back(std::move(requests_[0]));
        first[0].prompt.clear();
        first[0].kv = std::move(*kv);
        first[0].override_sampling = true;
        first[0].emit_pending = true; // the prefill worker sampled the first token and sent it to nobody
        first[0].recompute = ticket_.or_compute;
        sequences_.submit(0, std::move(first));
        import_ = Import::Continue;
        return true;
    }

    /// Throws the error of a ticket, unless the prompt may be computed here. Returns false.
    bool do_without(const ApiError &error) const
    {
        if (!ticket_.or_compute)
            throw error;
        std::fprintf(stderr, "the prompt of a ticket is computed here: %s\n", error.what());
        return false;
    }

    /// Submits the requests from `first` on, with which none is left.
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
        case cleave::EventType::KvReady: take_kv(i, event.status()); break;
        default: break;
        }
    }

    /// Takes the news that the KV of a ticket is here, or will not come.
    void take_kv(std::size_t i, cleave::Status status)
    {
        const Import import = std::exchange(import_, Import::None);
        if (import == Import::None)
            return; // the prompt of a refused ticket is computed already
        Piece piece{Piece::Kv, i};
        piece.arrived = status == cleave::Status::Ok;
        if (!piece.arrived && !ticket_.or_compute)
            throw lost(cleave::Error(status));
        pieces_.push_back(std::move(piece));
        submit_from(import == Import::Recompute ? 0 : 1);
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
        if (event.finish_reason() == cleave::FinishReason::Error) {
            const cleave::Error error(event.status());
            throw import_ == Import::Continue && !ticket_.or_compute ? lost(error) : to_api_error(error);
        }
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
    Ticket ticket_;
    std::vector<Choice> choices_;
    std::deque<Piece> pieces_;
    std::size_t n_finished_ = 0;
    enum class Import {
        None,
        Continue,  // the first choice waits for the KV; the others are submitted once it is here
        Recompute, // all choices are submitted once it is here
    } import_ = Import::None;
    Sequences sequences_;
};
