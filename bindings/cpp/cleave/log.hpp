// The log.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_LOG_HPP
#define CLEAVE_LOG_HPP

#include "enums.hpp"
#include "result.hpp"
#include "sync.hpp"

#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace cleave {

/// Receives the messages of the library. A process has one sink: a later one replaces it, and ending a replaced sink has no
/// effect. The function of a sink is never called after the sink has ended or was replaced.
///
/// One thread of the library calls the function, never twice at once. The function must return, must not throw, and may use
/// everything except LogSink: there install is refused, and a sink that ends stays installed together with its function.
class LogSink {
public:
    /// One line from `target`, a part of the library. Both texts are UTF-8 and valid only during the call.
    using Function = std::function<void(LogLevel level, const char *target, const char *message)>;

    LogSink() noexcept = default;
    LogSink(LogSink &&other) noexcept = default;
    LogSink &operator=(LogSink &&other) noexcept
    {
        if (this != &other) {
            reset();
            function_ = std::move(other.function_);
        }
        return *this;
    }
    ~LogSink() { reset(); }

    /// Sends messages of `max_level` and below to `function`. Waits until the previous sink has its queued messages.
    /// Errors: InvalidArgument (a level that is none or Off, no function, within a sink), OutOfMemory (no thread to be had).
    static Result<LogSink> install(LogLevel max_level, Function function)
    {
        if (max_level == LogLevel::Off || !function || in_sink())
            return Error(Status::InvalidArgument);
        LogSink sink;
        sink.function_ = std::make_unique<Function>(std::move(function));
        const std::lock_guard<std::mutex> lock(state().mutex);
        const auto function_place = reinterpret_cast<std::uintptr_t>(sink.function_.get());
        detail::before(function_place);
        cleave_error_t error;
        const auto status = cleave_log_set(to_c(max_level), call, function_place, &error);
        detail::after(reinterpret_cast<std::uintptr_t>(state().current));
        if (status != CLEAVE_OK)
            return Error(error);
        state().current = sink.function_.get();
        return sink;
    }

    /// Ends the sink after it has received its queued messages.
    void reset() noexcept
    {
        if (!function_)
            return;
        if (in_sink()) { // whoever replaces the sink waits for this thread: all that can be done is to keep the function
            static_cast<void>(function_.release());
            return;
        }
        const std::lock_guard<std::mutex> lock(state().mutex);
        if (state().current == function_.get()) {
            cleave_log_set(CLEAVE_LOG_OFF, nullptr, 0, nullptr);
            detail::after(reinterpret_cast<std::uintptr_t>(function_.get()));
            state().current = nullptr;
        }
        function_.reset();
    }

    explicit operator bool() const noexcept { return function_ != nullptr; }

private:
    struct State {
        std::mutex mutex;
        Function *current = nullptr;
    };

    static State &state() noexcept
    {
        static State state;
        return state;
    }

    /// Whether this thread is in a sink's function: there the mutex would be waited for by who holds it.
    static bool &in_sink() noexcept
    {
        static thread_local bool inside = false;
        return inside;
    }

    static void call(std::uintptr_t function, std::int32_t level, const char *target, const char *message) noexcept
    {
        detail::after(function);
        in_sink() = true;
        (*reinterpret_cast<Function *>(function))(static_cast<LogLevel>(level), target, message);
        in_sink() = false;
        detail::before(function);
    }

    std::unique_ptr<Function> function_;
};

} // namespace cleave

#endif
