// The server of gRPC, which works beside that of HTTP: see "gRPC" in ../../README.md. This header needs no gRPC.
#pragma once

#include "../role.hpp"
#include "../service.hpp"

class GrpcServer {
public:
    virtual ~GrpcServer() = default;
    /// The address where clients find it: HOST:PORT, or the path of a Unix socket.
    virtual std::string address() const = 0;
    /// Refuses new requests and makes the server unhealthy, so that no router chooses it any more.
    virtual void leave() = 0;
    /// Ends the requests that run, so that routers move them to another worker.
    virtual void end_requests() = 0;
    /// Closes all connections, at the latest at `end`.
    virtual void close(Clock::time_point end) = 0;
};

/// Throws std::runtime_error if this program was built without gRPC.
void need_grpc();

/// Serves at HOST:PORT or unix:PATH. The server lives as long as the process. Throws std::runtime_error.
GrpcServer &serve_grpc(const std::string &address, EngineHost &host, Service &service, RoleSwitch &roles);
