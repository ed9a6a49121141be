// cleave.v1.Worker: role, load and end of a worker, for whoever runs several.
#pragma once

#include "context.hpp"
#include "unary.hpp"

#include <cleave/v1/worker.grpc.pb.h>

/// Calls that wait ask again after this time.
constexpr std::chrono::milliseconds ask_again(2);

class WorkerService final : public cleave::v1::Worker::CallbackService {
public:
    explicit WorkerService(GrpcContext &context) : context_(context) {}

    grpc::ServerUnaryReactor *GetRole(grpc::CallbackServerContext *call, const cleave::v1::GetRoleRequest *, cleave::v1::RoleState *state) override
    {
        return answer_at_once(call, "GetRole", [&] { describe(load(), *state); });
    }

    /// Switches the role, and answers once it is in effect.
    grpc::ServerUnaryReactor *SetRole(grpc::CallbackServerContext *call, const cleave::v1::SetRoleRequest *request, cleave::v1::RoleState *state) override
    {
        auto *reactor = call->DefaultReactor();
        context_.executor.post([=] { switch_role(call, reactor, *request, *state); });
        return reactor;
    }

    /// Reports what the engine is doing and has room for.
    grpc::ServerUnaryReactor *GetLoad(grpc::CallbackServerContext *call, const cleave::v1::GetLoadRequest *, cleave::v1::Load *out) override
    {
        return answer_at_once(call, "GetLoad", [&] { describe(load(), *out); });
    }

    /// Refuses new requests from now on, and answers once those that run have ended.
    grpc::ServerUnaryReactor *Drain(grpc::CallbackServerContext *call, const cleave::v1::DrainRequest *request, cleave::v1::DrainResponse *response) override
    {
        auto *reactor = call->DefaultReactor();
        const std::uint32_t seconds = request->timeout_seconds();
        const auto end = seconds > 0 ? Clock::now() + std::chrono::seconds(seconds) : Clock::time_point::max();
        context_.leave();
        context_.service.closing = true;
        context_.executor.post([=] { wait_for_requests(call, reactor, end, *response); });
        return reactor;
    }

private:
    cleave::Load load() const
    {
        const auto load = context_.host.engine.load();
        if (!load)
            throw to_api_error(load.error());
        return *load;
    }

    /// Asks for the role, once no other switch is under way, and comes back until it is in effect.
    void switch_role(grpc::CallbackServerContext *call, grpc::ServerUnaryReactor *reactor, const cleave::v1::SetRoleRequest &request,
                     cleave::v1::RoleState &state)
    {
        bool done = false;
        const auto status = guarded("SetRole", [&] {
            if (call->IsCancelled())
                throw StatusError{{grpc::StatusCode::CANCELLED, "the client is gone"}};
            const auto switched = context_.roles.ask(role_of(request.role()), call);
            done = switched.has_value();
            if (done)
                describe(*switched, state);
        });
        if (done || !status.ok()) {
            context_.roles.done(call);
            return reactor->Finish(status);
        }
        context_.executor.after(ask_again, [this, call, reactor, &request, &state] { switch_role(call, reactor, request, state); });
    }

    void wait_for_requests(grpc::CallbackServerContext *call, grpc::ServerUnaryReactor *reactor, Clock::time_point end, cleave::v1::DrainResponse &response)
    {
        const int running = context_.service.running;
        if (running == 0 || Clock::now() >= end || call->IsCancelled()) {
            response.set_running(static_cast<std::uint32_t>(running));
            return reactor->Finish(grpc::Status::OK);
        }
        context_.executor.after(ask_again, [this, call, reactor, end, &response] { wait_for_requests(call, reactor, end, response); });
    }

    static cleave::Role role_of(cleave::v1::Role role)
    {
        switch (role) {
        case cleave::v1::ROLE_MIXED: return cleave::Role::Mixed;
        case cleave::v1::ROLE_PREFILL: return cleave::Role::Prefill;
        case cleave::v1::ROLE_DECODE: return cleave::Role::Decode;
        default: throw refused("role", "must be ROLE_MIXED, ROLE_PREFILL or ROLE_DECODE");
        }
    }
    static cleave::v1::Role message_of(cleave::Role role)
    {
        switch (role) {
        case cleave::Role::Mixed: return cleave::v1::ROLE_MIXED;
        case cleave::Role::Prefill: return cleave::v1::ROLE_PREFILL;
        case cleave::Role::Decode: return cleave::v1::ROLE_DECODE;
        default: return cleave::v1::ROLE_UNSPECIFIED;
        }
    }

    void describe(const cleave::Load &load, cleave::v1::RoleState &state) const
    {
        state.set_role(message_of(load.role()));
        state.set_since_step(load.role_since_step);
        state.set_since_unix_nanos(static_cast<std::uint64_t>(context_.roles.since_1970(load).count()));
        state.set_prefilling(load.prefilling_at_switch);
        state.set_decoding(load.decoding_at_switch);
        state.set_waiting(load.waiting_at_switch);
        state.set_importing(load.importing_at_switch);
    }

    void describe(const cleave::Load &load, cleave::v1::Load &out) const
    {
        const auto metrics = context_.host.engine.metrics();
        if (!metrics)
            throw to_api_error(metrics.error());
        out.set_role(message_of(load.role()));
        out.set_prefilling(load.prefilling);
        out.set_decoding(load.decoding);
        out.set_waiting(load.waiting);
        out.set_importing(load.importing);
        out.set_exports(metrics->exports_open);
        out.set_blocks_total(load.blocks_total);
        out.set_blocks_free(load.blocks_free);
        out.set_blocks_cached(load.blocks_cached);
        out.set_block_tokens(load.block_tokens);
        out.set_max_sequences(load.max_sequences);
        out.set_max_batch_tokens(load.max_batch_tokens);
        out.set_prefill_tokens_per_second(load.prefill_tokens_per_second);
        out.set_decode_tokens_per_second(load.decode_tokens_per_second);
        out.set_draining(context_.leaving || context_.service.closing);
    }

    GrpcContext &context_;
};
