// The workers that a front knows. See "Workers" in ../README.md.
#ifndef REGISTRY_HPP
#define REGISTRY_HPP

#include "http.hpp"

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

class Registry {
    struct Worker;

public:
    /// A worker for a request. While it lives the request counts as in the worker's hands.
    class Lease {
    public:
        Lease(Registry &registry, std::shared_ptr<Worker> worker);
        ~Lease();
        Lease(const Lease &) = delete;
        Lease &operator=(const Lease &) = delete;

        const std::string &url() const { return url_; }
        /// Whether it is alive, as far as is known.
        bool up() const;
        /// Its connection broke: it is dead until it reports again.
        void broke();

    private:
        Registry &registry_;
        std::shared_ptr<Worker> worker_;
        std::string url_;
    };

    /// Takes a worker's report; gives what the worker gets to hear. Throws ApiError.
    std::string report(const std::string &body);
    /// What the worker has in hand goes on.
    void leave(const std::string &url);
    std::string list() const; // GET /workers

    /// Throws ApiError if there are workers and none, up or dead, has the model. Empty: any will do.
    void require_model(const std::string &model) const;

    /// The decode worker with the fewest requests that has the model, but not the one at `except`; NULL if none is up.
    std::unique_ptr<Lease> take_decode(const std::string &model, const std::string &except);
    /// The prefill worker with the fewest requests that `decode` can import from; NULL if there is none.
    std::unique_ptr<Lease> take_prefill(const Lease &decode);

    /// The models of decode workers that are up.
    std::vector<std::string> models() const;
    std::size_t count(const std::string &role) const; // of those that are up

private:
    struct Worker {
        std::string url, role, model, address;
        std::uint64_t running = 0, waiting = 0;
        json paired = json::object();
        Clock::time_point seen;
        bool broken = false;
        int requests = 0; // in hand of this front

        bool up() const;
    };

    template <class Suits> std::unique_ptr<Lease> take(Suits suits);

    mutable std::mutex mutex_; // over what follows, and what is in it
    std::map<std::string, std::shared_ptr<Worker>> workers_; // by URL
};

#endif
