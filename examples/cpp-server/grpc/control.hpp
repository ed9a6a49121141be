// vllm.Control: what the worker is, and the end of requests.
#pragma once

#include "../generation.hpp"
#include "../salts.hpp"
#include "context.hpp"
#include "unary.hpp"

#include <control.grpc.pb.h>

#include <filesystem>

class ControlService final : public vllm::Control::CallbackService {
public:
    explicit ControlService(GrpcContext &context) : context_(context) {}

    /// Describes the model. Sidecars read the tokenizer and the chat template from the directory model_id.
    grpc::ServerUnaryReactor *GetModelInfo(grpc::CallbackServerContext *call, const vllm::GetModelInfoRequest *, vllm::ModelInfo *info) override
    {
        return answer_at_once(call, "GetModelInfo", [&] {
            const Options &options = context_.host.options;
            info->set_model_id(std::filesystem::absolute(options.model + "/.").lexically_normal().parent_path().string());
            info->set_served_model_name(options.model_name);
            info->set_supports_text_input(true);
            info->set_supports_token_ids_input(true);
        });
    }

    /// Describes this worker. Sidecars ask twice and insist on the same answer.
    grpc::ServerUnaryReactor *GetServerInfo(grpc::CallbackServerContext *call, const vllm::GetServerInfoRequest *, vllm::ServerInfo *info) override
    {
        return answer_at_once(call, "GetServerInfo", [&] { describe(*info); });
    }

    /// Ends requests at the next step. Requests that are not there have ended before.
    grpc::ServerUnaryReactor *Abort(grpc::CallbackServerContext *call, const vllm::AbortRequest *request, vllm::AbortResponse *) override
    {
        return answer_at_once(call, "Abort", [&] {
            for (const std::string &id : request->request_ids())
                context_.requests.abort(id);
        });
    }

    /// Tells where what is in the prefix cache is published. Sidecars do not start without an answer.
    grpc::ServerUnaryReactor *GetKvEventSources(grpc::CallbackServerContext *call, const vllm::GetKvEventSourcesRequest *,
                                                vllm::GetKvEventSourcesResponse *answer) override
    {
        return answer_at_once(call, "GetKvEventSources", [&] {
            const KvEventSource &published = context_.host.kv_events;
            if (published.endpoint.empty())
                return;
            vllm::KvEventSource &source = *answer->add_sources();
            source.set_transport("zmq");
            source.set_endpoint(published.endpoint);
            source.set_topic(kv_events_topic);
            source.set_replay_endpoint(published.replay);
            source.set_data_parallel_rank(0);
            source.set_encoding("msgpack");
            source.set_schema_version(1);
            source.set_buffer_steps(kv_events_kept);
            source.set_hwm(kv_events_ahead);
            source.set_max_queue_size(kv_events_ahead);
        });
    }

    /// Generation cannot be paused.
    grpc::ServerUnaryReactor *IsPaused(grpc::CallbackServerContext *call, const vllm::IsPausedRequest *, vllm::IsPausedResponse *) override
    {
        return answer_at_once(call, "IsPaused", [] {});
    }

    /// A worker does not sleep.
    grpc::ServerUnaryReactor *IsSleeping(grpc::CallbackServerContext *call, const vllm::IsSleepingRequest *, vllm::IsSleepingResponse *) override
    {
        return answer_at_once(call, "IsSleeping", [] {});
    }

    /// There are no adapters.
    grpc::ServerUnaryReactor *ListLoras(grpc::CallbackServerContext *call, const vllm::ListLorasRequest *, vllm::ListLorasResponse *) override
    {
        return answer_at_once(call, "ListLoras", [] {});
    }

private:
    void describe(vllm::ServerInfo &info) const
    {
        const auto load = context_.host.engine.load();
        if (!load)
            throw to_api_error(load.error());
        info.set_engine_version(std::string("cleave ") + cleave::version_string());
        info.set_api_version("vllm");
        info.set_proto_version("0.6.0"); // of the schema: see examples/proto/NOTICE
        info.set_instance_id(instance_);
        auto &parallelism = *info.mutable_parallelism();
        parallelism.set_tensor_parallel_size(1);
        parallelism.set_pipeline_parallel_size(1);
        parallelism.set_data_parallel_size(1);
        parallelism.set_data_parallel_size_local(1);
        parallelism.set_decode_context_parallel_size(1);
        parallelism.set_world_size(1);
        info.set_max_model_len(context_.host.about.max_context_tokens);
        info.set_kv_block_size(load->block_tokens);
        info.set_effective_attention_block_size(load->block_tokens);
        info.set_total_kv_blocks(load->blocks_total);
        info.set_max_running_requests(load->max_sequences);
        const std::uint32_t most = context_.host.options.max_batch_tokens;
        info.set_max_batched_tokens(most != 0 ? most : 512); // the library's default, which the engine may tune on a device
        info.mutable_rl_capabilities();
    }

    GrpcContext &context_;
    const std::string instance_ = "cleave-" + std::to_string(random_salt()); // a name for this process
};
