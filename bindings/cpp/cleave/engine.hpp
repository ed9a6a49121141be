// Engines and submission.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_ENGINE_HPP
#define CLEAVE_ENGINE_HPP

#include "cache.hpp"
#include "queue.hpp"
#include "request.hpp"

namespace cleave {

/// Configuration of an engine. Every field may be left as it is.
struct EngineConfig {
    Role role = Role::Mixed;
    /// Sequences that run at once; 0: 64.
    std::uint32_t max_sequences = 0;
    /// Tokens that a step computes at most; 0: 512, on a CUDA device as many prompt tokens as are measured to saturate it.
    std::uint32_t max_batch_tokens = 0;
    /// Threads that compute; 0: the CPUs of cpu_mask, else those that the process may run on.
    std::uint32_t threads = 0;
    /// Further flags of the C header; none yet.
    std::uint32_t flags = 0;
    /// Accepted requests that wait beyond those that run, before WouldBlock; 0: 1024.
    std::uint32_t max_waiting = 0;
    /// While the role is decode: a prompt with more tokens to compute is refused with PrefillElsewhere; 0: no limit.
    std::uint32_t local_prefill_tokens = 0;
    /// CPUs that the engine's threads may run on: CPU i is bit i % 64 of cpu_mask[i / 64]. All zero: any.
    std::array<std::uint64_t, 16> cpu_mask{};
    /// Share of a CUDA device's multiprocessors that the engine's kernels run on, in percent; 0 or 100: all.
    std::uint32_t sm_percent = 0;

    cleave_engine_config_t to_c() const noexcept
    {
        auto config = detail::sized<cleave_engine_config_t>();
        config.role = cleave::to_c(role);
        config.max_sequences = max_sequences;
        config.max_batch_tokens = max_batch_tokens;
        config.threads = threads;
        config.flags = flags;
        config.max_waiting = max_waiting;
        config.local_prefill_tokens = local_prefill_tokens;
        for (std::size_t i = 0; i < cpu_mask.size(); i++)
            config.cpu_mask[i] = cpu_mask[i];
        config.sm_percent = sm_percent;
        return config;
    }
};

/// Outcome of submitting several requests: they are accepted in order, up to the first one that is refused.
struct Submitted {
    /// Ids of the accepted requests, in the memory of the Packer: valid until its next use.
    Span<const RequestId> ids{};
    /// Error of the first refused request; Ok if none was refused.
    Error error{};

    std::size_t accepted() const noexcept { return ids.size(); }
    Status status() const noexcept { return error.code(); }
    /// Whether all were accepted.
    explicit operator bool() const noexcept { return status() == Status::Ok; }
};

/// A step loop over a cache, with a role. Ending it sends the Finished event of every open request.
class Engine : public detail::Owner<cleave_engine_t, cleave_engine_destroy> {
public:
    Engine() noexcept = default;
    static Engine adopt(cleave_engine_t *engine) noexcept { return Engine(engine); }

    /// Starts an engine over `cache` that reports to `queue`. [BLOCKING] Milliseconds.
    /// Errors: InvalidArgument, NotFound, Unsupported, OutOfMemory, WouldBlock (no place in the queue), Shutdown.
    static Result<Engine> create(const Cache &cache, const Queue &queue, const EngineConfig &config = {}) noexcept
    {
        cleave_error_t error;
        cleave_engine_t *engine = nullptr;
        const cleave_engine_config_t c = config.to_c();
        if (cleave_engine_create(cache.get(), queue.get(), &c, &engine, &error) != CLEAVE_OK)
            return Error(error);
        return Engine(engine);
    }

    /// Submits one request. If it is accepted its handle is consumed, request.kv is empty; else it is untouched. Events
    /// may be in the queue before this returns: tell requests apart by user_tag.
    /// Errors: WouldBlock (retry after a Finished event), InvalidArgument (the text names the field), NotFound, Expired,
    /// Incompatible, Unsupported, OutOfMemory, Shutdown, PrefillElsewhere.
    Result<RequestId> submit(Request &request, Packer &packer)
    {
        const Submitted done = submit(Span<Request>(&request, 1), packer);
        if (!done)
            return done.error;
        return done.ids[0];
    }
    Result<RequestId> submit(Request &request)
    {
        Packer packer;
        return submit(request, packer);
    }

    /// Submits requests at once. Of those that are accepted the handles are consumed; the others keep theirs.
    Submitted submit(Span<Request> requests, Packer &packer)
    {
        packer.clear();
        for (const Request &request : requests) {
            packer.add(request);
            detail::before(detail::place_of(request.user_tag));
        }
        const auto packed = packer.requests();
        const auto tokens = packer.tokens();
        const auto ids = packer.ids();
        cleave_error_t error;
        std::size_t accepted = 0;
        const cleave_status_t status = cleave_engine_submit(get(), packed.data(), packed.size(), tokens.data(), tokens.size(),
                                                     ids.data(), &accepted, &error);
        for (Request &request : Span<Request>(requests.data(), accepted))
            static_cast<void>(request.kv.take());
        return {ids.first(accepted), status == CLEAVE_OK ? Error() : Error(error)};
    }

    /// Asks to end a request with Finished (Error, Cancelled) at the next step boundary. Returns Ok or NotFound for a request
    /// that has ended meanwhile.
    Result<void> cancel(RequestId id) noexcept
    {
        cleave_error_t error;
        return detail::result_of(cleave_engine_cancel(get(), id, &error), error);
    }

    /// Asks to stop a generation at the next step boundary and to hand it over: Finished (Exported) carries the handle.
    Result<void> export_kv(RequestId id) noexcept
    {
        cleave_error_t error;
        return detail::result_of(cleave_engine_export(get(), id, &error), error);
    }

    /// Changes the role from the next step boundary on. Errors: InvalidArgument, NotFound, Shutdown.
    Result<void> set_role(Role role) noexcept
    {
        cleave_error_t error;
        return detail::result_of(cleave_engine_set_role(get(), cleave::to_c(role), &error), error);
    }

    /// Changes the share of a CUDA device's multiprocessors, from the next step boundary on; 0 or 100: all. [BLOCKING]
    /// Milliseconds. Errors, after which the share is as it was: InvalidArgument, Unsupported, OutOfMemory, Device.
    Result<void> set_sm_percent(std::uint32_t sm_percent) noexcept
    {
        cleave_error_t error;
        return detail::result_of(cleave_engine_set_sm_percent(get(), sm_percent, &error), error);
    }

    /// Refuses new requests (Shutdown) from now on and waits until all accepted ones have ended. Go on polling
    /// meanwhile. [BLOCKING] Errors: Timeout (still draining; call again), NotFound, Shutdown (ended meanwhile).
    Result<void> drain(std::chrono::milliseconds timeout = forever) noexcept
    {
        cleave_error_t error;
        return detail::result_of(cleave_engine_drain(get(), detail::to_ms(timeout), &error), error);
    }

    /// Reads the counters of the engine and its cache, without stopping it.
    Result<Metrics> metrics() const noexcept
    {
        return detail::read_info<Metrics, cleave_metrics_t>(
            [&](cleave_metrics_t *out, cleave_error_t *err) { return cleave_engine_metrics(get(), out, err); });
    }

    /// Reads the load of the engine, without waiting for a step. After set_role it proves the switch: once role() is equal to
    /// role_requested(), which takes at most one step, the role is in effect.
    Result<Load> load() const noexcept
    {
        return detail::read_info<Load, cleave_engine_load_t>(
            [&](cleave_engine_load_t *out, cleave_error_t *err) { return cleave_engine_load(get(), out, err); });
    }

private:
    explicit Engine(cleave_engine_t *engine) noexcept : Owner(engine) {}
};

} // namespace cleave

#endif
