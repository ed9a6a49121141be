// The workers that a front knows. See "Workers" in ../README.md.
#pragma once

#include "openai.hpp"

struct Worker {
    json report; // its last; guarded by the registry
    std::atomic<Clock::time_point> alive_until;
    std::atomic<int> requests{0}; // in hand of this front

    /// Whether it is alive, as far as is known. One whose connection breaks is not, until it reports again.
    bool up() const { return Clock::now() < alive_until.load(); }
    void broke() { alive_until = Clock::time_point(); }
};

/// A worker for a request, which counts as in its hands for as long.
struct Lease {
    explicit Lease(std::shared_ptr<Worker> w) : worker(std::move(w)), url(worker->report["url"]) { worker->requests++; }
    ~Lease() { worker->requests--; }
    Lease(const Lease &) = delete;
    Lease &operator=(const Lease &) = delete;

    const std::shared_ptr<Worker> worker;
    const std::string url;
};

class Registry {
public:
    /// Takes a worker's report; gives what the worker gets to hear. Throws ApiError.
    json report(const std::string &body)
    {
        json report = {{"model", ""}, {"address", ""}, {"running", 0}, {"waiting", 0}, {"paired", json::object()}};
        report.update(parse_object(body));
        const json url = report["url"], role = report["role"];
        const bool texts = url.is_string() && report["model"].is_string() && report["paired"].is_object();
        if (!texts || (role != "prefill" && role != "decode"))
            throw invalid(nullptr, "not a worker's report");
        json workers = json::array();
        const std::lock_guard<std::mutex> lock(mutex_);
        auto &worker = workers_[url];
        if (!worker)
            worker = std::make_shared<Worker>();
        worker->report = std::move(report);
        worker->alive_until = Clock::now() + std::chrono::seconds(2);
        for (const auto &known : workers_)
            if (known.second->up()) {
                json &known_worker = workers.emplace_back(json::object());
                for (const char *field : {"url", "role", "model", "address"})
                    known_worker[field] = known.second->report[field];
            }
        return {{"workers", workers}};
    }

    /// Forgets a worker, and waits until it has no request in hand. Those that were to go there still do: the worker
    /// serves until it hears that nothing more comes, or until its 10 s are over.
    void leave(const std::string &url)
    {
        std::shared_ptr<Worker> worker;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            const auto found = workers_.find(url);
            if (found == workers_.end())
                return;
            worker = found->second;
            workers_.erase(found);
        }
        worker->alive_until = Clock::now() + std::chrono::seconds(12);
        while (worker->requests > 0 && worker->up())
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }

    /// GET /workers
    json list() const
    {
        json workers = json::array();
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const auto &known : workers_) {
            json worker = known.second->report;
            worker.erase("address");
            worker["state"] = known.second->up() ? "up" : "dead";
            worker["requests"] = known.second->requests.load();
            workers.push_back(std::move(worker));
        }
        return {{"workers", workers}};
    }

    /// The decode worker with the fewest requests that has the model (empty: any), but not the one at `except`; NULL if
    /// none is up. Throws ApiError if no worker, up or dead, has the model.
    std::unique_ptr<Lease> take_decode(const std::string &model, const std::string &except = {})
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        bool known = workers_.empty() || model.empty();
        auto lease = take("decode", [&](const json &report) {
            known = known || report["model"] == model;
            return report["url"] != except && (model.empty() || report["model"] == model);
        });
        if (!known)
            throw no_such_model(model);
        return lease;
    }

    /// The prefill worker with the fewest requests that `decode` can import from; NULL if there is none.
    std::unique_ptr<Lease> take_prefill(const Lease &decode)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const json &importer = decode.worker->report;
        return take("prefill", [&](const json &report) {
            const std::string url = report["url"];
            return report["model"] == importer["model"] && importer["paired"].contains(url);
        });
    }

    /// The models of decode workers that are up.
    std::vector<std::string> models() const
    {
        std::set<std::string> out;
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const auto &known : workers_)
            if (known.second->up() && known.second->report["role"] == "decode")
                out.insert(known.second->report["model"].get<std::string>());
        return {out.begin(), out.end()};
    }

    /// OpenMetrics text.
    std::string metrics() const
    {
        std::map<std::string, int> up{{"prefill", 0}, {"decode", 0}};
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const auto &known : workers_)
            up[known.second->report["role"]] += known.second->up() ? 1 : 0;
        std::string out;
        for (const auto &[role, n] : up)
            out += "cleave_front_workers{role=\"" + role + "\"} " + std::to_string(n) + "\n";
        return out;
    }

private:
    template <class Suits> std::unique_ptr<Lease> take(const char *role, Suits suits)
    {
        std::shared_ptr<Worker> best;
        for (const auto &known : workers_) {
            const auto &worker = known.second;
            if (worker->report["role"] == role && suits(worker->report) && worker->up() &&
                (!best || worker->requests < best->requests))
                best = worker;
        }
        return best ? std::make_unique<Lease>(best) : nullptr;
    }

    mutable std::mutex mutex_; // over what follows, and the reports in it
    std::map<std::string, std::shared_ptr<Worker>> workers_; // by URL
};
