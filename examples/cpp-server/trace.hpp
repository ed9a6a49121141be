// What happens to a request, told beside its chunks to a client that sent X-Cleave-Trace: 1.
#ifndef TRACE_HPP
#define TRACE_HPP

#include "http.hpp"

#include <string>

class Trace {
public:
    explicit Trace(const Exchange &exchange)
        : wanted_(exchange.request.get_header_value("X-Cleave-Trace") == "1"), start_(exchange.start)
    {
    }

    /// An event of now; empty if nobody wants to know. `more` is an object.
    std::string event(const char *phase, json more) const { return event_at(phase, ms_since(start_), std::move(more)); }

    std::string event_at(const std::string &phase, double ms, json more) const
    {
        if (!wanted_)
            return {};
        more["phase"] = phase;
        more["ms"] = ms;
        return "event: trace\ndata: " + dump(more) + "\n\n";
    }

    bool wanted() const { return wanted_; }

private:
    bool wanted_;
    Clock::time_point start_;
};

#endif
