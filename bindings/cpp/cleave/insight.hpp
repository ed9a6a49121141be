// Metrics and the audit of blocks.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_INSIGHT_HPP
#define CLEAVE_INSIGHT_HPP

#include "enums.hpp"
#include "owner.hpp"

#include <string>

namespace cleave {

/// Counters of one engine since it was created, and those of its cache.
struct Metrics : cleave_metrics_t {
    using Time = std::chrono::nanoseconds;

    /// Role of the last step.
    Role role() const noexcept { return static_cast<Role>(cleave_metrics_t::role); }
    Time busy() const noexcept { return Time(busy_ns); }
    Time last_step_age() const noexcept { return Time(last_step_age_ns); }
    Time handoff_total() const noexcept { return Time(handoff_ns_total); }
    Time handoff_last() const noexcept { return Time(handoff_ns_last); }
    Time step_last() const noexcept { return Time(step_ns_last); }
    Time step_max() const noexcept { return Time(step_ns_max); }
    Time export_last() const noexcept { return Time(export_ns_last); }
    Time role_switch_last() const noexcept { return Time(role_switch_ns_last); }
    Time kv_exposed_total() const noexcept { return Time(kv_exposed_ns_total); }
    Time kv_exposed_last() const noexcept { return Time(kv_exposed_ns_last); }
};

/// Load of one engine, for routers and planners.
struct Load : cleave_engine_load_t {
    /// Role in effect: the last step was planned under it.
    Role role() const noexcept { return static_cast<Role>(cleave_engine_load_t::role); }
    /// Role that was set last. It takes effect with the next step, and is then equal to role().
    Role role_requested() const noexcept { return static_cast<Role>(cleave_engine_load_t::role_requested); }
    /// Time since which role() is in effect.
    std::chrono::steady_clock::time_point role_since() const noexcept
    {
        return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(role_since_ns));
    }
    bool draining() const noexcept { return (flags & CLEAVE_LOAD_DRAINING) != 0; }
    bool failed() const noexcept { return (flags & CLEAVE_LOAD_FAILED) != 0; }
};

/// Blocks of a cache by owner.
struct Audit : cleave_audit_t {};

/// Replaces the content of `out` by the metrics of all engines and caches of the process: OpenMetrics text without the final
/// `# EOF`, for a scrape endpoint. docs/metrics.md lists the families.
inline Result<void> metrics_text(std::string &out)
{
    return detail::fill(out, out.capacity() + 4096, cleave_metrics_text);
}
inline Result<std::string> metrics_text()
{
    std::string out;
    const auto done = metrics_text(out);
    if (!done)
        return done.error();
    return out;
}

} // namespace cleave

#endif
