// Messages of an answer in vLLM's protocol.
#pragma once

#include "../choice.hpp"
#include "parse.hpp"

/// Makes the messages of one answer from the pieces of its generation. A token whose text is held back waits, with those
/// after it, until the text is decided: then whoever continues the answer elsewhere, from the tokens that came, gives the
/// text that is missing and no other.
class Messages {
public:
    explicit Messages(const VllmRequest &request) : request_(request) {}

    /// Takes a piece. Returns the next message once its text is decided.
    std::optional<vllm::GenerateResponse> take(const Piece &piece)
    {
        keep(piece);
        const bool is_rest = piece.kind == Piece::Text && piece.token.empty(); // goes with the end
        if (is_rest || piece.held || piece.kind == Piece::Kv)
            return std::nullopt;
        vllm::GenerateResponse message = next();
        if (piece.kind == Piece::End)
            finish(message, piece);
        return message;
    }

    /// Takes a piece for a later message.
    void keep(const Piece &piece)
    {
        text_ += piece.text;
        if (!piece.token.empty())
            tokens_.push_back(piece.token);
    }

    /// The message with the first token of a computed prompt, and the way to its KV. A token that ends the generation is no
    /// end here, or the router would not ask a decode worker at all.
    vllm::GenerateResponse prefilled(const Piece &end, const RemoteKv &kv)
    {
        text_.clear();
        vllm::GenerateResponse message = next();
        auto &info = finish(message, vllm::FinishInfo::LENGTH);
        write_remote_kv(kv, *info.mutable_kv_transfer_params());
        info.set_num_cached_tokens(static_cast<std::uint32_t>(end.cached_tokens));
        return message;
    }

    /// The last message of a request that was aborted.
    vllm::GenerateResponse aborted()
    {
        text_.clear();
        tokens_.clear();
        vllm::GenerateResponse message = next();
        finish(message, vllm::FinishInfo::ABORTED);
        return message;
    }

private:
    /// The message with what has come so far.
    vllm::GenerateResponse next()
    {
        vllm::GenerateResponse message;
        auto &output = *message.mutable_outputs();
        if (request_.text)
            output.set_text(text_);
        output.set_num_tokens(static_cast<std::uint32_t>(tokens_.size()));
        for (const auto &token : tokens_)
            add(output, token);
        sent_ += output.num_tokens();
        text_.clear();
        tokens_.clear();
        if (!std::exchange(begun_, true)) {
            auto &info = *message.mutable_prompt_info();
            info.set_num_prompt_tokens(static_cast<std::uint32_t>(request_.prompt.size()));
            if (request_.prompt_ids)
                for (const std::int32_t token : request_.prompt)
                    info.add_token_ids(static_cast<std::uint32_t>(token));
        }
        return message;
    }

    /// Adds a token, and its alternatives other than itself.
    void add(vllm::SequenceOutput &output, const std::vector<cleave::Event> &events) const
    {
        const std::int32_t token = events[0].token();
        if (request_.token_ids)
            output.add_token_ids(static_cast<std::uint32_t>(token));
        if (!request_.logprobs)
            return;
        auto rank = static_cast<std::uint32_t>(events.size()); // the first one beyond the alternatives
        auto &others = *output.add_candidate_tokens();
        for (std::uint32_t i = 1; i < events.size(); i++) {
            if (events[i].token() == token) {
                rank = i;
            } else if (i <= request_.candidates) {
                auto &other = *others.add_tokens();
                other.set_id(static_cast<std::uint32_t>(events[i].token()));
                other.set_logprob(events[i].logprob());
                other.set_rank(i);
            }
        }
        output.add_logprobs(events[0].logprob());
        output.add_ranks(rank);
    }

    vllm::FinishInfo &finish(vllm::GenerateResponse &message, vllm::FinishInfo::FinishReason reason) const
    {
        auto &info = *message.mutable_outputs()->mutable_finish_info();
        info.set_finish_reason(reason);
        info.set_num_output_tokens(sent_);
        return info;
    }

    void finish(vllm::GenerateResponse &message, const Piece &end) const
    {
        const bool stopped = std::string_view(end.finish_reason) == "stop";
        auto &info = finish(message, stopped ? vllm::FinishInfo::STOP : vllm::FinishInfo::LENGTH);
        info.set_num_cached_tokens(static_cast<std::uint32_t>(end.cached_tokens));
        if (!stopped)
            return;
        const auto token = static_cast<std::uint32_t>(end.stop_token);
        if (!end.stop_string.empty())
            info.set_stop_string(end.stop_string);
        else if (std::count(request_.stop_tokens.begin(), request_.stop_tokens.end(), end.stop_token) > 0)
            info.set_stop_token_id(token);
        else
            info.set_eos_token_id(token);
    }

    const VllmRequest &request_;
    std::string text_; // not sent yet
    std::vector<std::vector<cleave::Event>> tokens_; // not sent yet, each with its alternatives
    std::uint32_t sent_ = 0; // number of tokens
    bool begun_ = false;
};
