// A front's requests to workers. Each is read by a thread of its own, so that who waits for one can look around
// meanwhile: whether its client is still there, and whether the worker is alive.
#ifndef UPSTREAM_HPP
#define UPSTREAM_HPP

#include "http.hpp"

#include <condition_variable>
#include <deque>
#include <optional>
#include <string>
#include <thread>

/// A piece of what a worker answers.
struct Part {
    enum Kind { Head, Data, End, Broken } kind; // Broken: the answer is not whole, or there is none
    int from;           // Upstream::id()
    int status = 0;     // Head
    std::string data{}; // Data
};

/// The parts of all answers that a client's request waits for.
class Inbox {
public:
    void put(Part part);
    /// The next one, if it comes within `patience`.
    std::optional<Part> take(std::chrono::milliseconds patience);
    /// A number that parts from elsewhere do not have: what is left of an answer that was given up may still be here.
    int new_id() { return ++last_id_; }

private:
    int last_id_ = 0;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Part> parts_;
};

/// A POST under way. Its end breaks the connection, if the answer has not ended, and waits for the thread.
class Upstream {
public:
    Upstream(Inbox &inbox, const std::string &url, const std::string &path, httplib::Headers headers, std::string body);
    ~Upstream();
    Upstream(const Upstream &) = delete;
    Upstream &operator=(const Upstream &) = delete;

    int id() const { return id_; }

private:
    void run(const httplib::Request &request);

    Inbox &inbox_;
    const int id_;
    httplib::Client client_;
    std::atomic<bool> stopped_{false}, ended_{false};
    std::thread reader_;
};

#endif
