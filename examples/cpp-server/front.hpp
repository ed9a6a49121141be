// A front has no engine: it passes each request to a prefill worker and a decode worker. See "Workers" in ../README.md.
#pragma once

#include "auth.hpp"
#include "events.hpp"
#include "openai.hpp"
#include "registry.hpp"
#include "service.hpp"
#include "upstream.hpp"

/// A request that the front passes through its workers.
class Passage {
public:
    Passage(Service &service, Registry &workers, const Authenticator &authenticator, const Call &call, OpenAiRequest request)
        : service_(service), workers_(workers), authenticator_(authenticator), call_(call), events_(call), q_(std::move(request))
    {
        id_ = new_id(q_.chat);
        if (!q_.body.contains("seed")) // every worker then generates the same answer
            q_.body["seed"] = random_number() >> 11;
        sent_.resize(q_.n_prompts() * q_.n);
    }

    bool streams() const { return q_.stream; }

    /// Passes the request to its workers, and waits until a decode worker begins to answer. Throws ApiError.
    void begin()
    {
        decode_ = workers_.take_decode(q_.model);
        if (!decode_)
            throw unavailable("there is no decode worker");
        if (q_.n_prompts() == 1)
            prefill_ = workers_.take_prefill(*decode_);
        if (prefill_)
            get_ticket();
        ask_decode();
        open();
    }

    std::string whole()
    {
        for (;;) {
            const Part part = next();
            if (part.kind == Part::Text)
                return part.text;
            move(part);
            open();
        }
    }

    void stream(const Write &write)
    {
        events_.begin(write);
        for (;;) {
            const Part part = next();
            if (part.kind == Part::Text && part.text == "data: [DONE]")
                return write(part.text + "\n\n");
            if (part.kind == Part::Text && pass_on(part.text))
                continue;
            move(part);
            open();
        }
    }

private:
    std::unique_ptr<Upstream> ask(const Lease &worker, const json &params, const char *delimiter) const
    {
        json body = q_.body;
        if (!params.is_null())
            body["kv_transfer_params"] = params;
        httplib::Request request;
        request.method = "POST";
        request.path = q_.path();
        request.body = body.dump();
        request.headers = {{"Content-Type", "application/json"},
                           {"X-Request-Id", id_},
                           {"Authorization", authenticator_.sign(worker.url, q_.path(), request.body)}};
        if (call_.traced)
            request.headers.emplace("X-Cleave-Trace", "1");
        return std::make_unique<Upstream>(worker.url, std::move(request), delimiter);
    }

    /// Sends the prompt to the prefill worker and waits for the ticket, which arrives before the prompt is computed.
    /// The rest of the answer is read while the decode worker runs.
    void get_ticket()
    {
        events_.trace("prefill", {{"worker", prefill_->url}});
        from_prefill_ = ask(*prefill_, {{"do_remote_decode", true}}, "\n");
        while (prefill_ && kv_transfer_params_.is_null()) {
            service_.check(call_);
            read_prefill(look_around);
            if (prefill_ && !prefill_->worker->up())
                prefill_.reset();
        }
        if (!prefill_) // without a ticket the decode worker computes the prompt
            from_prefill_.reset();
    }

    /// Handles the prefill worker's data. Releases `prefill_` once nothing more can arrive.
    void read_prefill(std::chrono::milliseconds patience)
    {
        while (prefill_) {
            const auto part = from_prefill_->parts.take(std::exchange(patience, patience.zero()));
            if (!part)
                return;
            if (part->kind == Part::Head && part->status == 200)
                continue;
            const json line = json::parse(part->text, nullptr, false); // discarded if malformed: contains nothing then
            if (line.contains("kv_transfer_params")) {
                kv_transfer_params_ = line["kv_transfer_params"];
                return;
            }
            if (line.contains("prefilled")) {
                json done = line["prefilled"];
                done["worker"] = prefill_->url;
                done["prefill_ms"] = done["ms"];
                events_.trace_at("prefilled", ms_since(call_.start, part->at), done);
            }
            if (part->kind == Part::Broken)
                prefill_->worker->broke();
            prefill_.reset();
        }
    }

    void ask_decode()
    {
        json params = kv_transfer_params_;
        if (!params.is_null())
            events_.trace("handoff",
                          {{"worker", decode_->url}, {"ticket_bytes", params.value("ticket", "").size() / 4 * 3}});
        if (moves_ > 0)
            params["resume"] = sent_;
        decode_asked_ms_ = ms_since(call_.start);
        from_decode_ = ask(*decode_, params, "\n\n");
    }

    /// Returns the next part from the decode worker, or Broken if the worker is dead.
    Part next()
    {
        for (;;) {
            service_.check(call_);
            auto part = from_decode_->parts.take(look_around);
            read_prefill(std::chrono::milliseconds(0));
            if (part)
                return std::move(*part);
            if (!decode_->worker->up())
                return {Part::Broken};
        }
    }

    /// Waits until a decode worker begins to answer. If it refuses, throws its ApiError.
    void open()
    {
        for (;;) {
            const Part part = next();
            if (part.kind == Part::Head && part.status == 200)
                return;
            if (part.kind == Part::Head && part.status != 503)
                throw ApiError(part.status, json::parse(next().text).at("error"));
            move(part); // also from a worker that is shutting down
        }
    }

    /// Switches to another decode worker after this one sent `last`. Throws ApiError if there is none.
    void move(const Part &last)
    {
        if (last.kind == Part::Broken)
            decode_->worker->broke();
        const std::string from = decode_->url;
        auto next = moves_ < 2 ? workers_.take_decode(q_.model, from) : nullptr;
        if (!next)
            throw unavailable("the decode worker is gone, and there is no other");
        from_decode_.reset();
        decode_ = std::move(next);
        moves_++;
        service_.metrics.count("cleave_front_moved_total");
        events_.trace("moved", {{"worker", decode_->url}, {"from", from}});
        ask_decode();
    }

    /// Passes on an event of the decode worker's stream. Returns false if the event says that the worker is shutting
    /// down.
    bool pass_on(const std::string &event)
    {
        const json data = json::parse(event.substr(event.find('{')));
        if (event.rfind("event: trace\n", 0) == 0) { // its times count from the worker's receipt of the request
            events_.trace_at(data.at("phase"), data.at("ms").get<double>() + decode_asked_ms_, data);
            return true;
        }
        if (data.contains("error")) {
            if (data["error"].value("type", "") == "service_unavailable")
                return false;
            throw ApiError(500, data["error"]);
        }
        for (const json &choice : data.at("choices")) {
            sent_.at(choice.at("index"))++;
            const std::string text = q_.chat ? choice.at("delta").value("content", "") : choice.value("text", "");
            if (text != "" && !std::exchange(has_token_, true))
                service_.count_first_token(call_);
        }
        events_.write(event + "\n\n");
        return true;
    }

    Service &service_;
    Registry &workers_;
    const Authenticator &authenticator_;
    Call call_;
    Events events_;
    OpenAiRequest q_;
    std::string id_;
    std::unique_ptr<Lease> prefill_, decode_;
    std::unique_ptr<Upstream> from_prefill_, from_decode_;
    json kv_transfer_params_; // the ticket; null without one
    double decode_asked_ms_ = 0;
    int moves_ = 0;
    std::vector<std::size_t> sent_; // number of chunks of each choice that the client has
    bool has_token_ = false;
};
