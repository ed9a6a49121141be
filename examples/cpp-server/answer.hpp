// Answers that are written after their handler has returned.
#pragma once

#include "events.hpp"

#include <httplib.h>

#include <cstdio>

/// Sends a whole answer. The request counts as running until the answer is written.
inline void send(const Call &call, httplib::Response &response, const std::string &text)
{
    const auto write = [call, text](std::size_t from, std::size_t n, httplib::DataSink &sink) {
        return sink.write(text.data() + from, n);
    };
    response.set_content_provider(text.size(), "application/json", write);
}

/// Sends an answer whose pieces `run` writes after the handler has returned. An ApiError that it throws is written
/// between `before_error` and `after_error`. `run` is destroyed when the answer has ended, and with it what it holds.
inline void stream(httplib::Response &response, const char *type, const char *before_error,
                   const char *after_error, std::function<void(const Write &)> run)
{
    response.set_header("Cache-Control", "no-cache");
    response.set_chunked_content_provider(type, [=](std::size_t, httplib::DataSink &sink) {
        const Write write = [&](const std::string &text) {
            if (!sink.write(text.data(), text.size()))
                throw ClientGone();
        };
        try { // httplib does not catch exceptions here
            try {
                run(write);
            } catch (const ApiError &error) {
                write(before_error + error.text() + after_error);
            } catch (const std::exception &error) {
                std::fprintf(stderr, "a stream failed: %s\n", error.what());
                write(before_error + failed(error.what()).text() + after_error);
            }
            sink.done();
            return true;
        } catch (const ClientGone &) {
            return false;
        }
    });
}
