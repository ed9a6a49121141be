// Computes a prompt for another worker to decode. No protocol is known here.
#pragma once

#include "sequences.hpp"
#include "service.hpp"

/// The error for a prompt that has ended without KV.
inline ApiError not_prefilled(const cleave::Event &finished)
{
    if (finished.finish_reason() == cleave::FinishReason::Error)
        return to_api_error(cleave::Error(finished.status()));
    return invalid(nullptr, "the context has no room for another token");
}

/// A prompt of which the ticket goes out before it is computed. The engine's role must be prefill.
class StreamingPrefill {
public:
    /// Submits the prompt. Throws ApiError.
    StreamingPrefill(const Service &service, EngineHost &host, const Call &call, cleave::Request prompt)
        : service_(service), host_(host), call_(call), prompt_tokens_(prompt.prompt.size()), sequences_(host, 1)
    {
        std::vector<cleave::Request> requests;
        requests.push_back(std::move(prompt));
        requests[0].stream_kv = true;
        sequences_.submit(0, std::move(requests));
    }

    /// Waits until the engine begins with the prompt. Throws ApiError and ClientGone.
    std::vector<std::uint8_t> ticket()
    {
        last_ = next();
        const auto ticket = host_.cache.view(last_.kv()).ticket();
        if (!ticket)
            throw to_api_error(ticket.error());
        return *ticket;
    }

    /// Waits, after `ticket`, until the prompt is computed. The caller lets go of the handle (Kv::take), which then lives
    /// until it is fetched or its lease ends; otherwise the KV is released. Throws ApiError and ClientGone.
    cleave::Kv finish()
    {
        if (last_.type() != cleave::EventType::Finished)
            last_ = next();
        cleave::Kv kv = host_.cache.take_kv(last_);
        service_.check(call_);
        return kv;
    }

    std::size_t prompt_tokens() const { return prompt_tokens_; }
    /// Number of the prompt's tokens that the prefix cache had. Known after `finish`.
    std::size_t cached_tokens() const { return last_.cached_tokens(); }

private:
    /// Waits for KvStreamStarted or Finished.
    cleave::Event next()
    {
        for (;;) {
            service_.check(call_);
            const auto event = sequences_.next();
            if (event && event->type() == cleave::EventType::Finished && event->kv() == 0)
                throw not_prefilled(*event);
            if (event && event->kv() != 0)
                return *event;
        }
    }

    const Service &service_;
    EngineHost &host_;
    const Call call_;
    const std::size_t prompt_tokens_;
    cleave::Event last_;
    Sequences sequences_;
};

/// A computed prompt. Whoever gives the ticket away lets go of the handle (Kv::take).
struct Prefilled {
    cleave::Kv kv;
    std::vector<std::uint8_t> ticket;
    std::vector<cleave::Event> token; // the first one, then its most likely alternatives
    std::size_t cached_tokens;        // tokens of the prompt that the prefix cache had
};

/// Computes a prompt and its first token, on an engine of any role. What the token may be, and whether it ends the
/// generation, is for the decode worker's request to say: routers ask the prefill worker for one token. Throws ApiError and
/// ClientGone.
inline Prefilled prefill_whole(const Service &service, EngineHost &host, const Call &call, cleave::Request prompt)
{
    constexpr std::int32_t first_token_logprobs = 20; // go with the ticket, because the decode worker's client may want them
    prompt.max_new_tokens = 1;
    prompt.min_new_tokens = 0;
    prompt.keep_kv = true;
    prompt.token_logprobs = true;
    const auto vocabulary = static_cast<std::int32_t>(host.about.vocab_size);
    prompt.top_logprobs = std::max(prompt.top_logprobs, std::min(first_token_logprobs, vocabulary));
    std::vector<cleave::Request> requests;
    requests.push_back(std::move(prompt));
    Sequences sequences(host, 1);
    sequences.submit(0, std::move(requests));
    Prefilled out{};
    for (;;) {
        service.check(call);
        auto event = sequences.next();
        if (!event)
            continue;
        if (event->type() != cleave::EventType::Finished) {
            out.token.push_back(*event);
            continue;
        }
        out.kv = host.cache.take_kv(*event);
        if (!out.kv)
            throw not_prefilled(*event);
        out.cached_tokens = event->cached_tokens();
        auto ticket = out.kv.ticket();
        if (!ticket)
            throw to_api_error(ticket.error());
        out.ticket = std::move(*ticket);
        service.check(call); // nobody will fetch what this client asked for
        return out;
    }
}
