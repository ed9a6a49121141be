// Runs a front's request on a prefill engine, which computes the prompt for a decode worker.
#pragma once

#include "engine_request.hpp"

/// Answers with a ticket as soon as there is one, and with statistics once the prompt is computed. Throws ApiError.
inline void answer_prefill(HttpServer &server, EngineHost &host, const Call &call, httplib::Response &response)
{
    const Generation q = parse_generation(call, true);
    if (!q.do_remote_decode)
        throw invalid("kv_transfer_params", "a prefill worker answers fronts only");
    const auto prompts = tokenize(host, q);
    if (prompts.size() != 1)
        throw invalid("prompt", "a prefill worker takes one prompt at a time");

    std::vector<cleave::Request> request;
    request.push_back(engine_request(q, prompts[0], 0));
    request[0].stream_kv = true; // the ticket goes out before the prompt is computed
    const auto sequences = std::make_shared<Sequences>(host, 1);
    sequences->submit(0, std::move(request));
    const auto next = [&server, call, sequences] { // KvStreamStarted, or Finished
        for (;;) {
            server.check(call);
            const auto event = sequences->next();
            if (event && event->type() == cleave::EventType::Finished && event->kv() == 0)
                throw failed(std::string("the prompt was not computed: ") + to_string(event->status()));
            if (event && event->kv() != 0)
                return *event;
        }
    };
    const cleave::Event started = next();
    const auto ticket = host.cache.view(started.kv()).ticket();
    if (!ticket)
        throw to_api_error(ticket.error());
    const json params = {{"do_remote_prefill", true}, {"ticket", to_base64(*ticket)}};

    const auto run = [=, &server, &host, n_tokens = prompts[0].size()](const Write &write) {
        write(dump({{"kv_transfer_params", params}}) + "\n");
        cleave::Event last = started.type() == cleave::EventType::Finished ? started : next();
        cleave::Kv kv = host.cache.take_kv(last); // released here if the client is gone
        server.check(call);
        write(dump({{"prefilled", {{"prompt_tokens", n_tokens},
                                   {"cached_tokens", last.cached_tokens()},
                                   {"ms", ms_since(call.start)}}}}) +
              "\n");
        static_cast<void>(kv.take()); // the handle lives until it is fetched or its lease ends
    };
    stream(call, response, "application/x-ndjson", "", "\n", run);
}
