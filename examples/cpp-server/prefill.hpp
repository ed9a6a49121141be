// Computes a prompt on a prefill engine, for another worker to decode. No protocol is known here.
#pragma once

#include "sequences.hpp"
#include "service.hpp"

class Prefill {
public:
    /// Submits the prompt. Throws ApiError.
    Prefill(const Service &service, EngineHost &host, const Call &call, cleave::Request prompt)
        : service_(service), host_(host), call_(call), prompt_tokens_(prompt.prompt.size()), sequences_(host, 1)
    {
        std::vector<cleave::Request> requests;
        requests.push_back(std::move(prompt));
        requests[0].stream_kv = true; // the ticket goes out before the prompt is computed
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
                throw failed(std::string("the prompt was not computed: ") + to_string(event->status()));
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
