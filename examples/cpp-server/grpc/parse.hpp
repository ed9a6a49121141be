// Checks requests of vLLM's protocol and converts them.
#pragma once

#include "../salts.hpp"
#include "fields.hpp"
#include "ticket.hpp"

#include <inference.pb.h>

/// A checked request.
struct VllmRequest {
    Generation generation;
    bool for_another = false; // computes the prompt only, for a decode worker
    std::vector<std::uint8_t> exporter; // address of the cache that has the ticket's KV; may be missing
    // Contents of the answer.
    Tokens prompt, stop_tokens;
    bool text = true, token_ids = false, prompt_ids = false, logprobs = false;
    std::size_t candidates = 0; // alternatives to report with each token
};

/// Names the first field that this server cannot serve: a field that is ignored might change what the answer means.
/// Throws StatusError.
inline void refuse_unsupported(const vllm::GenerateRequest &q)
{
    const auto &decoding = q.decoding();
    const auto &stopping = q.stopping();
    const auto &response = q.response();
    const bool has_budget = stopping.has_thinking_token_budget() && stopping.thinking_token_budget() >= 0;
    const std::pair<const char *, bool> fields[] = {
        {"sampling.num_sequences above 1", q.sampling().num_sequences() > 1},
        {"decoding.allowed_token_ids", decoding.allowed_token_ids_size() > 0},
        {"decoding.structured_output", decoding.structured_output_case() != vllm::DecodingParameters::STRUCTURED_OUTPUT_NOT_SET},
        {"decoding.bad_words_token_ids", decoding.bad_words_token_ids_size() > 0},
        {"stopping.thinking_token_budget", has_budget},
        {"response.prompt_logprobs", response.prompt_logprobs()},
        {"response.prompt_candidates", response.has_prompt_candidates()},
        {"response.skip_special_tokens false", response.has_skip_special_tokens() && !response.skip_special_tokens()},
        {"kv.ec_transfer_params", q.kv().has_ec_transfer_params()},
        {"kv_hints", q.kv_hints().actions_size() > 0},
        {"media", q.media_size() > 0},
        {"lora_name", !q.lora_name().empty()},
    };
    for (const auto &[name, set] : fields)
        if (set)
            throw refused(name, "not supported by this server");
    check_fields(q);
}

/// Throws StatusError.
inline Tokens prompt_of(const EngineHost &host, const vllm::GenerateRequest &q)
{
    Tokens tokens = q.has_text() ? tokenize_field(host, "text", q.text()) : tokens_of(host, "token_ids", q.token_ids().ids());
    const std::size_t keep = q.truncate_prompt_tokens();
    if (keep > 0 && keep < tokens.size())
        tokens.erase(tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(keep));
    check_room(host, tokens);
    return tokens;
}

/// Reads the kv_transfer_params. Throws StatusError.
inline void parse_kv(const google::protobuf::Struct &params, VllmRequest &out)
{
    constexpr char field[] = "kv.kv_transfer_params";
    RemoteKv kv = parse_remote_kv(field, params);
    out.for_another = is_true(params, "do_remote_decode");
    if (out.for_another && !kv.ticket.empty())
        throw refused(field, "do_remote_decode and a ticket exclude each other");
    if (is_true(params, "do_remote_prefill") && kv.ticket.empty())
        throw refused(field, "do_remote_prefill without the cleave_ticket of a prefill worker of this kind");
    out.generation.ticket.bytes = std::move(kv.ticket);
    out.generation.ticket.or_compute = false; // a router asks another prefill worker
    out.exporter = std::move(kv.address);
}

/// Throws StatusError.
inline cleave::Request engine_request(const EngineHost &host, const vllm::GenerateRequest &q)
{
    cleave::Request r;
    r.prompt = prompt_of(host, q);
    r.max_new_tokens = q.stopping().max_new_tokens();
    r.min_new_tokens = q.stopping().min_new_tokens();
    r.ignore_eos = q.stopping().ignore_eos();
    r.temperature = q.temperature();
    r.top_k = q.sampling().top_k();
    r.top_p = q.sampling().top_p();
    r.min_p = q.sampling().min_p();
    r.repetition_penalty = q.decoding().repetition_penalty();
    r.presence_penalty = q.decoding().presence_penalty();
    r.frequency_penalty = q.decoding().frequency_penalty();
    r.cache_salt = q.kv().bypass_prefix_cache() ? random_salt() : host.salt_texts.remember(salt_of(q.kv().cache_salt()), q.kv().cache_salt());
    r.priority = to_priority(q.priority());
    if (q.sampling().has_seed())
        r.seed = to_seed(q.sampling().seed());
    r.stop_tokens = tokens_of(host, "stopping.stop_token_ids", q.stopping().stop_token_ids());
    for (const auto &[id, bias] : q.decoding().logit_bias()) {
        if (id >= host.about.vocab_size)
            throw refused("decoding.logit_bias", "the model has no token " + std::to_string(id));
        r.logit_bias.push_back({static_cast<std::int32_t>(id), bias});
    }
    return r;
}

/// Number of alternatives to report with each token. Throws StatusError.
inline std::size_t candidates_of(const vllm::ResponseOptions &response)
{
    if (!response.has_output_candidates())
        return 0;
    const auto &wanted = response.output_candidates();
    if (!wanted.has_top_n() || wanted.top_n() > most_candidates)
        throw refused("response.output_candidates", "must be top_n, at most " + std::to_string(most_candidates));
    return wanted.top_n();
}

/// Makes of a request one for its prompt and first token. What the token may be, and whether it ends the generation, is for
/// the decode worker's request to say: routers ask the prefill worker for one token at least and at most.
inline void make_prefill(const EngineHost &host, Generation &generation)
{
    cleave::Request &r = generation.choices[0];
    generation.stop.clear();
    r.max_new_tokens = 1;
    r.min_new_tokens = 0;
    r.keep_kv = true;
    r.token_logprobs = true; // they go with the ticket, because the decode worker's client may want them
    r.top_logprobs = std::max(r.top_logprobs, alternatives(host, 0));
}

/// Checks a request and converts it. Throws StatusError.
inline VllmRequest parse(const EngineHost &host, const vllm::GenerateRequest &q)
{
    if (!q.model().empty() && q.model() != host.options.model_name)
        throw StatusError{{grpc::StatusCode::NOT_FOUND, "model: there is no model \"" + q.model() + "\" here"}};
    refuse_unsupported(q);
    VllmRequest out;
    cleave::Request r = engine_request(host, q);
    out.prompt = r.prompt;
    out.stop_tokens = r.stop_tokens;
    const auto &response = q.response();
    out.text = !response.has_output_text() || response.output_text();
    out.token_ids = response.output_token_ids();
    out.prompt_ids = response.prompt_token_ids();
    out.candidates = candidates_of(response);
    out.logprobs = response.output_logprobs() || response.has_output_candidates();
    if (out.logprobs) {
        r.token_logprobs = true;
        r.top_logprobs = alternatives(host, static_cast<std::uint32_t>(out.candidates));
    }
    Generation &generation = out.generation;
    generation.stop.assign(q.stopping().stop_strings().begin(), q.stopping().stop_strings().end());
    check_stop_strings("stopping.stop_strings", generation.stop);
    generation.keep_stop = q.stopping().include_stop_strings();
    generation.continues_prompt = true;
    generation.choices.push_back(std::move(r));
    parse_kv(q.kv().kv_transfer_params(), out);
    if (out.for_another)
        make_prefill(host, generation);
    return out;
}
