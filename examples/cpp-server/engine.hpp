// The model, its cache and its engine. One thread polls the queue and hands each event to the request that its tag
// belongs to.
#pragma once

#include "auth.hpp"
#include "mailbox.hpp"
#include "options.hpp"

#include <cleave/cleave.hpp>

#include <unordered_map>

/// The server's cleave objects, one of each type in every role. They live as long as the process.
class EngineHost {
public:
    /// Loads the model. [BLOCKING] Throws std::runtime_error.
    explicit EngineHost(const Options &options) : options(options)
    {
        model = need(cleave::Model::load(options.model), "load the model");
        about = need(model.info(), "describe the model");
        max_prompt_bytes = about.max_context_tokens * longest_token();

        cleave::CacheConfig pool;
        pool.bytes_per_device = std::uint64_t{options.kv_mib} << 20;
        pool.lease = std::chrono::seconds(10); // lifetime of a computed prompt that no decode worker fetches
        if (options.is_worker())               // importers must know it
            pool.secret = read_secret(options.secret_file);
        pool.share_weights = options.is_worker(); // workers on one GPU share one copy
        cache = need(cleave::Cache::create(model, pool, {&options.device, 1}), "create the cache");
        if (!options.kv_listen.empty()) // before anybody gets an address or a ticket
            need(cache.listen(options.kv_listen), "listen for importers");

        queue = need(cleave::Queue::create(), "create the queue");
        cleave::EngineConfig config;
        config.role = options.role == "prefill"  ? cleave::Role::Prefill
                      : options.role == "decode" ? cleave::Role::Decode
                                                 : cleave::Role::Mixed;
        config.max_sequences = options.max_sequences;
        config.max_batch_tokens = options.max_batch_tokens;
        config.threads = options.threads;
        engine = need(cleave::Engine::create(cache, queue, config), "create the engine");
        std::thread([this] { poll(); }).detach();
    }

    const Options options;
    cleave::Model model;
    cleave::Cache cache;
    cleave::Queue queue;
    cleave::Engine engine;
    cleave::ModelInfo about{};
    std::size_t max_prompt_bytes = 0; // longer text cannot fit into the context
    std::atomic<bool> has_failed{false}; // the engine takes no more requests

private:
    friend class Sequences;

    /// Returns the value, or throws and thereby ends the start.
    template <class T> static T need(cleave::Result<T> result, const char *doing)
    {
        if (!result)
            throw std::runtime_error(std::string(doing) + ": " + result.error().message());
        return std::move(*result);
    }

    /// Largest number of bytes of text that one token can stand for.
    std::size_t longest_token() const
    {
        std::size_t longest = 0;
        for (std::uint32_t token = 0; token < about.vocab_size; token++) {
            const auto text = need(model.token_bytes(static_cast<std::int32_t>(token)), "read the vocabulary");
            longest = std::max(longest, text.size());
        }
        return longest;
    }

    void poll()
    {
        std::array<cleave::Event, 64> room;
        while (const auto events = queue.poll(room)) {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (cleave::Event &event : *events) {
                const auto mailbox = waiting_.find(event.user_tag());
                if (event.type() == cleave::EventType::EngineFailed) {
                    has_failed = true;
                    std::fprintf(stderr, "the engine has failed: %s\n", to_string(event.status()));
                } else if (mailbox != waiting_.end()) {
                    mailbox->second->put(event);
                } else {
                    cache.take_kv(event).reset(); // nobody waits for this request any more
                }
            }
        }
    }

    std::mutex mutex_; // guards the members below
    std::unordered_map<std::uint64_t, Mailbox<cleave::Event> *> waiting_; // by tag
    std::uint64_t next_tag_ = 1;
};

/// Translates an error of the library for a client.
inline ApiError to_api_error(const cleave::Error &error)
{
    switch (error.code()) {
    case cleave::Status::InvalidArgument:
    case cleave::Status::OutOfMemory: // the request needs more than the whole cache holds
        return invalid(nullptr, error.message());
    case cleave::Status::WouldBlock: return ApiError(429, "rate_limit_error", error.message());
    case cleave::Status::Shutdown: return unavailable("the server is shutting down");
    default: return failed(error.message());
    }
}

/// Sequences of one client's request: choices, or a prompt for another worker to decode. The destructor cancels those
/// that still run and releases the handles in unread events. One thread at a time may use it.
class Sequences {
public:
    Sequences(EngineHost &host, std::size_t n) : host_(host), running_(n)
    {
        const std::lock_guard<std::mutex> lock(host_.mutex_);
        first_tag_ = host_.next_tag_;
        host_.next_tag_ += n;
        for (std::size_t i = 0; i < n; i++)
            host_.waiting_[first_tag_ + i] = &events_;
    }

    ~Sequences()
    {
        for (std::size_t i = 0; i < running_.size(); i++)
            cancel(i);
        {
            const std::lock_guard<std::mutex> lock(host_.mutex_);
            for (std::size_t i = 0; i < running_.size(); i++)
                host_.waiting_.erase(first_tag_ + i); // from here on the poller handles the remaining events
        }
        while (auto event = events_.take(std::chrono::milliseconds(0)))
            host_.cache.take_kv(*event).reset();
    }

    Sequences(const Sequences &) = delete;
    Sequences &operator=(const Sequences &) = delete;

    /// Submits requests for the sequences from `first` on, all or none. Throws ApiError.
    void submit(std::size_t first, std::vector<cleave::Request> requests)
    {
        for (std::size_t i = 0; i < requests.size(); i++)
            requests[i].user_tag = first_tag_ + first + i;
        static thread_local cleave::Packer packer;
        const cleave::Submitted submitted = host_.engine.submit(requests, packer);
        std::copy(submitted.ids.begin(), submitted.ids.end(), running_.begin() + static_cast<std::ptrdiff_t>(first));
        if (!submitted)
            throw to_api_error(submitted.error); // the destructor cancels those that were accepted
    }

    /// Imports a ticket for sequence `i`; KvReady reports the result.
    cleave::Result<cleave::Kv> import_ticket(std::size_t i, const std::vector<std::uint8_t> &ticket)
    {
        return host_.cache.import_kv(ticket, host_.queue, first_tag_ + i);
    }

    void cancel(std::size_t i)
    {
        if (running_[i] != 0)
            static_cast<void>(host_.engine.cancel(running_[i])); // it fails harmlessly if the request has just ended
    }

    /// The next event, or none if there is none within `look_around`.
    std::optional<cleave::Event> next()
    {
        const auto event = events_.take(look_around);
        if (event && event->type() == cleave::EventType::Finished)
            running_[of(*event)] = 0;
        return event;
    }
    std::size_t of(const cleave::Event &event) const { return static_cast<std::size_t>(event.user_tag() - first_tag_); }

private:
    EngineHost &host_;
    std::vector<cleave::RequestId> running_; // 0: not submitted yet, or ended
    std::uint64_t first_tag_;
    Mailbox<cleave::Event> events_;
};
