// Takes the place of the server of gRPC in builds without its packages.
#include "server.hpp"

GrpcServer &serve_grpc(const std::string &, EngineHost &, Service &)
{
    throw std::runtime_error("--grpc: this program was built without gRPC (Debian: libgrpc++-dev, protobuf-compiler-grpc; "
                             "tools/setup.sh --all installs what is missing)");
}
