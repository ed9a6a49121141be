// Calls that are answered at once.
#pragma once

#include "status.hpp"

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

/// Answers a call with what `fill` writes into the response, or with the error that it throws.
template <class Fill> grpc::ServerUnaryReactor *answer_at_once(grpc::CallbackServerContext *call, const char *method, Fill fill)
{
    auto *reactor = call->DefaultReactor();
    reactor->Finish(guarded(method, fill));
    return reactor;
}
