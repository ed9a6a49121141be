// The running requests of a server, independent of the protocol.
#pragma once

#include "clock.hpp"
#include "errors.hpp"
#include "metrics.hpp"

#include <atomic>
#include <functional>
#include <memory>

constexpr char shutting_down[] = "the server is shutting down";

/// The client of an answer has closed its connection.
struct ClientGone {};

/// A client's request in progress. It counts as running while a copy of it exists.
struct Call {
    std::string id; // chosen by a front, otherwise empty
    bool traced;    // the client wants events about the request's stages
    Clock::time_point start;
    std::function<bool()> is_gone; // whether the client has closed its connection
    std::shared_ptr<void> running;
};

/// Requests in progress, and the way in which the server ends.
class Service {
public:
    /// Counts a request as running. Throws ApiError once the server is closing.
    Call begin(std::string id, bool traced, std::function<bool()> is_gone)
    {
        running++;
        std::shared_ptr<void> counted(static_cast<void *>(nullptr), [this](void *) { running--; });
        if (closing) // checked after counting, because the shutdown waits for counted requests
            throw unavailable(shutting_down);
        return {std::move(id), traced, Clock::now(), std::move(is_gone), std::move(counted)};
    }

    /// Throws if the client is gone, or the shutdown has stopped waiting. Called while waiting for an answer.
    void check(const Call &call) const
    {
        if (call.is_gone())
            throw ClientGone();
        if (aborting)
            throw unavailable(shutting_down);
    }

    void count_first_token(const Call &call)
    {
        metrics.count("cleave_server_time_to_first_token_seconds_sum", "", ms_since(call.start) / 1000);
        metrics.count("cleave_server_time_to_first_token_seconds_count");
    }

    /// The server's own counters as OpenMetrics text, without its end.
    std::string metrics_text(Metrics::Samples gauges = {})
    {
        gauges["cleave_server_requests_running"] = running;
        return metrics.text(gauges);
    }

    Metrics metrics;
    /// Set at the first signal: new requests are refused.
    std::atomic<bool> closing{false};
    /// Set when the shutdown stops waiting: running requests are cancelled.
    std::atomic<bool> aborting{false};
    std::atomic<int> running{0};
};
