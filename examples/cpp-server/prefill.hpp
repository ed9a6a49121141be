// A front's request on a prefill engine: its prompt is computed, for a decode worker to go on from.
#ifndef PREFILL_HPP
#define PREFILL_HPP

#include "engine.hpp"

/// Answers /v1/chat/completions (`chat`) or /v1/completions with a ticket, and then with how it went. Throws ApiError.
void answer_prefill(HttpServer &server, EngineHost &host, Exchange &exchange, bool chat);

#endif
