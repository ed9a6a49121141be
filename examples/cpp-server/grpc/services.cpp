// The only translation unit that includes generated code, which takes long to compile.
#include "services.hpp"

#include "control.hpp"
#include "inference.hpp"
#include "worker.hpp"

std::unique_ptr<grpc::Service> make_vllm_inference(GrpcContext &context) { return std::make_unique<InferenceService>(context); }
std::unique_ptr<grpc::Service> make_vllm_control(GrpcContext &context) { return std::make_unique<ControlService>(context); }
std::unique_ptr<grpc::Service> make_worker(GrpcContext &context) { return std::make_unique<WorkerService>(context); }
