// The model, its cache and its engine. One thread polls the queue and hands each event to the request that its tag
// belongs to.
#pragma once

#include "kv_events/publish.hpp"
#include "kv_events/salt_texts.hpp"
#include "mailbox.hpp"
#include "options.hpp"
#include "secret.hpp"

#include <cleave/cleave.hpp>

#include <atomic>
#include <cstdio>
#include <functional>
#include <thread>
#include <unordered_map>

/// Name of a role, as options and messages have it.
inline const char *role_name(cleave::Role role)
{
    return role == cleave::Role::Prefill ? "prefill" : role == cleave::Role::Decode ? "decode" : "mixed";
}

/// The server's cleave objects, one of each type in every role. They live as long as the process.
class EngineHost {
public:
    /// Loads the model. [BLOCKING] Throws std::runtime_error.
    explicit EngineHost(const Options &options)
        : options(options), role(options.role == "prefill"  ? cleave::Role::Prefill
                                 : options.role == "decode" ? cleave::Role::Decode
                                                            : cleave::Role::Mixed)
    {
        model = need(cleave::Model::load(options.model), "load the model");
        about = need(model.info(), "describe the model");
        max_prompt_bytes = about.max_context_tokens * longest_token();

        cleave::CacheConfig pool;
        pool.bytes_per_device = std::uint64_t{options.kv_mib} << 20;
        pool.lease = std::chrono::seconds(options.kv_lease); // lifetime of a computed prompt that nobody fetches
        if (!options.secret_file.empty())                    // importers must know it
            pool.secret = read_secret(options.secret_file);
        pool.events_kept = options.kv_events.empty() ? 0 : kv_events_in_cache;
        pool.share_weights = options.is_worker(); // workers on one GPU share one copy
        cache = need(cleave::Cache::create(model, pool, {&options.device, 1}), "create the cache");
        if (!options.kv_listen.empty()) // before anybody gets an address or a ticket
            need(cache.listen(options.kv_listen), "listen for importers");

        queue = need(cleave::Queue::create(), "create the queue");
        cleave::EngineConfig config;
        config.role = role;
        config.max_sequences = options.max_sequences;
        config.max_batch_tokens = options.max_batch_tokens;
        config.threads = options.threads;
        engine = need(cleave::Engine::create(cache, queue, config), "create the engine");
        std::thread([this] { poll(); }).detach();
        if (!options.kv_events.empty())
            kv_events = publish_kv_events(cache, options.kv_events, options.kv_events_replay, [this](std::uint64_t salt) { return salt_texts.text(salt); });
    }

    /// Calls `hook` when the engine fails, by the thread that polls. It must not block.
    void on_failure(std::function<void()> hook)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        on_failure_ = std::move(hook);
    }

    const Options options;
    std::atomic<cleave::Role> role; // that was set last
    cleave::Model model;
    cleave::Cache cache;
    cleave::Queue queue;
    cleave::Engine engine;
    cleave::ModelInfo about{};
    std::size_t max_prompt_bytes = 0; // longer text cannot fit into the context
    mutable SaltTexts salt_texts; // of requests, for the events about their blocks
    KvEventSource kv_events;      // where those are published
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
                    if (on_failure_)
                        on_failure_();
                    std::fprintf(stderr, "the engine has failed: %s\n", to_string(event.status()));
                } else if (mailbox != waiting_.end()) {
                    mailbox->second->put(event);
                } else { // nobody waits for this request any more
                    if (event.type() == cleave::EventType::KvReady)
                        let_go(event.user_tag());
                    cache.take_kv(event).reset();
                }
            }
        }
    }

    /// Ends what a client that is gone had imported.
    void let_go(std::uint64_t tag)
    {
        const auto import = landing_.find(tag);
        if (import == landing_.end())
            return;
        if (import->second.request != 0)
            static_cast<void>(engine.cancel(import->second.request));
        landing_.erase(import);
    }

    /// An import whose client is gone: the handle, unless a request has it.
    struct Import {
        cleave::Kv kv;
        cleave::RequestId request;
    };

    std::mutex mutex_; // guards the members below
    std::function<void()> on_failure_;
    std::unordered_map<std::uint64_t, Import> landing_; // by tag; they are fetched so that the exporter is rid of them
    std::unordered_map<std::uint64_t, Mailbox<cleave::Event> *> waiting_; // by tag
    std::uint64_t next_tag_ = 1;
};
