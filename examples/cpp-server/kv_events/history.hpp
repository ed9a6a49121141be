// The last messages, and whoever asks for them again.
#pragma once

#include "sockets.hpp"
#include "source.hpp"

#include <zmq_addon.hpp>

#include <deque>
#include <list>

/// Messages for replay: at most `kv_events_kept`, and fewer if they are large.
class History {
public:
    /// Adds the next message. It shares the memory of `payload`.
    void add(zmq::message_t &payload)
    {
        bytes_ += payload.size();
        messages_.emplace_back().copy(payload);
        while (messages_.size() > kv_events_kept || (bytes_ > most_bytes && messages_.size() > 1)) {
            bytes_ -= messages_.front().size();
            messages_.pop_front();
            oldest_++;
        }
    }

    /// Number of the oldest message, and of the next one.
    std::uint64_t oldest() const { return oldest_; }
    std::uint64_t next() const { return oldest_ + messages_.size(); }
    /// The payload of a message that is still there. It shares the memory.
    zmq::message_t payload(std::uint64_t number)
    {
        zmq::message_t out;
        out.copy(messages_[static_cast<std::size_t>(number - oldest_)]);
        return out;
    }

private:
    static constexpr std::size_t most_bytes = 64 << 20;

    std::deque<zmq::message_t> messages_;
    std::uint64_t oldest_ = 0;
    std::size_t bytes_ = 0;
};

/// Peers that are sent earlier messages, from a ROUTER socket, as fast as each takes them. A peer asks with a number in the
/// last frame, and gets the messages from there on, each as an empty frame, its number and its payload, and at the end the
/// number -1.
class Replays {
public:
    Replays(zmq::socket_t socket, History &history) : socket_(std::move(socket)), history_(history)
    {
        socket_.set(zmq::sockopt::router_mandatory, true); // tells that a peer is slow or gone
    }

    zmq::socket_t &socket() { return socket_; }
    /// Whether another request can be taken. Until then requests wait in their connections.
    bool has_room() const { return open_.size() < most; }
    bool is_idle() const { return open_.empty(); }

    /// Takes a request. What is none is ignored.
    void take()
    {
        std::vector<zmq::message_t> frames;
        static_cast<void>(zmq::recv_multipart(socket_, std::back_inserter(frames), zmq::recv_flags::dontwait));
        if (frames.size() >= 2 && frames.back().size() == sizeof(Number))
            open_.push_back({frames.front().to_string(), from_number(frames.back().data()), history_.next()});
    }

    /// Sends what the peers take now. Returns whether there may be more at once.
    bool go_on()
    {
        bool more = false;
        for (auto replay = open_.begin(); replay != open_.end();) {
            const auto [sent, is_over] = go_on(*replay);
            more = more || (sent && !is_over);
            replay = is_over ? open_.erase(replay) : std::next(replay);
        }
        return more;
    }

private:
    static constexpr std::size_t most = 64;
    static constexpr int at_once = 100; // messages for one peer before the next has its turn

    struct Replay {
        std::string peer;
        std::uint64_t next, end;
    };

    /// Returns whether something was sent, and whether nothing is left.
    std::pair<bool, bool> go_on(Replay &replay)
    {
        for (int i = 0; i < at_once; i++) {
            replay.next = std::max(replay.next, history_.oldest());
            const bool is_last = replay.next >= replay.end;
            const auto number = to_number(is_last ? UINT64_MAX : replay.next);
            try {
                if (!socket_.send(zmq::buffer(replay.peer), zmq::send_flags::sndmore | zmq::send_flags::dontwait))
                    return {i > 0, false}; // the peer has enough for now
                socket_.send(zmq::message_t(), zmq::send_flags::sndmore);
                socket_.send(zmq::buffer(number), zmq::send_flags::sndmore);
                socket_.send(is_last ? zmq::message_t() : history_.payload(replay.next), zmq::send_flags::none);
            } catch (const zmq::error_t &) {
                return {false, true}; // it is gone
            }
            if (is_last)
                return {true, true};
            replay.next++;
        }
        return {true, false};
    }

    zmq::socket_t socket_;
    History &history_;
    std::list<Replay> open_;
};
