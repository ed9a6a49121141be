// The workers that a front knows. See "Workers" in ../README.md.
#pragma once

#include "fields.hpp"
#include "service.hpp"

#include <httplib.h>

#include <thread>

constexpr std::chrono::seconds silence(5); // a worker that is silent for longer is dead
constexpr std::chrono::seconds leave_timeout(600); // at most, for the requests of a worker that leaves

struct Worker {
    json report; // the last report; guarded by the registry
    std::atomic<Clock::time_point> alive_until;
    std::atomic<bool> reachable{false}; // its /health has answered since the last connection broke
    std::atomic<bool> asked{false};     // a /health request is in progress
    std::atomic<int> requests{0};       // open requests that this front has sent it

    bool up() const { return reachable && Clock::now() < alive_until.load(); }
    void broke() { reachable = false; }
};

/// A worker reserved for a request. The request counts as the worker's while this object lives.
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
    /// Workers that have been dead for longer than `forget_after` are forgotten.
    explicit Registry(std::chrono::seconds forget_after) : forget_after_(forget_after) {}

    /// Takes a worker's report and returns the workers that are up. Throws ApiError.
    json report(const std::string &body)
    {
        json report = {{"model", ""}, {"address", ""}, {"running", 0}, {"waiting", 0}, {"paired", json::object()}};
        report.update(parse_object(body));
        const json url = report["url"], role = report["role"];
        const bool texts = url.is_string() && url.get<std::string>().rfind("http://", 0) == 0 &&
                           report["model"].is_string() && report["paired"].is_object();
        if (!texts || (role != "prefill" && role != "decode"))
            throw invalid(nullptr, "not a worker's report");
        json workers = json::array();
        const std::lock_guard<std::mutex> lock(mutex_);
        auto &worker = workers_[url];
        if (!worker)
            worker = std::make_shared<Worker>();
        worker->report = std::move(report);
        worker->alive_until = Clock::now() + silence;
        if (!worker->reachable && !worker->asked.exchange(true))
            std::thread([worker = worker, url = url.get<std::string>()] { ask_health(*worker, url); }).detach();
        forget_the_dead();
        for (const auto &known : workers_)
            if (known.second->up()) {
                json &known_worker = workers.emplace_back(json::object());
                for (const char *field : {"url", "role", "model", "address"})
                    known_worker[field] = known.second->report[field];
            }
        return {{"workers", workers}};
    }

    /// Forgets the worker that `body` names, and waits until it has none of this front's requests. The worker serves
    /// until this call returns, or until the `seconds` in `body` are over. If it vanishes, its requests end a little later.
    /// Throws ApiError.
    void leave(const std::string &body)
    {
        const std::chrono::duration<double> most(leave_timeout);
        const json request = parse_object(body);
        check_fields(request, "", {{"url", Rule::String}, {"seconds", Rule::Number, 0, max_count}});
        const std::string url = request.value("url", "");
        const std::chrono::duration<double> left(std::min(request.value("seconds", most.count()), most.count()));
        std::shared_ptr<Worker> worker;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            const auto found = workers_.find(url);
            if (found == workers_.end())
                return;
            worker = found->second;
            workers_.erase(found);
        }
        worker->alive_until =
            Clock::now() + std::min<Clock::duration>(std::chrono::duration_cast<Clock::duration>(left) + silence, leave_timeout);
        while (worker->requests > 0 && worker->up())
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }

    /// GET /workers
    json list()
    {
        json workers = json::array();
        const std::lock_guard<std::mutex> lock(mutex_);
        forget_the_dead();
        for (const auto &known : workers_) {
            json worker = known.second->report;
            worker.erase("address");
            worker["state"] = known.second->up() ? "up" : "dead";
            worker["requests"] = known.second->requests.load();
            workers.push_back(std::move(worker));
        }
        return {{"workers", workers}};
    }

    /// Returns the decode worker with the fewest requests that has the model (empty: any), but not the one at `except`.
    /// Returns NULL if none is up. Throws ApiError if no worker, up or dead, has the model.
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

    /// Returns the prefill worker with the fewest requests that `decode` can import from, or NULL if there is none.
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

    Metrics::Samples metrics() const
    {
        Metrics::Samples up;
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const std::string role : {"prefill", "decode"}) {
            double &n = up["cleave_front_workers{role=\"" + role + "\"}"];
            for (const auto &known : workers_)
                n += known.second->up() && known.second->report["role"] == role ? 1 : 0;
        }
        return up;
    }

private:
    /// Checks whether a worker that reports can be reached.
    static void ask_health(Worker &worker, const std::string &url)
    {
        httplib::Client client(url);
        client.set_connection_timeout(1);
        client.set_read_timeout(1);
        const auto answer = client.Get("/health");
        worker.reachable = answer && answer->status == 200;
        worker.asked = false;
    }

    void forget_the_dead()
    {
        for (auto at = workers_.begin(); at != workers_.end();) {
            const bool long_dead = Clock::now() - at->second->alive_until.load() > forget_after_;
            at = long_dead ? workers_.erase(at) : std::next(at);
        }
    }

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

    const std::chrono::seconds forget_after_;
    mutable std::mutex mutex_; // guards the members below, and the reports in them
    std::map<std::string, std::shared_ptr<Worker>> workers_; // by URL
};
