// The completion queue.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_QUEUE_HPP
#define CLEAVE_QUEUE_HPP

#include "event.hpp"
#include "owner.hpp"
#include "span.hpp"
#include "sync.hpp"

namespace cleave {

/// A completion queue. Many engines may report to one, and many threads may poll it: each event goes to one of them.
/// Ending it wakes callers of poll with Shutdown. End the engines first to get every Finished event.
class Queue : public detail::Owner<cleave_queue_t, cleave_queue_destroy> {
public:
    Queue() noexcept = default;
    static Queue adopt(cleave_queue_t *queue) noexcept { return Queue(queue); }

    /// Creates a queue that holds `capacity` events, 0 for 4096. Every accepted request keeps one place in it.
    /// Errors: InvalidArgument, Io (no file descriptor), OutOfMemory.
    static Result<Queue> create(std::uint32_t capacity = 0) noexcept
    {
        cleave_error_t error;
        cleave_queue_t *queue = nullptr;
        if (cleave_queue_create(capacity, &queue, &error) != CLEAVE_OK)
            return Error(error);
        return Queue(queue);
    }

    /// Takes queued events in order, as many as `events` has room for, and waits at most `timeout` for the first one.
    /// Returns the part of `events` that was filled, which is empty after a timeout. Does not allocate.
    /// [BLOCKING] up to the timeout. Errors: Shutdown (ended meanwhile), NotFound, InvalidArgument.
    Result<Span<Event>> poll(Span<Event> events, std::chrono::milliseconds timeout = forever) noexcept
    {
        std::size_t n = 0;
        const cleave_status_t status =
            cleave_queue_poll(get(), reinterpret_cast<cleave_event_t *>(events.data()), sizeof(Event), events.size(),
                        detail::to_ms(timeout), &n);
        if (status != CLEAVE_OK)
            return Error(static_cast<Status>(status));
        const Span<Event> got = events.first(n);
        for (const Event &event : got)
            detail::after(detail::place_of(event.user_tag()));
        return got;
    }

    /// Returns an eventfd that is readable while events are queued. It belongs to the library: watch it, but do not read,
    /// write or close it, and remove it from the loop before the queue ends.
    Result<int> fd() const noexcept
    {
        const int fd = cleave_queue_fd(get());
        if (fd < 0)
            return Error(static_cast<Status>(fd));
        return fd;
    }

private:
    explicit Queue(cleave_queue_t *queue) noexcept : Owner(queue) {}
};

} // namespace cleave

#endif
