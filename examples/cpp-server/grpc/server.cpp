#include "server.hpp"

#include "services.hpp"

#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/grpcpp.h>

namespace {

class RealGrpcServer final : public GrpcServer {
public:
    RealGrpcServer(EngineHost &host, Service &service, RoleSwitch &roles)
        : context_{host, service, roles, [this] { leave(); }}, services_{make_vllm_inference(context_), make_vllm_control(context_), make_worker(context_)}
    {
    }

    /// Throws std::runtime_error.
    void listen(const std::string &address)
    {
        grpc::EnableDefaultHealthCheckService(true);
        grpc::ServerBuilder builder;
        int port = 0;
        builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
        for (const auto &service_of_grpc : services_)
            builder.RegisterService(service_of_grpc.get());
        builder.SetMaxReceiveMessageSize(max_message);
        builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0); // a port that is taken is an error
        // Sidecars and proxies ask more often than gRPC's default allows.
        builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
        builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
        // A client whose machine is gone does not close its connection.
        builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
        builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
        server_ = builder.BuildAndStart();
        const bool is_path = address.rfind("unix:", 0) == 0;
        if (!server_ || (port == 0 && !is_path))
            throw std::runtime_error("--grpc: cannot listen at " + address);
        address_ = is_path ? address.substr(5) : address.substr(0, address.rfind(':') + 1) + std::to_string(port);
        for (const char *name : {"vllm.Inference", "vllm.Control", "cleave.v1.Worker"})
            server_->GetHealthCheckService()->SetServingStatus(name, true);
        context_.host.on_failure([this] { context_.executor.post([this] { make_unhealthy(); }); });
    }

    std::string address() const override { return address_; }
    void leave() override
    {
        context_.leaving = true;
        make_unhealthy();
    }
    void end_requests() override { context_.requests.end_all(Cause::ShuttingDown); }
    void close(Clock::time_point end) override
    {
        server_->Shutdown(std::chrono::system_clock::now() + (end - Clock::now()));
    }

private:
    void make_unhealthy() { server_->GetHealthCheckService()->Shutdown(); } // for good

    static constexpr int max_message = 64 << 20; // a prompt of some million tokens

    GrpcContext context_;
    const std::array<std::unique_ptr<grpc::Service>, 3> services_;
    std::unique_ptr<grpc::Server> server_;
    std::string address_;
};

} // namespace

void need_grpc() {}

GrpcServer &serve_grpc(const std::string &address, EngineHost &host, Service &service, RoleSwitch &roles)
{
    auto &server = *new RealGrpcServer(host, service, roles);
    server.listen(address);
    return server;
}
