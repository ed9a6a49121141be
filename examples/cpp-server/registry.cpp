#include "registry.hpp"

#include <algorithm>

namespace {

constexpr std::chrono::seconds silence(2);     // a worker that says nothing for longer is dead
constexpr std::chrono::minutes forgotten(10);  // and is not listed any more
constexpr std::chrono::seconds leaving(10);    // what one that left has to finish what it has in hand

} // namespace

bool Registry::Worker::up() const { return !broken && Clock::now() - seen <= silence; }

Registry::Lease::Lease(Registry &registry, std::shared_ptr<Worker> worker)
    : registry_(registry), worker_(std::move(worker)), url_(worker_->url)
{
    worker_->requests++; // the registry's mutex is held
}

Registry::Lease::~Lease()
{
    const std::lock_guard<std::mutex> lock(registry_.mutex_);
    worker_->requests--;
}

bool Registry::Lease::up() const
{
    const std::lock_guard<std::mutex> lock(registry_.mutex_);
    return worker_->up();
}

void Registry::Lease::broke()
{
    const std::lock_guard<std::mutex> lock(registry_.mutex_);
    worker_->broken = true;
}

std::string Registry::report(const std::string &body)
{
    const json report = parse_object(body);
    Worker news;
    try {
        news.url = report.at("url");
        news.role = report.at("role");
        news.model = report.at("model");
        news.address = report.at("address");
        news.running = report.at("running");
        news.waiting = report.at("waiting");
        news.paired = report.value("paired", json::object());
        for (const auto &detail : news.paired.items())
            detail.value().get_ref<const std::string &>();
    } catch (const json::exception &error) {
        throw invalid("", std::string("not a worker's report: ") + error.what());
    }
    if (news.url.rfind("http://", 0) != 0 || (news.role != "prefill" && news.role != "decode") || !news.paired.is_object())
        throw invalid("", "not a worker's report");
    const auto now = Clock::now();
    news.seen = now;

    json workers = json::array();
    const std::lock_guard<std::mutex> lock(mutex_);
    auto &worker = workers_[news.url];
    if (!worker)
        worker = std::make_shared<Worker>();
    news.requests = worker->requests;
    *worker = news;
    for (auto at = workers_.begin(); at != workers_.end();) {
        const Worker &other = *at->second;
        if (other.up())
            workers.push_back({{"url", other.url}, {"role", other.role}, {"model", other.model}, {"address", other.address}});
        at = now - other.seen > forgotten ? workers_.erase(at) : std::next(at);
    }
    return dump(json{{"workers", workers}});
}

void Registry::leave(const std::string &url)
{
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto worker = workers_.find(url);
    if (worker == workers_.end())
        return;
    worker->second->seen += leaving;
    workers_.erase(worker);
}

std::string Registry::list() const
{
    json workers = json::array();
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto &[url, worker] : workers_)
        workers.push_back({{"url", url},
                           {"state", worker->up() ? "up" : "dead"},
                           {"role", worker->role},
                           {"model", worker->model},
                           {"running", worker->running},
                           {"waiting", worker->waiting},
                           {"requests", worker->requests},
                           {"paired", worker->paired}});
    return dump(json{{"workers", workers}});
}

template <class Suits> std::unique_ptr<Registry::Lease> Registry::take(Suits suits)
{
    std::shared_ptr<Worker> best;
    for (const auto &known : workers_) {
        const auto &worker = known.second;
        if (worker->up() && suits(*worker) &&
            (!best || std::pair(worker->requests, worker->running + worker->waiting) <
                          std::pair(best->requests, best->running + best->waiting)))
            best = worker;
    }
    return best ? std::make_unique<Lease>(*this, best) : nullptr;
}

void Registry::require_model(const std::string &model) const
{
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto has_it = [&](const auto &known) { return model.empty() || known.second->model == model; };
    if (!workers_.empty() && std::none_of(workers_.begin(), workers_.end(), has_it))
        throw ApiError(404, "invalid_request_error", "the model '" + model + "' does not exist", "model", "model_not_found");
}

std::unique_ptr<Registry::Lease> Registry::take_decode(const std::string &model, const std::string &except)
{
    const std::lock_guard<std::mutex> lock(mutex_);
    return take([&](const Worker &worker) {
        return worker.role == "decode" && worker.url != except && (model.empty() || worker.model == model);
    });
}

std::unique_ptr<Registry::Lease> Registry::take_prefill(const Lease &decode)
{
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto importer = workers_.find(decode.url());
    if (importer == workers_.end())
        return nullptr;
    const Worker &from = *importer->second;
    return take([&](const Worker &worker) {
        return worker.role == "prefill" && worker.model == from.model && from.paired.contains(worker.url);
    });
}

std::vector<std::string> Registry::models() const
{
    std::vector<std::string> out;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto &[url, worker] : workers_)
        if (worker->up() && worker->role == "decode" && std::find(out.begin(), out.end(), worker->model) == out.end())
            out.push_back(worker->model);
    return out;
}

std::size_t Registry::count(const std::string &role) const
{
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<std::size_t>(std::count_if(
        workers_.begin(), workers_.end(), [&](const auto &w) { return w.second->up() && w.second->role == role; }));
}
