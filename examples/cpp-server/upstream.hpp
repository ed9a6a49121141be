// A front's requests to workers. A separate thread reads each answer. The thread that waits for the answer can then
// check whether its client is still connected and whether the worker is alive.
#pragma once

#include "clock.hpp"
#include "mailbox.hpp"

#include <httplib.h>

#include <atomic>
#include <thread>

/// A piece of a worker's answer.
struct Part {
    enum Kind { Head, Text, Broken, End } kind; // Broken: the answer is incomplete or missing
    int status = 0;     // Head
    std::string text{}; // Text: up to the delimiter, or all that is left
    Clock::time_point at = Clock::now();
};

/// A POST in progress. The destructor closes the connection if the answer has not ended, and waits for the thread.
class Upstream {
public:
    Upstream(const std::string &url, httplib::Request request, std::string delimiter)
        : client_(url), request_(std::move(request)), delimiter_(std::move(delimiter))
    {
        client_.set_tcp_nodelay(true);
        client_.set_connection_timeout(1);
        client_.set_read_timeout(24 * 3600); // practically unlimited: the reader of `parts` sets the time limit
        reader_ = std::thread([this] { read(); });
    }

    ~Upstream()
    {
        for (stopped_ = true; !ended_; std::this_thread::sleep_for(std::chrono::milliseconds(1)))
            client_.stop(); // repeated, because it has no effect before the request is sent
        reader_.join();
    }

    Upstream(const Upstream &) = delete;
    Upstream &operator=(const Upstream &) = delete;

    Mailbox<Part> parts;

private:
    void read()
    {
        std::string text;
        request_.response_handler = [this](const httplib::Response &response) {
            parts.put({Part::Head, response.status});
            return !stopped_;
        };
        request_.content_receiver = [&](const char *data, std::size_t n, std::uint64_t, std::uint64_t) {
            text.append(data, n);
            for (std::size_t end; (end = text.find(delimiter_)) != std::string::npos;) {
                parts.put({Part::Text, 0, text.substr(0, end)});
                text.erase(0, end + delimiter_.size());
            }
            return !stopped_;
        };
        const bool whole = client_.send(request_) != nullptr;
        if (whole && !text.empty())
            parts.put({Part::Text, 0, text});
        parts.put({whole ? Part::End : Part::Broken});
        ended_ = true;
    }

    httplib::Client client_;
    httplib::Request request_;
    const std::string delimiter_;
    std::atomic<bool> stopped_{false}, ended_{false};
    std::thread reader_;
};
