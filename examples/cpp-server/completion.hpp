// Answers a request of OpenAI's API from this server's engine.
#pragma once

#include "chunks.hpp"
#include "events.hpp"

#include <ctime>

class Completion {
public:
    /// `url` is this server's address for others. Throws ApiError.
    Completion(Service &service, EngineHost &host, std::string url, const Call &call, OpenAiRequest request)
        : service_(service), host_(host), url_(std::move(url)), call_(call), events_(call), q_(std::move(request))
    {
        if (!q_.body.contains("seed")) // a random seed, from which each choice derives its own
            q_.body["seed"] = random_number();
        Generation generation = to_generation(host_, q_);
        for (const cleave::Request &choice : generation.choices)
            choices_.push_back({choice.prompt.size()});
        q_.resume.resize(choices_.size());
        const bool named = host_.options.has_front() && !call.id.empty(); // only a front may choose the id
        id_ = named ? call.id : new_id(q_.chat);
        run_.emplace(host_, std::move(generation));
    }

    bool streams() const { return q_.stream; }

    void submit()
    {
        if (!run_->submit())
            events_.trace("prefill", {{"worker", url_}});
    }

    std::string whole()
    {
        take_all();
        json out = frame();
        for (const Choice &choice : choices_)
            out["choices"].push_back(choice.whole);
        out["usage"] = usage();
        return dump(out);
    }

    void stream(const Write &write)
    {
        events_.begin(write);
        take_all();
        const auto patience = Clock::now() + std::chrono::seconds(1); // the KV may be there after the last token
        while (call_.traced && run_->is_importing() && Clock::now() < patience)
            if (const auto piece = run_->next())
                take(*piece);
        events_.trace("done", {{"worker", url_}});
        if (q_.include_usage) {
            json out = frame();
            out["usage"] = usage();
            events_.write("data: " + dump(out) + "\n\n");
        }
        events_.write("data: [DONE]\n\n");
    }

private:
    struct Choice {
        std::size_t prompt_tokens;
        std::size_t n_tokens = 0, n_chunks = 0;
        json whole{}; // all chunks combined, if the answer is not streamed
    };

    /// Takes pieces until every choice has ended.
    void take_all()
    {
        for (std::size_t i = 0; q_.chat && i < choices_.size(); i++)
            emit(i, {{"role", "assistant"}, {"content", ""}});
        for (Clock::time_point looked = Clock::now(); !run_->has_ended();) {
            if (const auto piece = run_->next())
                take(*piece);
            if (Clock::now() - looked >= look_around) {
                service_.check(call_);
                looked = Clock::now();
            }
        }
    }

    void take(const Piece &piece)
    {
        switch (piece.kind) {
        case Piece::Text: {
            if (!std::exchange(has_token_, true)) {
                service_.count_first_token(call_);
                events_.trace("decode", {{"worker", url_}});
            }
            choices_[piece.choice].n_tokens += piece.token.empty() ? 0 : 1;
            const json logprobs = logprobs_of(host_, q_, piece);
            if (!piece.text.empty() || !logprobs.is_null())
                emit(piece.choice, q_.chat ? json{{"content", piece.text}} : json(piece.text), logprobs);
            break;
        }
        case Piece::End: emit(piece.choice, q_.chat ? json::object() : json(""), nullptr, piece.finish_reason); break;
        case Piece::Kv: events_.trace("kv_ready", {{"worker", url_}, {"ok", piece.arrived}}); break;
        }
    }

    /// Adds a chunk of a choice to the whole answer, or sends it unless a worker that is gone has already sent it.
    void emit(std::size_t i, const json &content, const json &logprobs = nullptr, const json &finish_reason = nullptr)
    {
        Choice &choice = choices_[i];
        json chunk = {{"index", i}, {"logprobs", logprobs}, {"finish_reason", finish_reason}};
        chunk[!q_.chat ? "text" : q_.stream ? "delta" : "message"] = content;
        if (!q_.stream)
            return add(choice.whole, chunk);
        if (choice.n_chunks++ < q_.resume[i])
            return;
        json out = frame();
        out["choices"].push_back(chunk);
        if (q_.usage_in_chunks)
            out["usage"] = usage_of(choice.prompt_tokens, choice.n_tokens);
        events_.write("data: " + dump(out) + "\n\n");
    }

    json frame() const { return frame_of(q_.chat, q_.stream, id_, host_.options.model_name, created_); }

    json usage() const
    {
        std::size_t prompt = 0, completion = 0, cached = 0;
        for (std::size_t i = 0; i < choices_.size(); i++) {
            completion += choices_[i].n_tokens;
            if (i % q_.n == 0) { // the other choices reuse this one's KV
                prompt += choices_[i].prompt_tokens;
                cached += run_->cached_tokens(i);
            }
        }
        json out = usage_of(prompt, completion);
        out["prompt_tokens_details"] = {{"cached_tokens", cached}};
        return out;
    }

    Service &service_;
    EngineHost &host_;
    std::string url_;
    Call call_;
    Events events_;
    OpenAiRequest q_;
    std::string id_;
    std::time_t created_ = std::time(nullptr);
    std::vector<Choice> choices_; // n for each prompt
    bool has_token_ = false;
    std::optional<Run> run_;
};
