// A front: it has no engine, and takes each request to a prefill worker and a decode worker. See "Workers" in
// ../README.md.
#ifndef FRONT_HPP
#define FRONT_HPP

#include "http.hpp"
#include "registry.hpp"

class Front {
public:
    explicit Front(HttpServer &server) : server_(server) {}

    /// Answers /v1/chat/completions (`chat`) or /v1/completions. Throws ApiError.
    void answer(Exchange &exchange, bool chat);

    Registry &workers() { return workers_; }
    /// OpenMetrics text.
    std::string metrics() const;

private:
    HttpServer &server_;
    Registry workers_;
    std::atomic<std::uint64_t> moved_{0};
};

#endif
