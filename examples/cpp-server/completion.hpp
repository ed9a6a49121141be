// A client's request on this server's engine: from the body to its answer. The part to copy is in submit() and take().
#ifndef COMPLETION_HPP
#define COMPLETION_HPP

#include "answer.hpp"
#include "engine.hpp"
#include "text.hpp"
#include "trace.hpp"

/// Answers /v1/chat/completions (`chat`) or /v1/completions on a mixed engine or a decode engine. Throws ApiError.
void answer_completion(HttpServer &server, EngineHost &host, const std::string &url, Exchange &exchange, bool chat);

/// Answers the same on a prefill engine, to a front: with a ticket for a decode worker. Throws ApiError.
void answer_prefill(HttpServer &server, EngineHost &host, Exchange &exchange, bool chat);

#endif
