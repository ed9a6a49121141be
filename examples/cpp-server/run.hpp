// Runs a generation on this server's engine and gives its text piece by piece. No protocol is known here.
#pragma once

#include "choice.hpp"
#include "sequences.hpp"

class Run {
public:
    /// `arrived` is called by another thread whenever `next` may have more, for users that do not wait in it. It must not
    /// block. Throws ApiError.
    Run(EngineHost &host, Generation generation, std::function<void()> arrived = {})
        : host_(host), ticket_(std::move(generation.ticket)), sequences_(host, generation.choices.size(), std::move(arrived))
    {
        for (const cleave::Request &request : generation.choices)
            choices_.emplace_back(host_.model, generation, request);
        cached_.resize(choices_.size());
        requests_ = std::move(generation.choices);
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

    /// The next piece, or none if no event comes within `patience`. Throws ApiError if the engine fails.
    std::optional<Piece> next(std::chrono::milliseconds patience = look_around)
    {
        while (pieces_.empty() || must_have_kv()) {
            const auto event = sequences_.next(patience);
            if (!event)
                return std::nullopt;
            take(*event);
        }
        Piece piece = std::move(pieces_.front());
        pieces_.pop_front();
        return piece;
    }

    /// Whether every choice has ended. The piece about a ticket's KV may still come.
    bool has_ended() const { return n_finished_ == choices_.size() && pieces_.empty(); }
    bool is_importing() const { return import_ != Import::None; }
    /// Number of tokens of a choice's prompt that the prefix cache had. Known at the end.
    std::size_t cached_tokens(std::size_t choice) const { return cached_[choice]; }

private:
    /// Whether an answer without the KV of the ticket would be an error: then the answer begins once it is here.
    bool must_have_kv() const { return import_ == Import::Continue && !ticket_.or_compute; }

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
        try {
            sequences_.submit(0, std::move(first));
        } catch (const ApiError &error) {
            throw error.status == 500 ? lost(error.what()) : error; // the import has failed meanwhile
        }
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

    void take(cleave::Event event)
    {
        const std::size_t i = sequences_.of(event);
        switch (event.type()) {
        case cleave::EventType::Token:
        case cleave::EventType::TopLogprob: take_token(i, event); break; // these events follow their token
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

    void take_token(std::size_t i, const cleave::Event &event)
    {
        Choice &choice = choices_[i];
        if (choice.has_stopped())
            return; // the engine does not know yet
        if (auto piece = choice.take(event))
            put(i, std::move(*piece));
        if (choice.has_stopped())
            sequences_.cancel(i); // the last event still reports the tokens found in the prefix cache
    }

    void finish(std::size_t i, cleave::Event &event)
    {
        Choice &choice = choices_[i];
        cleave::Kv kv = host_.cache.take_kv(event); // released here unless somebody wants it
        if (event.finish_reason() == cleave::FinishReason::Prefilled && !choice.has_stopped() && !choice.keeps_kv)
            return proceed(i, std::move(kv));
        n_finished_++;
        cached_[i] = event.cached_tokens();
        const bool cancelled = choice.has_stopped() && event.status() == cleave::Status::Cancelled;
        if (event.finish_reason() == cleave::FinishReason::Error && !cancelled) {
            const cleave::Error error(event.status());
            throw must_have_kv() ? lost(error) : to_api_error(error);
        }
        if (!choice.has_stopped()) {
            Piece rest{Piece::Text, i};
            rest.text = choice.rest();
            if (!rest.text.empty())
                pieces_.push_back(std::move(rest));
        }
        Piece end = choice.end(event);
        if (choice.keeps_kv)
            end.kv = std::move(kv);
        put(i, std::move(end));
    }

    /// Continues a choice that was accepted while the engine's role was prefill, token by token until the role changes.
    void proceed(std::size_t i, cleave::Kv kv)
    {
        std::vector<cleave::Request> next(1); // the handle has the parameters
        next[0].kv = std::move(kv);
        next[0].priority = choices_[i].priority;
        sequences_.submit(i, std::move(next));
    }

    void put(std::size_t i, Piece piece)
    {
        piece.choice = i;
        pieces_.push_back(std::move(piece));
    }

    EngineHost &host_;
    std::vector<cleave::Request> requests_; // not submitted yet
    Ticket ticket_;
    std::vector<Choice> choices_;
    std::deque<Piece> pieces_;
    std::vector<std::size_t> cached_; // prompt tokens that the prefix cache had, by choice
    std::size_t n_finished_ = 0;
    enum class Import {
        None,
        Continue,  // the first choice waits for the KV; the others are submitted once it is here
        Recompute, // all choices are submitted once it is here
    } import_ = Import::None;
    Sequences sequences_;
};
