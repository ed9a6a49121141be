// Errors of gRPC. Routers retry UNAVAILABLE at another worker, and nothing else, so it stands for everything that is the
// worker's fault or misfortune.
#pragma once

#include "../errors.hpp"

#include <grpcpp/support/status.h>

#include <cstdio>

/// A status that ends a call.
struct StatusError {
    grpc::Status status;
};

/// The refusal of a request that no worker can serve. It names the field.
inline StatusError refused(const std::string &field, const std::string &why)
{
    return {{grpc::StatusCode::INVALID_ARGUMENT, field + ": " + why}};
}

inline grpc::Status to_status(const ApiError &error)
{
    const auto code = error.status == 400   ? grpc::StatusCode::INVALID_ARGUMENT
                      : error.status == 404 ? grpc::StatusCode::NOT_FOUND
                                            : grpc::StatusCode::UNAVAILABLE;
    return {code, error.what()};
}

/// Runs a part of a call and returns the status with which it ends the call, or OK. A part that fails in an unforeseen way
/// ends the call like a failed engine: another worker may serve it.
template <class Part> grpc::Status guarded(const char *method, Part part)
{
    try {
        part();
        return grpc::Status::OK;
    } catch (const StatusError &error) {
        return error.status;
    } catch (const ApiError &error) {
        return to_status(error);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s: %s\n", method, error.what());
        return {grpc::StatusCode::UNAVAILABLE, std::string(method) + " failed: " + error.what()};
    }
}
