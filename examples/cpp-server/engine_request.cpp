#include "engine_request.hpp"

void check_model(const EngineHost &host, const GenerationRequest &q)
{
    if (!q.model.empty() && q.model != host.options.model_name)
        throw ApiError(404, "invalid_request_error", "the model '" + q.model + "' does not exist", "model", "model_not_found");
}

std::vector<Tokens> tokenize(const EngineHost &host, const GenerationRequest &q)
{
    const char *const param = q.chat ? "messages" : "prompt";
    std::vector<Tokens> out;
    const auto add = [&](auto tokens) {
        if (!tokens)
            throw invalid(param, tokens.error().message());
        out.push_back(std::move(*tokens));
    };
    if (q.chat) {
        const auto text = host.model.chat_prompt(q.messages);
        if (!text)
            throw invalid(param, text.error().message());
        add(host.model.tokenize(*text, cleave::Special::None));
    }
    for (const auto &prompt : q.prompts) {
        if (const auto *text = std::get_if<std::string>(&prompt))
            add(host.model.tokenize(*text));
        else
            out.push_back(std::get<Tokens>(prompt));
    }
    for (const Tokens &tokens : out) {
        for (const std::int32_t token : tokens)
            if (static_cast<std::uint32_t>(token) >= host.about.vocab_size)
                throw invalid(param, "the model has no token " + std::to_string(token));
        if (tokens.size() > host.about.max_context_tokens)
            throw ApiError(400, "invalid_request_error",
                           "This model's maximum context length is " + std::to_string(host.about.max_context_tokens) +
                               " tokens. However, the prompt has " + std::to_string(tokens.size()) + " tokens.",
                           param, "context_length_exceeded");
    }
    return out;
}

cleave::Request engine_request(const EngineHost &host, const GenerationRequest &q, const Tokens &prompt, std::size_t choice)
{
    cleave::Request r;
    r.prompt = prompt;
    r.max_new_tokens = q.max_tokens;
    r.min_new_tokens = q.min_tokens;
    r.temperature = q.temperature;
    r.top_k = q.top_k;
    r.top_p = q.top_p;
    r.min_p = q.min_p;
    r.repetition_penalty = q.repetition_penalty;
    r.presence_penalty = q.presence_penalty;
    r.frequency_penalty = q.frequency_penalty;
    for (const auto &[token, bias] : q.logit_bias) {
        if (static_cast<std::uint32_t>(token) >= host.about.vocab_size)
            throw invalid("logit_bias", "the model has no token " + std::to_string(token));
        r.logit_bias.push_back({token, bias});
    }
    if (q.seed) { // the library's 0 is a random seed: a client's is another number
        const std::uint64_t seed = static_cast<std::uint64_t>(*q.seed) + choice;
        r.seed = seed != 0 ? seed : UINT64_C(1) << 63;
    }
    r.ignore_eos = q.ignore_eos;
    r.priority = q.priority;
    r.token_logprobs = q.logprobs;
    r.top_logprobs = q.top_logprobs;
    return r;
}
