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

/// Takes what the library has to say. There is one sink per process: a later one replaces it, and the end of one that
/// was replaced changes nothing. Once a sink has ended or was replaced its function is called no more.
///
/// The function is called by one thread of the library's own, never twice at once. It must return, must not throw, and
/// may use everything but LogSink: install is refused there, and a sink that ends there stays, its function with it.
class LogSink {
public:
    /// One line of `target`, a part of the library. Both texts are UTF-8 and valid during the call only.
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

    /// Sends messages of `max_level` and below to `function`. Waits for what is queued for the sink before it.
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

    /// Ends the sink, once it has got what is queued for it.
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
