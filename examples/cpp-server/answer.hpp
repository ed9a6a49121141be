// Answers of OpenAI's API: whole ones, and the chunks of a stream.
#ifndef ANSWER_HPP
#define ANSWER_HPP

#include "http.hpp"

#include <optional>
#include <string>
#include <vector>

/// A token that could stand at a place. Its bytes need not be whole characters.
struct Candidate {
    std::string bytes;
    float logprob;
};

/// What one chunk of a choice holds.
struct Piece {
    std::size_t choice = 0;
    bool role = false; // the first one of a chat
    std::string text{};
    std::optional<Candidate> token{}; // with logprobs: whose text it is
    std::vector<Candidate> top{};     // and the likeliest at its place
    std::size_t offset = 0;           // where the token's text begins in that of the choice, in characters
    std::string finish_reason{};      // of the last one
};

struct Usage {
    std::size_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
};

class AnswerFormat {
public:
    AnswerFormat(std::string id, std::string model, bool chat);

    const std::string &id() const { return id_; }
    /// Server-sent events.
    std::string chunk(const Piece &piece) const;
    std::string usage_chunk(const Usage &usage) const;
    /// A whole answer of the pieces of each choice.
    std::string whole(const std::vector<std::vector<Piece>> &choices, const Usage &usage) const;

private:
    nlohmann::ordered_json answer(bool chunk) const;
    nlohmann::ordered_json logprobs(const Piece *pieces, std::size_t n) const;

    std::string id_, model_;
    std::int64_t created_;
    bool chat_;
};

/// "chatcmpl-" or "cmpl-", and a random rest.
std::string new_id(bool chat);

std::uint64_t random_number();

#endif
