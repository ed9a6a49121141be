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
