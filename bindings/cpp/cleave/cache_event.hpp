// Events of a cache's prefix index, for routers.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_CACHE_EVENT_HPP
#define CLEAVE_CACHE_EVENT_HPP

#include "enums.hpp"
#include "owner.hpp"
#include "span.hpp"

#include <algorithm>
#include <vector>

namespace cleave {

/// Type of a cache event. Skip types that you do not know.
enum class CacheEventType : std::uint32_t {
    None = 0, // of a CacheEvent that no cache has written
    Stored = CLEAVE_CACHE_EVENT_STORED,
    Removed = CLEAVE_CACHE_EVENT_REMOVED,
    Cleared = CLEAVE_CACHE_EVENT_CLEARED,
};

/// Memory that holds a cache's blocks.
enum class Medium : std::uint32_t {
    Cpu = CLEAVE_MEDIUM_CPU,
    Gpu = CLEAVE_MEDIUM_GPU,
};

/// A change of a cache's prefix index.
struct CacheEvent : cleave_cache_event_t {
    CacheEventType type() const noexcept { return static_cast<CacheEventType>(cleave_cache_event_t::type); }
    Medium medium() const noexcept { return static_cast<Medium>(cleave_cache_event_t::medium); }
};

static_assert(sizeof(CacheEvent) == sizeof(cleave_cache_event_t), "a cache event adds methods only");

/// A reader of one cache's events: the events read last, and the number of the next one. For one thread at a time.
class CacheEvents {
public:
    /// A reader that begins with event number `next` and takes up to `capacity` events with `tokens` tokens at once.
    explicit CacheEvents(std::uint64_t next = 1, std::size_t capacity = 256, std::size_t tokens = 16384)
        : next_(next), events_(capacity), tokens_(tokens)
    {
    }

    /// The events read last, in order; after a snapshot, a Stored event for each block in the index.
    Span<const CacheEvent> events() const noexcept { return {events_.data(), read_}; }
    /// Tokens of the block that a Stored event among them is about.
    Span<const std::int32_t> tokens(const CacheEvent &event) const noexcept
    {
        return {tokens_.data() + event.tokens_begin, event.n_tokens};
    }
    /// Number of the event to read next.
    std::uint64_t next() const noexcept { return next_; }

private:
    friend class Cache;

    Result<void> read(cleave_cache_t *cache, std::chrono::milliseconds timeout) noexcept
    {
        cleave_error_t error;
        auto range = detail::sized<cleave_cache_event_range_t>();
        read_ = 0;
        if (cleave_cache_events(cache, next_, events_.data(), sizeof(CacheEvent), events_.size(), tokens_.data(),
                                tokens_.size(), detail::to_ms(timeout), &range, &error) != CLEAVE_OK)
            return Error(error);
        read_ = static_cast<std::size_t>(range.n_events);
        next_ = range.next;
        return {};
    }

    Result<void> snapshot(cleave_cache_t *cache)
    {
        cleave_error_t error;
        auto range = detail::sized<cleave_cache_event_range_t>();
        read_ = 0;
        for (;;) {
            const cleave_status_t status =
                cleave_cache_event_snapshot(cache, events_.data(), sizeof(CacheEvent), events_.size(), tokens_.data(),
                                            tokens_.size(), &range, &error);
            const auto n_events = static_cast<std::size_t>(range.n_events), n_tokens = static_cast<std::size_t>(range.n_tokens);
            if (status == CLEAVE_ERR_INVALID_ARGUMENT && (n_events > events_.size() || n_tokens > tokens_.size())) {
                // The index may grow before the next call.
                events_.resize(std::max(events_.size(), n_events + n_events / 8));
                tokens_.resize(std::max(tokens_.size(), n_tokens + n_tokens / 8));
                continue;
            }
            if (status != CLEAVE_OK)
                return Error(error);
            read_ = n_events;
            next_ = range.next;
            return {};
        }
    }

    std::uint64_t next_;
    std::size_t read_ = 0;
    std::vector<CacheEvent> events_;
    std::vector<std::int32_t> tokens_;
};

} // namespace cleave

#endif
