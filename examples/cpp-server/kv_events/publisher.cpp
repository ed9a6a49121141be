// Publishes what enters and leaves the prefix cache on ZeroMQ, as vLLM does: three frames (topic, number, msgpack) from a PUB
// socket, and earlier messages from a ROUTER socket for whoever missed some.
#include "encode.hpp"
#include "history.hpp"
#include "publish.hpp"
#include "../clock.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

namespace {

/// One thread reads the cache's events, and another has the sockets, which are for one thread only.
class Publisher {
public:
    /// Throws std::runtime_error.
    Publisher(const cleave::Cache &cache, const std::string &address, const std::string &replay, SaltText salt_text)
        : cache_(cache), salt_text_(std::move(salt_text)),
          subscribers_(listen_at(context_, zmq::socket_type::xpub, address, kv_events_ahead)), inbox_(context_, zmq::socket_type::pair),
          outbox_(context_, zmq::socket_type::pair)
    {
        subscribers_.set(zmq::sockopt::xpub_verbose, true); // every subscription is told, not only the first to a topic
        source_.endpoint = endpoint_of(subscribers_);
        if (!replay.empty()) {
            replays_ = std::make_unique<Replays>(listen_at(context_, zmq::socket_type::router, replay, replay_ahead), history_);
            source_.replay = endpoint_of(replays_->socket());
        }
        for (zmq::socket_t *socket : {&inbox_, &outbox_}) {
            socket->set(zmq::sockopt::linger, 0);
            socket->set(zmq::sockopt::sndhwm, 4); // what does not fit waits in the cache's log
            socket->set(zmq::sockopt::rcvhwm, 4);
        }
        inbox_.bind("inproc://payloads");
        outbox_.connect("inproc://payloads");
        outbox_.set(zmq::sockopt::sndtimeo, static_cast<int>(wait_slice.count()));
        reader_ = std::thread([this] { run("reading", [this] { read(); }); });
        server_ = std::thread([this] { run("serving", [this] { serve(); }); });
    }

    /// Ends all connections.
    ~Publisher()
    {
        stopping_ = true;
        reader_.join();
        server_.join();
    }

    const KvEventSource &source() const { return source_; }

private:
    static constexpr int replay_ahead = 16;                    // few, because they are kept alive for a slow peer
    static constexpr std::chrono::milliseconds pause{5};       // between two messages, so that they are few and large
    static constexpr std::chrono::milliseconds wait_slice{100}; // after which a new subscriber and the end are noticed

    static constexpr std::chrono::seconds snapshot_every{1};   // at most: routers that come and go must not keep the cache's lock busy

    template <class Work> void run(const char *doing, const Work &work) noexcept
    {
        try {
            work();
        } catch (const std::exception &error) {
            std::fprintf(stderr, "KV events: %s failed: %s\n", doing, error.what());
            stopping_ = true;
        }
    }

    /// Reads the cache's events until the end. For a new subscriber, and after a gap, it begins anew, with a snapshot.
    void read()
    {
        cleave::CacheEvents events(1, 512, 1 << 14);
        auto next_snapshot = Clock::now();
        bool behind = true;
        while (!stopping_) {
            const bool is_snapshot = behind || (anew_ && Clock::now() >= next_snapshot);
            if (is_snapshot) {
                behind = anew_ = false;
                next_snapshot = Clock::now() + snapshot_every;
            }
            const auto done = is_snapshot ? cache_.event_snapshot(events) : cache_.events(events, wait_slice);
            if (!done && done.error().code() == cleave::Status::Expired) {
                behind = true;
                continue;
            }
            if (!done)
                throw std::runtime_error(done.error().message());
            const auto converted = to_kv_events(events, is_snapshot, salt_text_);
            if (converted.empty())
                continue;
            const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
            hand_over(encode_kv_events(now, converted));
            std::this_thread::sleep_for(pause);
        }
    }

    /// Gives a payload to the other thread, which may be behind.
    void hand_over(const std::vector<std::uint8_t> &payload)
    {
        while (!stopping_ && !outbox_.send(zmq::buffer(payload)))
            ;
    }

    void serve()
    {
        bool more = false;
        while (!stopping_) {
            zmq::pollitem_t items[] = {{inbox_.handle(), 0, ZMQ_POLLIN, 0},
                                       {subscribers_.handle(), 0, ZMQ_POLLIN, 0},
                                       {replays_ ? replays_->socket().handle() : nullptr, 0, 0, 0}};
            if (replays_ && replays_->has_room())
                items[2].events = ZMQ_POLLIN;
            const bool waits_for_peers = replays_ && !replays_->is_idle(); // a ROUTER does not tell when a peer takes more
            const auto patience = more ? std::chrono::milliseconds(0) : waits_for_peers ? pause : wait_slice;
            zmq::poll(items, replays_ ? 3 : 2, patience);
            if (items[0].revents != 0)
                publish();
            if (items[1].revents != 0)
                take_subscription();
            if (items[2].revents != 0)
                replays_->take();
            more = replays_ && replays_->go_on();
        }
    }

    void publish()
    {
        zmq::message_t payload;
        static_cast<void>(inbox_.recv(payload));
        const auto number = to_number(next_++);
        if (replays_)
            history_.add(payload);
        subscribers_.send(zmq::buffer(kv_events_topic, sizeof kv_events_topic - 1), zmq::send_flags::sndmore);
        subscribers_.send(zmq::buffer(number), zmq::send_flags::sndmore);
        subscribers_.send(payload, zmq::send_flags::none);
    }

    /// A peer subscribes (1) to a topic, which stands for all that begin with it, or ends that (0).
    void take_subscription()
    {
        zmq::message_t message;
        static_cast<void>(subscribers_.recv(message));
        const std::string text = message.to_string(), topic = kv_events_topic;
        if (!text.empty() && text[0] == 1 && topic.compare(0, text.size() - 1, text, 1, text.npos) == 0)
            anew_ = true;
    }

    const cleave::Cache &cache_;
    const SaltText salt_text_;
    KvEventSource source_;
    std::atomic<bool> stopping_{false};
    std::atomic<bool> anew_{false}; // there is a new subscriber
    std::uint64_t next_ = 0;        // number of the next message
    zmq::context_t context_;
    History history_;
    zmq::socket_t subscribers_;
    std::unique_ptr<Replays> replays_;
    zmq::socket_t inbox_, outbox_; // payloads on their way from one thread to the other
    std::thread reader_, server_;
};

std::unique_ptr<Publisher> publisher;

} // namespace

KvEventSource publish_kv_events(const cleave::Cache &cache, const std::string &address, const std::string &replay, SaltText salt_text)
{
    publisher = std::make_unique<Publisher>(cache, address, replay, std::move(salt_text));
    std::at_quick_exit([] { publisher.reset(); });
    return publisher->source();
}
