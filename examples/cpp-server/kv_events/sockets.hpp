// ZeroMQ sockets that listen.
#pragma once

#include <zmq.hpp>

#include <array>
#include <stdexcept>
#include <string>

#include <netdb.h>

/// A number as ZeroMQ's peers read it: 8 bytes, the most significant first.
using Number = std::array<unsigned char, 8>;

inline Number to_number(std::uint64_t value)
{
    Number out;
    for (std::size_t i = 0; i < out.size(); i++)
        out[i] = static_cast<unsigned char>(value >> (56 - 8 * i));
    return out;
}

inline std::uint64_t from_number(const void *bytes)
{
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof value; i++)
        value = value << 8 | static_cast<const unsigned char *>(bytes)[i];
    return value;
}

/// Turns HOST:PORT into an endpoint that ZeroMQ can bind, for which it needs a numeric host. Throws std::runtime_error.
inline std::string to_endpoint(const std::string &address)
{
    const std::size_t colon = address.rfind(':');
    std::string host = address.substr(0, colon);
    if (host.front() == '[' && host.back() == ']')
        host = host.substr(1, host.size() - 2);
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    char numeric[NI_MAXHOST];
    int status = getaddrinfo(host.c_str(), nullptr, &hints, &found);
    if (status == 0) {
        status = getnameinfo(found->ai_addr, found->ai_addrlen, numeric, sizeof numeric, nullptr, 0, NI_NUMERICHOST);
        freeaddrinfo(found);
    }
    if (status != 0)
        throw std::runtime_error(gai_strerror(status));
    host = numeric;
    return "tcp://" + (host.find(':') == std::string::npos ? host : "[" + host + "]") + address.substr(colon);
}

/// A socket that listens at HOST:PORT. What peers can make it hold is bounded. Throws std::runtime_error.
inline zmq::socket_t listen_at(zmq::context_t &context, zmq::socket_type type, const std::string &address, int ahead)
{
    zmq::socket_t socket(context, type);
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::sndhwm, ahead);        // messages for a peer that is slow
    socket.set(zmq::sockopt::sndbuf, 64 << 10);     // bytes of them that the system holds
    socket.set(zmq::sockopt::rcvhwm, 16);           // messages of a peer that wait here
    socket.set(zmq::sockopt::maxmsgsize, std::int64_t{64} << 10); // bytes that a peer may send in a frame
    socket.set(zmq::sockopt::handshake_ivl, 10000); // milliseconds
    socket.set(zmq::sockopt::tcp_maxrt, 30000);     // milliseconds for a peer that takes nothing of what is sent
    try {
        const std::string endpoint = to_endpoint(address);
        socket.set(zmq::sockopt::ipv6, endpoint.find('[') != endpoint.npos);
        socket.bind(endpoint);
    } catch (const std::exception &error) {
        throw std::runtime_error("cannot publish KV events at " + address + ": " + error.what());
    }
    return socket;
}

/// Where a socket listens. Peers put the machine's name in the place of a star.
inline std::string endpoint_of(const zmq::socket_t &socket)
{
    const std::string endpoint = socket.get(zmq::sockopt::last_endpoint);
    const std::size_t colon = endpoint.rfind(':');
    const std::string host = endpoint.substr(0, colon);
    return host == "tcp://0.0.0.0" || host == "tcp://[::]" ? "tcp://*" + endpoint.substr(colon) : endpoint;
}
