// The connections of a server. One thread watches the connections without a request. Each request gets a thread once
// its head has arrived. The number of connections is limited: a new one closes the oldest that is only waiting.
#pragma once

#include <httplib.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds head_timeout(10);  // limit for the head of a request, from its first byte
constexpr std::chrono::seconds body_timeout(30);  // limit for its body
constexpr std::chrono::seconds idle_timeout(120); // between two requests
constexpr std::chrono::seconds write_timeout(30); // for a client that does not read its answer
constexpr std::size_t max_head = 16 << 10;

/// A client's connection, as httplib reads and writes it.
class Connection : public httplib::Stream {
public:
    explicit Connection(int fd) : fd_(fd) {}
    ~Connection() override { ::close(fd_); }
    Connection(const Connection &) = delete;
    Connection &operator=(const Connection &) = delete;

    bool is_readable() const override { return has_part() || something_came(); }
    bool is_writable() const override { return ready(POLLOUT, write_timeout); }

    ssize_t read(char *to, std::size_t size) override
    {
        if (at_ == buffer_.size() && !fill(deadline_ - Clock::now()))
            return -1;
        const std::size_t n = std::min(size, buffer_.size() - at_);
        std::memcpy(to, buffer_.data() + at_, n);
        at_ += n;
        return static_cast<ssize_t>(n);
    }
    ssize_t write(const char *from, std::size_t size) override
    {
        if (!is_writable())
            return -1;
        return ::send(fd_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    void get_remote_ip_and_port(std::string &ip, int &port) const override { address(getpeername, ip, port); }
    void get_local_ip_and_port(std::string &ip, int &port) const override { address(getsockname, ip, port); }
    int socket() const override { return fd_; }

    bool has_head() const { return buffer_.find("\r\n\r\n", at_) != std::string::npos; }
    bool has_part() const { return at_ < buffer_.size(); }
    bool has_too_much() const { return buffer_.size() - at_ > max_head; }
    bool something_came() const { return ready(POLLIN, std::chrono::seconds(0)); }

    /// Reads data that has arrived, or arrives within `patience`. Returns false at the end of the connection.
    bool fill(Clock::duration patience)
    {
        std::array<char, 8192> piece;
        if (!ready(POLLIN, patience))
            return false;
        const ssize_t n = ::recv(fd_, piece.data(), piece.size(), MSG_DONTWAIT);
        if (n <= 0)
            return false;
        buffer_.erase(0, std::exchange(at_, 0));
        buffer_.append(piece.data(), static_cast<std::size_t>(n));
        return true;
    }
    void must_be_read_until(Clock::time_point deadline) { deadline_ = deadline; }

    bool must_close = false; // after this request, whose body was not read; used only by the thread that answers

    // Guarded by Connections.
    enum { Waiting, Reading, Answering } state = Waiting;
    Clock::time_point since = Clock::now(); // start of waiting for a request, or for the rest of its head
    bool begun = false;                     // part of a head has arrived

private:
    bool ready(short what, Clock::duration patience) const
    {
        pollfd wanted{fd_, what, 0};
        const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(patience).count();
        return ::poll(&wanted, 1, static_cast<int>(std::max(ms, decltype(ms){0}))) > 0;
    }
    void address(int (*end)(int, sockaddr *, socklen_t *), std::string &ip, int &port) const
    {
        sockaddr_storage storage{};
        socklen_t size = sizeof storage;
        auto *where = reinterpret_cast<sockaddr *>(&storage);
        char host[NI_MAXHOST], service[NI_MAXSERV];
        if (end(fd_, where, &size) == 0 && getnameinfo(where, size, host, sizeof host, service, sizeof service,
                                                       NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
            ip = host;
            port = std::atoi(service);
        }
    }

    const int fd_;
    std::string buffer_; // received data; unread from at_ on
    std::size_t at_ = 0;
    Clock::time_point deadline_ = Clock::time_point::max();
};

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
