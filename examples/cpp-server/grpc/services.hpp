// The services of a worker, without the generated code that they need.
#pragma once

#include "context.hpp"

#include <grpcpp/impl/service_type.h>

std::unique_ptr<grpc::Service> make_vllm_inference(GrpcContext &context);
std::unique_ptr<grpc::Service> make_vllm_control(GrpcContext &context);
std::unique_ptr<grpc::Service> make_worker(GrpcContext &context);
