// Threads that run short jobs, now or later. Requests take turns on them, so no request needs a thread of its own.
#pragma once

#include "../clock.hpp"

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

class Executor {
public:
    /// The threads live as long as the process, and so must the executor.
    explicit Executor(unsigned threads)
    {
        for (unsigned i = 0; i < threads; i++)
            std::thread([this] { run(); }).detach();
    }

    /// Runs a job, which must not throw, as soon as a thread is free.
    void post(std::function<void()> job) { after(Clock::duration(0), std::move(job)); }

    /// Runs a job when `delay` is over.
    void after(Clock::duration delay, std::function<void()> job)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        jobs_.emplace(Clock::now() + delay, std::move(job));
        changed_.notify_one();
    }

private:
    [[noreturn]] void run()
    {
        for (std::unique_lock<std::mutex> lock(mutex_);;) {
            if (jobs_.empty()) {
                changed_.wait(lock);
                continue;
            }
            const auto due = jobs_.begin()->first;
            if (due > Clock::now()) {
                changed_.wait_until(lock, due);
                continue;
            }
            auto job = jobs_.extract(jobs_.begin());
            lock.unlock();
            job.mapped()();
            job = {}; // what the job holds ends before the lock is taken
            lock.lock();
        }
    }

    std::mutex mutex_; // guards the members below
    std::condition_variable changed_;
    std::multimap<Clock::time_point, std::function<void()>> jobs_; // by the time when they are due
};
