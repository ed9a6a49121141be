// A prefill worker's answers. See "Workers" in ../README.md.
#pragma once

#include "answer.hpp"
#include "chunks.hpp"
#include "prefill.hpp"

inline json transfer_params(const std::vector<std::uint8_t> &ticket)
{
    return {{"do_remote_prefill", true}, {"ticket", to_base64(ticket)}};
}

/// Answers a front with a ticket as soon as there is one, and with statistics once the prompt is computed. Throws ApiError.
inline void stream_prefill(Service &service, EngineHost &host, const Call &call, cleave::Request request, httplib::Response &response)
{
    const auto prefill = std::make_shared<StreamingPrefill>(service, host, call, std::move(request));
    const json params = transfer_params(prefill->ticket());
    const auto run = [=](const Write &write) {
        write(dump({{"kv_transfer_params", params}}) + "\n");
        cleave::Kv kv = prefill->finish(); // released here if the client is gone
        write(dump({{"prefilled", {{"prompt_tokens", prefill->prompt_tokens()},
                                   {"cached_tokens", prefill->cached_tokens()},
                                   {"ms", ms_since(call.start)}}}}) +
              "\n");
        static_cast<void>(kv.take());
    };
    stream(response, "application/x-ndjson", "", "\n", run);
}

/// Answers a router that speaks vLLM's protocol once the prompt is computed, so that it knows how busy this worker is. With
/// several prompts there is no ticket, and the decode worker computes them. Throws ApiError and ClientGone.
inline void send_prefill(Service &service, EngineHost &host, const Call &call, const OpenAiRequest &q,
                         const std::vector<Tokens> &prompts, httplib::Response &response)
{
    json out = frame_of(q.chat, q.stream, new_id(q.chat), host.options.model_name, std::time(nullptr));
    json choice = {{"index", 0}, {"logprobs", nullptr}, {"finish_reason", "length"}};
    choice[!q.chat ? "text" : q.stream ? "delta" : "message"] = q.chat ? json{{"role", "assistant"}, {"content", ""}} : json("");
    out["choices"].push_back(choice);
    out["kv_transfer_params"] = nullptr;
    if (prompts.size() == 1) {
        Prefilled prefilled = prefill_whole(service, host, call, engine_request(q, prompts[0], 0));
        out["usage"] = usage_of(prompts[0].size(), 1);
        out["kv_transfer_params"] = transfer_params(prefilled.ticket);
        static_cast<void>(prefilled.kv.take());
    }
    send(call, response, dump(out));
}

/// Computes a prompt for a decode worker, which fetches the KV itself with the ticket. Throws ApiError and ClientGone.
inline void answer_prefill(Service &service, EngineHost &host, const Call &call, const OpenAiRequest &q, httplib::Response &response)
{
    if (!q.do_remote_decode)
        throw invalid("kv_transfer_params", "kv_transfer_params must have do_remote_decode: this is a prefill worker");
    const auto prompts = tokenize(host, q);
    if (!host.options.has_front())
        return send_prefill(service, host, call, q, prompts, response);
    if (host.role != cleave::Role::Prefill) // the front does not know yet: the decode worker computes the prompt
        throw unavailable("this is not a prefill worker any more");
    if (prompts.size() != 1)
        throw invalid("prompt", "prompt must be one prompt: a prefill worker computes one at a time");
    stream_prefill(service, host, call, engine_request(q, prompts[0], 0), response);
}
