// A prefill worker's answer to its front. See "Workers" in ../README.md.
#pragma once

#include "answer.hpp"
#include "engine_request.hpp"
#include "prefill.hpp"

/// Answers with a ticket as soon as there is one, and with statistics once the prompt is computed. Throws ApiError.
inline void answer_prefill(Service &service, EngineHost &host, const Call &call, const OpenAiRequest &q, httplib::Response &response)
{
    if (!q.do_remote_decode)
        throw invalid("kv_transfer_params", "a prefill worker answers fronts only");
    const auto prompts = tokenize(host, q);
    if (prompts.size() != 1)
        throw invalid("prompt", "a prefill worker takes one prompt at a time");

    const auto prefill = std::make_shared<Prefill>(service, host, call, engine_request(q, prompts[0], 0));
    const json params = {{"do_remote_prefill", true}, {"ticket", to_base64(prefill->ticket())}};
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
