// Serving until a signal arrives, and the orderly end.
#pragma once

#include "grpc/server.hpp"
#include "http.hpp"
#include "membership.hpp"
#include "options.hpp"

#include <csignal>

inline void wait_until(Clock::time_point end, const std::function<bool()> &done)
{
    while (!done() && Clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

inline std::string url_of(const std::string &host, int port)
{
    return "http://" + (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(port);
}

/// Serves until a signal arrives. Then it leaves the front and refuses new requests. It waits until no request runs and
/// no handle is `held`, and cancels the rest. Idle connections and the library's objects end with the process. `membership`
/// and `grpc` may be null.
[[noreturn]] inline void serve(HttpServer &server, Service &service, const Options &options, const std::string &url,
                               const sigset_t &signals, Membership *membership, GrpcServer *grpc, const std::function<bool()> &held)
{
    std::printf("listening on %s\n", url.c_str());
    std::fflush(stdout);
    std::thread([&] { server.serve(); }).detach();
    int signal;
    sigwait(&signals, &signal);
    const auto end = Clock::now() + std::chrono::seconds(options.drain);
    if (grpc != nullptr)
        grpc->leave();
    if (membership != nullptr)
        membership->leave(end);
    service.closing = true;
    wait_until(end, [&] { return service.running == 0 && !held(); });
    service.aborting = true;
    if (grpc != nullptr)
        grpc->end_requests();
    wait_until(Clock::now() + std::chrono::seconds(2), [&] { return service.running == 0; });
    if (grpc != nullptr)
        grpc->close(Clock::now() + std::chrono::seconds(1));
    std::quick_exit(0);
}
