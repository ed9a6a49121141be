// Objects that all gRPC services of a worker use.
#pragma once

#include "../role.hpp"
#include "../service.hpp"
#include "executor.hpp"
#include "pairs.hpp"
#include "requests.hpp"

/// Lives as long as the process.
struct GrpcContext {
    EngineHost &host;
    Service &service;
    RoleSwitch &roles;
    std::function<void()> leave;       // see GrpcServer
    std::atomic<bool> leaving{false};  // new requests are refused
    Executor executor{4};
    Requests requests{};
    Pairs pairs{host};
};
