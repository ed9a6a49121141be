// The connections of a server. One thread watches the connections without a request. Each request gets a thread once
// its head has arrived. The number of connections is limited: a new one closes the oldest that is only waiting.
#pragma once

#include "connection.hpp"

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include <sys/epoll.h>

class Connections {
public:
    /// `process` answers a request and returns whether the connection stays open. `refusal` is written to connections
    /// beyond the limit.
    Connections(std::size_t most, std::function<bool(Connection &)> process, std::string refusal)
        : most_(most), process_(std::move(process)), refusal_(std::move(refusal))
    {
    }

    /// The connection whose request this thread handles.
    static Connection *&current()
    {
        static thread_local Connection *connection = nullptr;
        return connection;
    }

    /// Called once the whole request has arrived. From now on its connection is not closed to make room for another.
    void answering()
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (current() != nullptr)
            current()->state = Connection::Answering;
    }

    /// Accepts from `listener` until the process ends.
    [[noreturn]] void serve(int listener)
    {
        fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
        watch(EPOLL_CTL_ADD, listener);
        for (std::array<epoll_event, 64> events;;) {
            const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), 200);
            for (int i = 0; i < n; i++)
                if (events[static_cast<std::size_t>(i)].data.fd == listener)
                    accept(listener);
                else
                    receive(events[static_cast<std::size_t>(i)].data.fd);
            close_overdue();
        }
    }

private:
    using Shared = std::shared_ptr<Connection>;

    void watch(int operation, int fd)
    {
        epoll_event event{};
        event.events = EPOLLIN | EPOLLRDHUP;
        event.data.fd = fd;
        epoll_ctl(epoll_, operation, fd, &event);
    }

    void accept(int listener)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE)
                close_oldest();
            return;
        }
        if (all_.size() >= most_ && !close_oldest()) {
            static_cast<void>(::send(fd, refusal_.data(), refusal_.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
            ::close(fd);
            return;
        }
        const int yes = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        all_[fd] = std::make_shared<Connection>(fd);
        watch(EPOLL_CTL_ADD, fd);
    }

    /// Closes the connection that has waited longest, idle or for the rest of a request. Returns false if all are being
    /// answered.
    bool close_oldest()
    {
        const auto older = [](const auto &a, const auto &b) {
            const bool a_waits = a.second->state != Connection::Answering;
            const bool b_waits = b.second->state != Connection::Answering;
            return a_waits != b_waits ? a_waits : a.second->since < b.second->since;
        };
        const auto oldest = std::min_element(all_.begin(), all_.end(), older);
        if (oldest == all_.end() || oldest->second->state == Connection::Answering)
            return false;
        ::shutdown(oldest->first, SHUT_RDWR); // wakes the thread that may be reading the body
        if (oldest->second->state == Connection::Reading)
            return oldest->second->state = Connection::Answering, true; // its thread takes it off the list
        all_.erase(oldest);
        return true;
    }

    void receive(int fd)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = all_.find(fd);
        if (found == all_.end() || found->second->state != Connection::Waiting || !found->second->something_came())
            return; // the connection is closed already
        const Shared connection = found->second;
        if (!connection->fill(Clock::duration(0)))
            all_.erase(found);
        else if (connection->has_head())
            start(connection);
        else if (connection->has_too_much())
            all_.erase(found);
        else if (!std::exchange(connection->begun, true))
            connection->since = Clock::now();
    }

    void start(const Shared &connection)
    {
        connection->state = Connection::Reading;
        epoll_ctl(epoll_, EPOLL_CTL_DEL, connection->socket(), nullptr);
        try {
            std::thread([this, connection] { run(connection); }).detach();
        } catch (const std::system_error &) { // the system has no more threads
            static_cast<void>(::send(connection->socket(), refusal_.data(), refusal_.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
            all_.erase(connection->socket());
        }
    }

    /// Handles a request, and any that follow it immediately.
    void run(const Shared &connection)
    {
        current() = connection.get();
        bool stays = true;
        do {
            connection->must_be_read_until(Clock::now() + body_timeout);
            stays = process_(*connection) && !connection->must_close;
            const std::lock_guard<std::mutex> lock(mutex_);
            connection->state = Connection::Reading;
        } while (stays && connection->has_head());
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!stays) {
            all_.erase(connection->socket());
            return;
        }
        connection->state = Connection::Waiting;
        connection->since = Clock::now();
        connection->begun = connection->has_part();
        watch(EPOLL_CTL_ADD, connection->socket());
    }

    void close_overdue()
    {
        const auto now = Clock::now();
        if (now < next_look_)
            return;
        next_look_ = now + std::chrono::milliseconds(200);
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto at = all_.begin(); at != all_.end();) {
            const Connection &c = *at->second;
            const auto patience = c.begun ? Clock::duration(head_timeout) : Clock::duration(idle_timeout);
            at = c.state == Connection::Waiting && now - c.since > patience ? all_.erase(at) : std::next(at);
        }
    }

    const std::size_t most_;
    const std::function<bool(Connection &)> process_;
    const std::string refusal_;
    const int epoll_ = epoll_create1(EPOLL_CLOEXEC);
    Clock::time_point next_look_{};
    std::mutex mutex_; // guards the members below, and the states of the connections
    std::map<int, Shared> all_; // by descriptor
};
