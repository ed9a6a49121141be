// A worker's side of "Workers" in ../README.md. It reports to its front, and a decode worker pairs with the prefill
// workers in the front's list.
#pragma once

#include "auth.hpp"
#include "engine.hpp"
#include "text.hpp"

#include <future>

/// Reports to the front. Lives as long as the process.
class Membership {
public:
    /// Starts to report as `url`, until it leaves.
    Membership(EngineHost &host, const Authenticator &authenticator, std::string url)
        : host_(host), authenticator_(authenticator), url_(std::move(url)), reporter_([this] { report_until_leaving(); })
    {
    }
    /// Tells the front that this worker leaves. Returns at `end`, or when the front has no more requests for this
    /// worker. The worker must serve until then.
    void leave(Clock::time_point end)
    {
        leaving_ = true;
        reporter_.join();
        httplib::Client front(host_.options.front);
        front.set_connection_timeout(1);
        const auto left = std::max(end - Clock::now(), Clock::duration(1));
        front.set_read_timeout(left);
        post(front, "/workers/leave", dump({{"url", url_}, {"seconds", std::chrono::duration<double>(left).count()}}));
    }

private:
    httplib::Result post(httplib::Client &front, const char *path, const std::string &body) const
    {
        const httplib::Headers headers = {{"Authorization", authenticator_.sign("front", path, body)}};
        return front.Post(path, headers, body, "application/json");
    }

    /// A prefill worker and the state of the pairing with it.
    struct Peer {
        std::string address;              // base64
        std::future<std::string> pairing; // in progress
        std::string detail;               // set once it is paired
    };

    void report_until_leaving()
    {
        httplib::Client front(host_.options.front);
        front.set_keep_alive(true);
        front.set_tcp_nodelay(true);
        front.set_connection_timeout(1);
        front.set_read_timeout(1);
        for (const char *known = ""; !leaving_;) {
            const auto answer = post(front, "/workers", report());
            const bool joined = answer && answer->status == 200;
            try {
                if (joined && host_.role == cleave::Role::Decode)
                    pair(json::parse(answer->body).at("workers"));
            } catch (const json::exception &error) {
                std::fprintf(stderr, "%s: not a list of workers: %s\n", host_.options.front.c_str(), error.what());
            }
            const char *now = joined ? "joined this front"
                              : answer && answer->status == 401 ? "the front refuses the signature: is the secret the same?"
                                                                : "the front does not answer";
            if (now != std::exchange(known, now)) // logged only when it changes
                std::fprintf(stderr, "%s: %s\n", host_.options.front.c_str(), now);
            for (int i = 0; i < 50 && !leaving_; i++)
                std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
    }

    std::string report()
    {
        json paired = json::object();
        for (auto &[url, peer] : peers_) {
            if (peer.pairing.valid() && peer.pairing.wait_for(std::chrono::seconds(0)) == std::future_status::ready)
                peer.detail = peer.pairing.get();
            if (!peer.detail.empty())
                paired[url] = peer.detail;
        }
        const auto metrics = host_.engine.metrics();
        const auto address = host_.cache.address();
        return dump({{"url", url_},
                     {"role", role_name(host_.role)},
                     {"model", host_.options.model_name},
                     {"running", metrics ? metrics->running : 0},
                     {"waiting", metrics ? metrics->waiting : 0},
                     {"address", address ? to_base64(*address) : std::string()},
                     {"paired", paired}});
    }

    /// Pairs with the prefill workers of this model in the front's list. A worker with a new address was restarted.
    void pair(const json &workers)
    {
        for (const json &worker : workers) {
            if (worker.at("role") != "prefill" || worker.at("model") != host_.options.model_name)
                continue;
            const std::string url = worker.at("url"), address = worker.at("address");
            Peer &peer = peers_[url];
            if (peer.pairing.valid() || (!peer.detail.empty() && peer.address == address))
                continue;
            peer.address = address;
            peer.detail.clear();
            peer.pairing = std::async(std::launch::async, [=] { return try_to_pair(url, address); });
        }
    }

    /// Pairs with a prefill worker before a request needs it. Returns the transport of the KV, or "" after a failure.
    std::string try_to_pair(const std::string &url, const std::string &address)
    {
        const auto report = host_.cache.pair(from_base64(address).value_or(std::vector<std::uint8_t>()));
        const std::string detail(report ? report->detail() : report.error().message());
        if (report && report->status() == cleave::Status::Ok) {
            const double speed = static_cast<double>(report->bytes_per_second) / 1e9;
            std::fprintf(stderr, "paired with %s: %s, %.2f GB/s\n", url.c_str(), detail.c_str(), speed);
            return detail;
        }
        std::fprintf(stderr, "cannot import from %s: %s\n", url.c_str(), detail.c_str());
        for (int i = 0; i < 200 && !leaving_; i++) // delay before the next attempt
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        return "";
    }

    EngineHost &host_;
    const Authenticator &authenticator_;
    const std::string url_;
    std::atomic<bool> leaving_{false};
    std::map<std::string, Peer> peers_; // by URL; used by the reporter's thread only
    std::thread reporter_;
};
