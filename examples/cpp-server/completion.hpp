// Runs a client's request on this server's engine, from the body to the answer.
#pragma once

#include "engine_request.hpp"

#include <ctime>

class Completion {
public:
    /// `url` is this server's address for others. Throws ApiError.
    Completion(HttpServer &server, EngineHost &host, std::string url, const Call &call)
        : server_(server), host_(host), url_(std::move(url)), call_(call), events_(call), q_(parse_generation(call, host_.options.is_worker())),
          prompts_(tokenize(host_, q_)), sequences_(host_, prompts_.size() * q_.n)
    {
        const bool named = host_.options.is_worker() && !call.id.empty(); // only a front may choose the id
        id_ = named ? call.id : new_id(q_.chat);
        for (std::size_t i = 0; i < prompts_.size() * q_.n; i++) {
            auto detokenizer = cleave::Detokenizer::create(host_.model);
            if (!detokenizer)
                throw failed(detokenizer.error().message());
            choices_.push_back({std::move(*detokenizer), StopMatcher(q_.stop)});
        }
        if (!q_.body.contains("seed")) // a random seed, from which each choice derives its own
            q_.body["seed"] = random_number();
        q_.resume.resize(choices_.size());
    }

    bool streams() const { return q_.stream; }

    /// Submits the choices. With a ticket it submits only the first; the others will find its KV in the prefix cache.
    void submit()
    {
        if (q_.do_remote_prefill && !q_.ticket.empty() && prompts_.size() == 1 && submit_ticket())
            return;
        submit_choices(0);
        events_.trace("prefill", {{"worker", url_}});
    }

    std::string whole()
    {
        run();
        json out = frame();
        for (const Choice &choice : choices_)
            out["choices"].push_back(choice.whole);
        out["usage"] = usage();
        return dump(out);
    }

    void stream(const Write &write)
    {
        events_.begin(write);
        run();
        const auto patience = Clock::now() + std::chrono::seconds(1); // KvReady may come after the last token
        while (call_.traced && importing_ && Clock::now() < patience)
            if (const auto event = sequences_.next())
                take(*event);
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
        cleave::Detokenizer detokenizer;
        StopMatcher stops;
        std::vector<cleave::Event> token{}; // the sampled token, then its most likely alternatives
        std::size_t n_tokens = 0, characters = 0, n_chunks = 0;
        bool over = false; // ended for the client, although the engine may not know yet
        json whole{};      // all chunks combined, if the answer is not streamed
    };

    /// Continues from the KV of a prefill worker. Returns false if its ticket is refused.
    bool submit_ticket()
    {
        auto kv = sequences_.import_ticket(0, q_.ticket);
        if (!kv) {
            std::fprintf(stderr, "a ticket was refused: %s\n", kv.error().message());
            return false;
        }
        std::vector<cleave::Request> first(1); // the ticket has the sampling parameters, stops and limits
        first[0].kv = std::move(*kv);
        first[0].emit_pending = true; // the prefill worker sampled the first token and sent it to nobody
        first[0].recompute = true;    // if the KV does not arrive, it is computed here: same answer, later
        sequences_.submit(0, std::move(first));
        importing_ = true;
        n_submitted_ = 1;
        return true;
    }

    void submit_choices(std::size_t first)
    {
        std::vector<cleave::Request> requests;
        for (std::size_t i = first; i < choices_.size(); i++)
            requests.push_back(engine_request(q_, prompts_[i / q_.n], i % q_.n));
        sequences_.submit(first, std::move(requests));
        n_submitted_ = choices_.size();
    }

    /// Takes events until every choice has ended.
    void run()
    {
        for (std::size_t i = 0; q_.chat && i < choices_.size(); i++)
            emit(i, {{"role", "assistant"}, {"content", ""}});
        for (Clock::time_point looked = Clock::now(); n_finished_ < choices_.size();) {
            if (const auto event = sequences_.next())
                take(*event);
            if (Clock::now() - looked >= look_around) {
                server_.check(call_);
                looked = Clock::now();
            }
        }
    }

    void take(const cleave::Event &event)
    {
        const std::size_t i = sequences_.of(event);
        Choice &choice = choices_[i];
        switch (event.type()) {
        case cleave::EventType::Token:
            if (!std::exchange(has_token_, true)) {
                server_.count_first_token(call_);
                events_.trace("decode", {{"worker", url_}});
            }
            [[fallthrough]];
        case cleave::EventType::TopLogprob: // these events follow their token
            choice.token.push_back(event);
            if (choice.token.size() == 1 + static_cast<std::size_t>(top_logprobs(q_)))
                take_token(i, std::exchange(choice.token, {}));
            break;
        case cleave::EventType::Finished: finish(i, event); break;
        case cleave::EventType::KvReady:
            importing_ = false;
            events_.trace("kv_ready", {{"worker", url_}, {"ok", event.status() == cleave::Status::Ok}});
            if (n_submitted_ < choices_.size())
                submit_choices(n_submitted_);
            break;
        default: break;
        }
    }

    void take_token(std::size_t i, const std::vector<cleave::Event> &token)
    {
        Choice &choice = choices_[i];
        if (choice.over)
            return;
        std::string text;
        const auto pushed = choice.detokenizer.push(token[0].token(), text);
        if (!pushed)
            throw failed(pushed.error().message());
        const json logprobs = logprobs_of(token, choice.characters);
        choice.n_tokens++;
        choice.characters += characters(text);
        if (choice.n_tokens > q_.min_tokens)
            text = choice.stops.push(text);
        if (!text.empty() || !logprobs.is_null())
            emit(i, content(text), logprobs);
        if (choice.stops.found()) {
            sequences_.cancel(i);
            end(i, "stop");
        }
    }

    void finish(std::size_t i, const cleave::Event &event)
    {
        Choice &choice = choices_[i];
        n_finished_++;
        if (i % q_.n == 0) // the other choices reuse this one's KV
            cached_tokens_ += event.cached_tokens();
        if (choice.over)
            return;
        if (event.finish_reason() == cleave::FinishReason::Error)
            throw to_api_error(cleave::Error(event.status()));
        std::string rest;
        static_cast<void>(choice.detokenizer.flush(rest));
        rest = choice.stops.push(rest);
        rest += choice.stops.flush();
        if (!rest.empty())
            emit(i, content(rest));
        end(i, event.finish_reason() == cleave::FinishReason::Length ? "length" : "stop");
    }

    void end(std::size_t i, const char *finish_reason)
    {
        choices_[i].over = true;
        emit(i, q_.chat ? json::object() : json(""), nullptr, finish_reason);
    }

    json content(const std::string &text) const { return q_.chat ? json{{"content", text}} : json(text); }

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
            out["usage"] = counts(prompts_[i / q_.n].size(), choice.n_tokens);
        events_.write("data: " + dump(out) + "\n\n");
    }

    /// Combines a chunk with the earlier ones: texts and lists are concatenated, other values replaced.
    static void add(json &whole, const json &more)
    {
        if (whole.is_object() && more.is_object())
            for (const auto &[key, value] : more.items())
                add(whole[key], value);
        else if (whole.is_string() && more.is_string())
            whole.get_ref<std::string &>() += more.get_ref<const std::string &>();
        else if (whole.is_array() && more.is_array())
            whole.insert(whole.end(), more.begin(), more.end());
        else if (!more.is_null() || whole.is_null())
            whole = more;
    }

    json logprobs_of(const std::vector<cleave::Event> &token, std::size_t offset) const
    {
        if (q_.chat ? !q_.get("logprobs", false) : !q_.body.contains("logprobs"))
            return nullptr;
        json entries = json::array(), by_text = json::object();
        for (const cleave::Event &event : token) {
            const std::string text = host_.model.token_bytes(event.token()).value_or(std::string());
            const float logprob = std::max(event.logprob(), -9999.0f); // JSON has no infinity
            const std::vector<std::uint8_t> bytes(text.begin(), text.end());
            entries.push_back({{"token", text}, {"logprob", logprob}, {"bytes", bytes}});
            by_text[text] = logprob;
        }
        if (q_.chat) {
            json entry = entries[0];
            entries.erase(0);
            entry["top_logprobs"] = entries;
            return {{"content", json::array({entry})}};
        }
        return {{"tokens", json::array({entries[0]["token"]})},
                {"token_logprobs", json::array({entries[0]["logprob"]})},
                {"top_logprobs", json::array({by_text})},
                {"text_offset", json::array({offset})}};
    }

    json frame() const
    {
        const char *object = !q_.chat ? "text_completion" : q_.stream ? "chat.completion.chunk" : "chat.completion";
        return {{"id", id_},
                {"object", object},
                {"created", created_},
                {"model", host_.options.model_name},
                {"choices", json::array()}};
    }

    json usage() const
    {
        std::size_t prompt = 0, completion = 0;
        for (const Tokens &tokens : prompts_)
            prompt += tokens.size();
        for (const Choice &choice : choices_)
            completion += choice.n_tokens;
        json out = counts(prompt, completion);
        out["prompt_tokens_details"] = {{"cached_tokens", cached_tokens_}};
        return out;
    }
    static json counts(std::size_t prompt, std::size_t completion)
    {
        return {{"prompt_tokens", prompt}, {"completion_tokens", completion}, {"total_tokens", prompt + completion}};
    }

    HttpServer &server_;
    EngineHost &host_;
    std::string url_;
    Call call_;
    Events events_;
    Generation q_;
    std::string id_;
    std::time_t created_ = std::time(nullptr);
    std::vector<Tokens> prompts_;
    std::vector<Choice> choices_; // n for each prompt
    std::size_t n_submitted_ = 0, n_finished_ = 0, cached_tokens_ = 0;
    bool has_token_ = false, importing_ = false;
    Sequences sequences_;
};
