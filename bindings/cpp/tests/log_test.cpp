// The log: one sink per process, and its lifetime.
#include "support.hpp"

#include <memory>
#include <mutex>
#include <thread>

using namespace cleave;

namespace {

/// Messages that one sink received. Read them after the sink has been removed.
struct Seen {
    std::vector<std::string> lines;
    LogSink::Function sink()
    {
        return [this](LogLevel level, const char *target, const char *message) {
            lines.push_back(std::string(to_string(level)) + " " + target + " " + message);
        };
    }
};

class Log : public WithModel {
protected:
    /// Makes the library log a message at Debug.
    static void say() { EXPECT_FALSE(Model::load("/no/such/directory")); }
};

TEST_F(Log, ASinkGetsWhatIsSaidWhileItLives)
{
    Seen seen;
    {
        const LogSink sink = must(LogSink::install(LogLevel::Trace, seen.sink()));
        EXPECT_TRUE(sink);
        say();
    }
    const std::size_t n = seen.lines.size();
    EXPECT_GT(n, 0u);
    say();
    EXPECT_EQ(seen.lines.size(), n);
}

TEST_F(Log, ALaterSinkReplacesAnEarlierOne)
{
    Seen first, second;
    {
        LogSink late;
        {
            const LogSink early = must(LogSink::install(LogLevel::Trace, first.sink()));
            late = must(LogSink::install(LogLevel::Trace, second.sink()));
            say();
        } // ending the replaced sink changes nothing
        const std::size_t n = first.lines.size();
        say();
        EXPECT_EQ(first.lines.size(), n);
    }
    EXPECT_GT(second.lines.size(), first.lines.size());
    EXPECT_FALSE(second.lines.empty());
}

TEST_F(Log, MovesAndEndsOnce)
{
    auto seen = std::make_unique<Seen>();
    LogSink sink = must(LogSink::install(LogLevel::Debug, seen->sink()));
    LogSink moved = std::move(sink);
    EXPECT_FALSE(sink); // NOLINT
    LogSink &same = moved;
    moved = std::move(same);
    EXPECT_TRUE(moved);
    say();
    moved.reset();
    moved.reset();
    EXPECT_FALSE(moved);
    seen.reset(); // a sink that is still called would write to freed memory
    say();
}

TEST_F(Log, WhatIsRefusedLeavesTheSinkAsItIs)
{
    Seen seen;
    LogSink sink = must(LogSink::install(LogLevel::Trace, seen.sink()));
    EXPECT_EQ(LogSink::install(LogLevel::Off, seen.sink()).status(), Status::InvalidArgument);
    EXPECT_EQ(LogSink::install(LogLevel::Info, nullptr).status(), Status::InvalidArgument);
    EXPECT_EQ(LogSink::install(static_cast<LogLevel>(6), seen.sink()).status(), Status::InvalidArgument);
    say();
    sink.reset();
    const std::size_t n = seen.lines.size();
    EXPECT_GT(n, 0u);
    say();
    EXPECT_EQ(seen.lines.size(), n);
}

TEST_F(Log, ASinkMayUseTheLibraryButNotTheLog)
{
    Status install = Status::Ok;
    std::uint32_t total = 0;
    {
        const LogSink sink = must(LogSink::install(LogLevel::Trace, [&](LogLevel, const char *, const char *) {
            install = LogSink::install(LogLevel::Info, [](LogLevel, const char *, const char *) {}).status();
            total = must(cache.audit()).total;
        }));
        say();
    }
    EXPECT_EQ(install, Status::InvalidArgument);
    EXPECT_GT(total, 0u);
}

TEST_F(Log, SinksComeAndGoWhileOthersSpeak)
{
    std::atomic<bool> stop{false};
    std::vector<std::thread> speakers;
    for (int i = 0; i < 2; i++)
        speakers.emplace_back([&stop] {
            while (!stop)
                say();
        });
    std::vector<std::thread> installers;
    for (int i = 0; i < 2; i++)
        installers.emplace_back([] {
            for (int k = 0; k < 50; k++) {
                auto seen = std::make_unique<Seen>();
                LogSink sink = must(LogSink::install(LogLevel::Trace, seen->sink()));
                std::this_thread::yield();
                sink.reset();
            }
        });
    for (auto &thread : installers)
        thread.join();
    stop = true;
    for (auto &thread : speakers)
        thread.join();
}

} // namespace
