#include "membership.hpp"
#include "text.hpp"

#include <cstdio>

namespace {

constexpr std::chrono::milliseconds report_interval(500);
constexpr std::chrono::seconds front_patience(1), pair_again(2);

} // namespace

Membership::Membership(EngineHost &host, std::string url) : host_(host), url_(std::move(url))
{
    reporter_ = std::thread([this] { report_until_leaving(); });
    if (host_.options.role == ServerRole::Decode)
        pairer_ = std::thread([this] { pair_until_leaving(); });
}

void Membership::leave()
{
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        leaving_ = true;
        changed_.notify_all();
    }
    for (std::thread *thread : {&reporter_, &pairer_})
        if (thread->joinable())
            thread->join();
}

void Membership::report_until_leaving()
{
    httplib::Client front(host_.options.front);
    front.set_keep_alive(true);
    front.set_tcp_nodelay(true);
    front.set_connection_timeout(front_patience);
    front.set_read_timeout(front_patience);
    front.set_write_timeout(front_patience);
    bool joined = false, told = false;
    std::unique_lock<std::mutex> lock(mutex_);
    while (!leaving_) {
        lock.unlock();
        const auto answer = front.Post("/workers", report(), "application/json");
        const bool taken = answer && answer->status == 200;
        if (taken)
            take_list(answer->body);
        if (taken != joined || !told) // said when it changes
            std::fprintf(stderr, "%s: %s\n", host_.options.front.c_str(), taken ? "joined this front" : "the front does not answer");
        joined = taken;
        told = true;
        lock.lock();
        changed_.wait_for(lock, report_interval, [this] { return leaving_; });
    }
    lock.unlock();
    if (joined)
        front.Delete(httplib::append_query_params("/workers", {{"url", url_}}));
}

std::string Membership::report()
{
    json paired = json::object();
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const auto &[url, peer] : peers_)
            if (peer.paired)
                paired[url] = peer.detail;
    }
    const auto metrics = host_.engine.metrics();
    const auto address = host_.cache.address();
    return dump(json{{"url", url_},
                     {"role", to_string(host_.options.role)},
                     {"model", host_.options.model_name},
                     {"running", metrics ? metrics->running : 0},
                     {"waiting", metrics ? metrics->waiting : 0},
                     {"address", address ? to_base64(*address) : std::string()},
                     {"paired", paired}});
}

/// Takes the prefill workers of this model from the list. One with another address is a new one: it was restarted.
void Membership::take_list(const std::string &text)
{
    std::map<std::string, Peer> peers;
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
        const json list = parse_object(text);
        for (const json &worker : list.at("workers")) {
            if (worker.at("role") != "prefill" || worker.at("model") != host_.options.model_name)
                continue;
            const std::string url = worker.at("url");
            auto address = from_base64(worker.at("address"));
            if (!address || address->empty())
                continue;
            const auto known = peers_.find(url);
            if (known != peers_.end() && known->second.address == *address)
                peers[url] = std::move(known->second);
            else
                peers[url].address = std::move(*address);
        }
    } catch (const std::exception &error) {
        std::fprintf(stderr, "the front's list of workers: %s\n", error.what());
        return;
    }
    peers_ = std::move(peers);
    changed_.notify_all();
}

void Membership::pair_until_leaving()
{
    std::unique_lock<std::mutex> lock(mutex_);
    while (!leaving_) {
        const auto now = Clock::now();
        std::string url;
        for (auto &[peer_url, peer] : peers_)
            if (!peer.paired && peer.next_try <= now)
                url = peer_url;
        if (url.empty()) {
            changed_.wait_for(lock, report_interval);
            continue;
        }
        const auto address = peers_[url].address;
        lock.unlock();
        pair(url, address);
        lock.lock();
    }
}

/// Finds out how KV gets here from a prefill worker, and pays for it before a request has to.
void Membership::pair(const std::string &url, const std::vector<std::uint8_t> &address)
{
    const auto report = host_.cache.pair(address);
    const bool paired = report && report->status() == cleave::Status::Ok;
    const std::string detail(report ? report->detail() : report.error().message());
    if (paired)
        std::fprintf(stderr, "paired with %s: %s, %.2f GB/s\n", url.c_str(), detail.c_str(),
                     static_cast<double>(report->bytes_per_second) / 1e9);
    else
        std::fprintf(stderr, "cannot import from %s: %s\n", url.c_str(), detail.c_str());
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto peer = peers_.find(url);
    if (peer == peers_.end() || peer->second.address != address)
        return; // it is another one meanwhile
    peer->second.paired = paired;
    peer->second.detail = detail;
    peer->second.next_try = Clock::now() + pair_again;
}
