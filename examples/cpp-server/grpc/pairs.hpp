// Connections to the caches of prefill workers, which are set up while the first import from each finds a way by itself.
#pragma once

#include "../engine.hpp"

#include <deque>
#include <set>

class Pairs {
public:
    explicit Pairs(EngineHost &host) : host_(host)
    {
        std::thread([this] { run(); }).detach();
    }

    /// Sets up the connection to a cache that was not seen before, in a thread of its own.
    void pair(const std::vector<std::uint8_t> &address)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (address.empty() || known_.count(address) != 0)
            return;
        if (order_.size() == most) {
            if (std::find(waiting_.begin(), waiting_.end(), order_.front()) != waiting_.end())
                return; // there are more of them than can be tried
            known_.erase(order_.front());
            order_.pop_front();
        }
        known_.insert(address);
        order_.push_back(address);
        waiting_.push_back(address);
        changed_.notify_one();
    }

private:
    using Address = std::vector<std::uint8_t>;

    [[noreturn]] void run()
    {
        for (std::unique_lock<std::mutex> lock(mutex_);;) {
            changed_.wait(lock, [this] { return !waiting_.empty(); });
            const Address address = std::move(waiting_.front());
            waiting_.pop_front();
            lock.unlock();
            const bool paired = connect(address);
            lock.lock();
            if (!paired && known_.erase(address) != 0) // the next ticket from there tries again
                order_.erase(std::find(order_.begin(), order_.end(), address));
        }
    }

    /// Returns whether KV can be had from there.
    bool connect(const Address &address)
    {
        const auto report = host_.cache.pair(address);
        const bool paired = report && report->status() == cleave::Status::Ok;
        const std::string detail(report ? report->detail() : report.error().message());
        if (paired)
            std::fprintf(stderr, "KV from a prefill worker: %s, %.1f GB/s\n", detail.c_str(), static_cast<double>(report->bytes_per_second) / 1e9);
        else
            std::fprintf(stderr, "no KV from a prefill worker: %s\n", detail.c_str());
        return paired;
    }

    static constexpr std::size_t most = 64; // addresses that are remembered

    EngineHost &host_;
    std::mutex mutex_; // guards the members below
    std::condition_variable changed_;
    std::set<Address> known_;
    std::deque<Address> order_;   // the same, oldest first
    std::deque<Address> waiting_; // those to be tried
};
