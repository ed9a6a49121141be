// Switches of the engine's role while it serves. No protocol is known here.
#pragma once

#include "clock.hpp"
#include "generation.hpp"

/// One switch at a time, without a thread that waits for it.
class RoleSwitch {
public:
    explicit RoleSwitch(EngineHost &host) : host_(host) {}

    /// Asks for a role. Returns the engine's load once the role is in effect, which proves it; without a result, ask
    /// again. Another switch comes first until its caller is `done`: callers are told apart by `caller`. Throws ApiError.
    std::optional<cleave::Load> ask(cleave::Role role, const void *caller)
    {
        if (host_.has_failed)
            throw unavailable("the engine has failed");
        const std::lock_guard<std::mutex> lock(mutex_);
        if (turn_ == nullptr) {
            const auto set = host_.engine.set_role(role);
            if (!set)
                throw to_api_error(set.error());
            host_.role = role;
            turn_ = caller;
        }
        if (turn_ != caller)
            return std::nullopt;
        const auto load = host_.engine.load();
        if (!load)
            throw to_api_error(load.error());
        return load->role() == role ? std::optional<cleave::Load>(*load) : std::nullopt;
    }

    /// Time since 1970 at which the role took effect. The difference between the clocks is taken once, so that a moment is
    /// always told alike.
    std::chrono::nanoseconds since_1970(const cleave::Load &load) const { return load.role_since().time_since_epoch() + between_clocks_; }

    /// Ends a switch, whether the caller has seen its effect or not.
    void done(const void *caller)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (turn_ == caller)
            turn_ = nullptr;
    }

private:
    EngineHost &host_;
    const std::chrono::nanoseconds between_clocks_ = std::chrono::system_clock::now().time_since_epoch() - Clock::now().time_since_epoch();
    std::mutex mutex_; // guards the member below
    const void *turn_ = nullptr; // the caller whose switch is under way
};
