// A client's request on this server's engine: from the body to its answer.
#ifndef COMPLETION_HPP
#define COMPLETION_HPP

#include "engine.hpp"

/// Answers /v1/chat/completions (`chat`) or /v1/completions on a mixed engine or a decode engine. `url` is what the
/// server is known as. Throws ApiError.
void answer_completion(HttpServer &server, EngineHost &host, const std::string &url, Exchange &exchange, bool chat);

#endif
