// From a client's request to the engine's.
#ifndef ENGINE_REQUEST_HPP
#define ENGINE_REQUEST_HPP

#include "engine.hpp"
#include "openai.hpp"

/// Throws ApiError if the request is for another model.
void check_model(const EngineHost &host, const GenerationRequest &q);

/// The tokens of each prompt. Throws ApiError.
std::vector<Tokens> tokenize(const EngineHost &host, const GenerationRequest &q);

/// Choice `choice` of the n of a prompt, as an engine takes it. Throws ApiError.
cleave::Request engine_request(const EngineHost &host, const GenerationRequest &q, const Tokens &prompt, std::size_t choice);

/// How long to wait for an event before looking whether the client is still there.
inline constexpr std::chrono::milliseconds look_around(50);

#endif
