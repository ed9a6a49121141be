// A queue between two threads.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>

template <class T> class Mailbox {
public:
    /// `arrived` is called after each item by the thread that has put it, for receivers that do not wait in `take`. It must
    /// not block.
    explicit Mailbox(std::function<void()> arrived = {}) : arrived_(std::move(arrived)) {}

    void put(T item)
    {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            items_.push_back(std::move(item));
            changed_.notify_one();
        }
        if (arrived_)
            arrived_();
    }

    /// Returns the next item, or none if there is none within `patience`.
    std::optional<T> take(std::chrono::milliseconds patience)
    {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!changed_.wait_for(lock, patience, [this] { return !items_.empty(); }))
            return std::nullopt;
        std::optional<T> item = std::move(items_.front());
        items_.pop_front();
        return item;
    }

private:
    const std::function<void()> arrived_;
    std::mutex mutex_; // guards the members below
    std::condition_variable changed_;
    std::deque<T> items_;
};
