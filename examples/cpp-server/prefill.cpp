#include "prefill.hpp"
#include "engine_request.hpp"
#include "text.hpp"

void answer_prefill(HttpServer &server, EngineHost &host, Exchange &exchange, bool chat)
{
    const GenerationRequest q = parse_generation(exchange.body, chat);
    check_model(host, q);
    if (!q.do_remote_decode)
        throw invalid("kv_transfer_params", "a prefill worker answers fronts only");
    const auto prompts = tokenize(host, q);
    if (prompts.size() != 1)
        throw invalid("prompt", "a prefill worker takes one prompt at a time");

    std::vector<cleave::Request> request;
    request.push_back(engine_request(host, q, prompts[0], 0));
    request[0].stream_kv = true; // the ticket goes out before the prompt is computed
    const auto sequences = std::make_shared<Sequences>(host, 1);
    sequences->submit(0, std::move(request));

    std::optional<cleave::Event> event; // the first that brings a handle
    while (!event || (event->type() != cleave::EventType::KvStarted && event->type() != cleave::EventType::Finished)) {
        server.check(exchange.client);
        event = sequences->next(look_around);
    }
    if (event->kv() == 0)
        throw failed(std::string("the prompt was not computed: ") + to_string(event->status()));
    auto ticket = host.cache.view(event->kv()).ticket();
    if (!ticket)
        throw to_api_error(ticket.error());

    const auto run = [&server, &host, sequences, event, ticket = std::move(*ticket), client = exchange.client,
                      start = exchange.start, n_tokens = prompts[0].size()](const Write &write) {
        const json params = {{"do_remote_prefill", true}, {"ticket", to_base64(ticket)}};
        write(dump(json{{"kv_transfer_params", params}}) + "\n");
        std::optional<cleave::Event> last = event;
        while (!last || last->type() != cleave::EventType::Finished) {
            server.check(client);
            last = sequences->next(look_around);
        }
        cleave::Kv kv = host.cache.take_kv(*last); // given back if it cannot be told of
        server.check(client);
        if (!kv)
            throw failed(std::string("the prompt was not computed: ") + to_string(last->status()));
        const json prefilled = {{"prompt_tokens", n_tokens}, {"cached_tokens", last->cached_tokens()}, {"ms", ms_since(start)}};
        write(dump(json{{"prefilled", prefilled}}) + "\n");
        static_cast<void>(kv.take()); // lives on until it was fetched, or its lease is over
    };
    stream(exchange, "application/x-ndjson", "", "\n", run);
}
