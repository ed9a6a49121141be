// Errors in the form of OpenAI's API. Other protocols translate the status and the text.
#pragma once

#include <nlohmann/json.hpp>

#include <stdexcept>
#include <string>

using json = nlohmann::json;

/// JSON on one line. Bytes that are not UTF-8 become U+FFFD.
inline std::string dump(const json &value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

/// A refusal or a failure, as the client is told of it: an HTTP status, and the error object.
struct ApiError : std::runtime_error {
    int status;
    json error;

    ApiError(int status, const char *type, const std::string &message, const json &param = {}, const json &code = {})
        : std::runtime_error(message), status(status),
          error({{"message", message}, {"type", type}, {"param", param}, {"code", code}})
    {
    }
    /// An error that another server has returned.
    ApiError(int status, const json &e) : std::runtime_error(e.value("message", "")), status(status), error(e) {}

    /// The body of an error answer.
    std::string text() const { return dump({{"error", error}}); }
};

inline ApiError invalid(const json &param, const std::string &message)
{
    return ApiError(400, "invalid_request_error", message, param);
}
inline ApiError no_such_model(const std::string &name)
{
    const std::string what = "the model '" + name + "' does not exist";
    return ApiError(404, "invalid_request_error", what, "model", "model_not_found");
}
inline ApiError unavailable(const std::string &message) { return ApiError(503, "service_unavailable", message); }
inline ApiError failed(const std::string &message) { return ApiError(500, "server_error", message); }
