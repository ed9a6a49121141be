// Server-sent events.
#pragma once

#include "service.hpp"

/// Writes a piece of a streamed answer. Throws ClientGone.
using Write = std::function<void(const std::string &)>;

/// A stream of server-sent events, with the trace of its request among them if the client asked for that.
class Events {
public:
    explicit Events(const Call &call) : traced_(call.traced), start_(call.start) {}

    /// Writes the trace events from before the header.
    void begin(const Write &write)
    {
        write_ = write;
        if (!early_.empty())
            write_(early_);
    }
    void write(const std::string &event) { write_(event); }

    void trace(const std::string &phase, json fields) { trace_at(phase, ms_since(start_), std::move(fields)); }
    void trace_at(const std::string &phase, double ms, json fields)
    {
        if (!traced_)
            return;
        fields["phase"] = phase;
        fields["ms"] = ms;
        const std::string event = "event: trace\ndata: " + dump(fields) + "\n\n";
        if (write_)
            write_(event);
        else
            early_ += event;
    }

private:
    bool traced_;
    Clock::time_point start_;
    std::string early_;
    Write write_;
};
