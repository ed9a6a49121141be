// A client's connection.
#pragma once

#include "clock.hpp"

#include <httplib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

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
