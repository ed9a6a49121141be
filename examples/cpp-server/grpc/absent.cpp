// Takes the place of the server of gRPC in builds without its packages.
#include "server.hpp"

void need_grpc()
{
    throw std::runtime_error("--grpc: this program was built without gRPC (Debian: libgrpc++-dev, libprotobuf-dev, protobuf-compiler, "
                             "protobuf-compiler-grpc; tools/setup.sh --all installs what is missing)");
}

GrpcServer &serve_grpc(const std::string &, EngineHost &, Service &, RoleSwitch &)
{
    need_grpc();
    std::abort();
}
