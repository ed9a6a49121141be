// The model, its cache and its engine, and how their events find who waits for them: one thread polls the queue and
// puts each event into the mailbox that its tag belongs to.
#ifndef ENGINE_HPP
#define ENGINE_HPP

#include "http.hpp"
#include "openai.hpp"
#include "options.hpp"

#include <cleave/cleave.hpp>

#include <condition_variable>
#include <deque>
#include <optional>
#include <thread>
#include <unordered_map>

/// Events for one request of a client's. Filled by the polling thread, emptied by the request's.
class Mailbox {
public:
    void put(const cleave::Event &event);
    /// The next event, if one comes within `patience`.
    std::optional<cleave::Event> take(std::chrono::milliseconds patience);

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<cleave::Event> events_;
};

/// What a server has of cleave, whatever its role: one of each.
class EngineHost {
public:
    /// Loads the model. [BLOCKING] Throws std::runtime_error.
    explicit EngineHost(const Options &options);
    ~EngineHost();

    const Options options;
    cleave::Model model;
    cleave::Cache cache;
    cleave::Queue queue;
    cleave::Engine engine;
    cleave::ModelInfo about{};

    /// Whether the engine takes no more requests.
    bool has_failed() const { return failed_; }

private:
    friend class Sequences;

    std::uint64_t open(std::shared_ptr<Mailbox> mailbox, std::size_t n); // the first of n tags
    void close(std::uint64_t first_tag, std::size_t n);
    void poll();

    std::mutex mutex_; // over what follows
    std::unordered_map<std::uint64_t, std::shared_ptr<Mailbox>> mailboxes_; // by tag
    std::uint64_t next_tag_ = 1;
    std::atomic<bool> failed_{false};
    std::thread poller_;
};

/// The sequences of one request of a client's: choices, or a prompt for another worker to decode. Its end cancels what
/// still runs, and releases the handles of events that nobody took. For one thread at a time.
class Sequences {
public:
    Sequences(EngineHost &host, std::size_t n);
    ~Sequences();
    Sequences(const Sequences &) = delete;
    Sequences &operator=(const Sequences &) = delete;

    /// Submits requests for the sequences from `first` on, all or none. Throws ApiError.
    void submit(std::size_t first, std::vector<cleave::Request> requests);

    /// Takes in a ticket for sequence `i`; KvReady tells how that went.
    cleave::Result<cleave::Kv> import_ticket(std::size_t i, const std::vector<std::uint8_t> &ticket);

    void cancel(std::size_t i);

    /// The next event, if one comes within `patience`. A sequence whose Finished was taken is not cancelled.
    std::optional<cleave::Event> next(std::chrono::milliseconds patience);
    std::size_t of(const cleave::Event &event) const { return static_cast<std::size_t>(event.user_tag() - first_tag_); }

private:
    EngineHost &host_;
    std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
    std::vector<cleave::RequestId> running_; // 0: not submitted yet, or ended
    std::uint64_t first_tag_;
};

/// Why a request came to nothing, as the client gets to hear it.
ApiError to_api_error(const cleave::Error &error);

#endif
