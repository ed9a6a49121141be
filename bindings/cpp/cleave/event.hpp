// Events of engines.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_EVENT_HPP
#define CLEAVE_EVENT_HPP

#include "enums.hpp"
#include "status.hpp"

#include <chrono>
#include <cstddef>
#include <type_traits>

namespace cleave {

/// Id of an accepted request, which belongs to the engine that accepted it. 0 is no request.
using RequestId = cleave_request_t;

/// Id of a KV handle, which belongs to the cache that holds its blocks. 0 is no handle.
using KvId = cleave_kv_t;

/// A cleave_event_t with types. An array of these is an array of those.
class Event {
public:
    Event() noexcept = default;
    explicit Event(const cleave_event_t &event) noexcept : event_(event) {}

    EventType type() const noexcept { return static_cast<EventType>(event_.type); }

    /// Token, TopLogprob: the id. Others: -1.
    std::int32_t token() const noexcept { return event_.token; }
    /// Token, TopLogprob: number of the token after the prompt, from 0. Finished: how many tokens there were.
    std::uint32_t index() const noexcept { return event_.index; }
    /// Token of a request with logprobs, TopLogprob: natural logarithm.
    float logprob() const noexcept { return event_.logprob; }

    /// Finished: why.
    FinishReason finish_reason() const noexcept { return static_cast<FinishReason>(event_.finish_reason); }
    /// Finished: prompt tokens that the prefix cache had; 0 for a request that continues a handle.
    std::uint32_t cached_tokens() const noexcept { return event_.cached_tokens; }
    /// Finished: the handle's KV did not arrive and was computed here.
    bool recomputed() const noexcept { return (event_.flags & CLEAVE_EVENT_RECOMPUTED) != 0; }
    /// Ok, or the reason why the request or the import failed.
    Status status() const noexcept { return static_cast<Status>(event_.status); }

    /// The tag that the host gave with the request or the import.
    std::uint64_t user_tag() const noexcept { return event_.user_tag; }
    RequestId request() const noexcept { return event_.request; }
    /// The handle, or 0. Finished: the host submits or releases it, see Cache::take_kv. KvReady: the imported handle.
    /// KvStreamStarted: a handle that still belongs to the request, see Cache::view.
    KvId kv() const noexcept { return event_.kv; }

    /// When the event was queued.
    std::chrono::steady_clock::time_point timestamp() const noexcept
    {
        return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(event_.timestamp_ns));
    }

    const cleave_event_t &get() const noexcept { return event_; }
    cleave_event_t &get() noexcept { return event_; }

private:
    cleave_event_t event_{};
};

static_assert(sizeof(Event) == sizeof(cleave_event_t) && alignof(Event) == alignof(cleave_event_t) &&
                  std::is_standard_layout_v<Event> && std::is_trivially_copyable_v<Event>,
              "the library writes cleave_event_t into arrays of Event");

} // namespace cleave

#endif
