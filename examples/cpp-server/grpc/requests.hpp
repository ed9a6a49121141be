// Requests that run, by the ids that clients gave them.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

/// Reason for which a request ends before its answer is complete.
enum class Cause {
    Aborted,      // the client has asked for it
    ShuttingDown, // the server ends
    ClientGone,
};

/// A request that can be ended by others.
class Endable {
public:
    virtual ~Endable() = default;
    /// Ends the request. Any thread may call this at any time; only the first call counts.
    virtual void end(Cause cause) = 0;
};

class Requests {
public:
    /// Adds a request under an id, which others may have too. It stays until the result is destroyed.
    std::shared_ptr<void> add(const std::string &id, std::weak_ptr<Endable> request)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto place = by_id_.emplace(id, std::move(request));
        return {static_cast<void *>(nullptr), [this, place](void *) {
                    const std::lock_guard<std::mutex> lock(mutex_);
                    by_id_.erase(place);
                }};
    }

    /// Ends the requests with an id. Those that have none cannot be named.
    void abort(const std::string &id)
    {
        if (!id.empty())
            end(id, Cause::Aborted, [this](const std::string &named) { return by_id_.equal_range(named); });
    }

    /// Ends all requests.
    void end_all(Cause cause)
    {
        end({}, cause, [this](const std::string &) { return std::make_pair(by_id_.begin(), by_id_.end()); });
    }

private:
    template <class Find> void end(const std::string &id, Cause cause, Find find)
    {
        std::vector<std::shared_ptr<Endable>> found; // ended without the lock, which a request takes when it is destroyed
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (auto [at, last] = find(id); at != last; ++at)
                if (auto request = at->second.lock())
                    found.push_back(std::move(request));
        }
        for (const auto &request : found)
            request->end(cause);
    }

    std::mutex mutex_; // guards the member below
    std::multimap<std::string, std::weak_ptr<Endable>> by_id_;
};
