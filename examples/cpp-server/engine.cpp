#include "engine.hpp"

#include <cstdio>
#include <fstream>

void Mailbox::put(const cleave::Event &event)
{
    const std::lock_guard<std::mutex> lock(mutex_);
    events_.push_back(event);
    changed_.notify_one();
}

std::optional<cleave::Event> Mailbox::take(std::chrono::milliseconds patience)
{
    std::unique_lock<std::mutex> lock(mutex_);
    if (!changed_.wait_for(lock, patience, [this] { return !events_.empty(); }))
        return std::nullopt;
    const cleave::Event event = events_.front();
    events_.pop_front();
    return event;
}

namespace {

/// The value, or the end of the start.
template <class T> T need(cleave::Result<T> result, const char *doing)
{
    if (!result)
        throw std::runtime_error(std::string(doing) + ": " + result.error().message());
    return std::move(*result);
}

std::array<std::uint8_t, 32> read_secret(const std::string &path)
{
    std::array<std::uint8_t, 32> secret{};
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char *>(secret.data()), secret.size()))
        throw std::runtime_error(path + ": cannot read 32 bytes of it");
    if (secret == decltype(secret){})
        throw std::runtime_error(path + ": 32 zeros are no secret");
    return secret;
}

cleave::Role engine_role(ServerRole role)
{
    switch (role) {
    case ServerRole::Prefill: return cleave::Role::Prefill;
    case ServerRole::Decode: return cleave::Role::Decode;
    default: return cleave::Role::Mixed;
    }
}

} // namespace

EngineHost::EngineHost(const Options &o) : options(o)
{
    model = need(cleave::Model::load(options.model), "load the model");
    about = need(model.info(), "describe the model");

    cleave::CacheConfig pool;
    pool.bytes_per_device = options.kv_mib << 20;
    if (options.is_worker()) // importers have to know it
        pool.secret = read_secret(options.secret_file);
    cache = need(cleave::Cache::create(model, pool), "create the cache");
    if (!options.kv_listen.empty()) // importers on other machines: before anybody gets its address or a ticket
        need(cache.listen(options.kv_listen), "listen for importers");

    queue = need(cleave::Queue::create(), "create the queue");
    cleave::EngineConfig config;
    config.role = engine_role(options.role);
    config.max_sequences = options.max_sequences;
    config.max_batch_tokens = options.max_batch_tokens;
    config.threads = options.threads;
    engine = need(cleave::Engine::create(cache, queue, config), "create the engine");
    poller_ = std::thread([this] { poll(); });
}

EngineHost::~EngineHost()
{
    engine.reset(); // its last events come before this returns
    queue.reset();  // wakes the poller
    if (poller_.joinable())
        poller_.join();
}

void EngineHost::poll()
{
    std::array<cleave::Event, 64> room;
    while (const auto events = queue.poll(room)) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (cleave::Event &event : *events) {
            const auto mailbox = mailboxes_.find(event.user_tag());
            if (event.type() == cleave::EventType::EngineFailed) {
                failed_ = true;
                std::fprintf(stderr, "the engine has failed: %s\n", to_string(event.status()));
            } else if (mailbox != mailboxes_.end()) {
                mailbox->second->put(event);
            } else {
                cache.take_kv(event).reset(); // nobody waits for it any more
            }
        }
    }
}

std::uint64_t EngineHost::open(std::shared_ptr<Mailbox> mailbox, std::size_t n)
{
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::uint64_t first = next_tag_;
    next_tag_ += n;
    for (std::uint64_t tag = first; tag < next_tag_; tag++)
        mailboxes_[tag] = mailbox;
    return first;
}

void EngineHost::close(std::uint64_t first_tag, std::size_t n)
{
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::uint64_t tag = first_tag; tag < first_tag + n; tag++)
        mailboxes_.erase(tag);
}

Sequences::Sequences(EngineHost &host, std::size_t n) : host_(host), running_(n), first_tag_(host.open(mailbox_, n)) {}

Sequences::~Sequences()
{
    for (std::size_t i = 0; i < running_.size(); i++)
        cancel(i);
    host_.close(first_tag_, running_.size()); // from here on the poller takes care of what comes
    while (auto event = mailbox_->take(std::chrono::milliseconds(0)))
        host_.cache.take_kv(*event).reset();
}

void Sequences::submit(std::size_t first, std::vector<cleave::Request> requests)
{
    for (std::size_t i = 0; i < requests.size(); i++)
        requests[i].user_tag = first_tag_ + first + i;
    static thread_local cleave::Packer packer;
    const cleave::Submitted submitted = host_.engine.submit(requests, packer);
    for (std::size_t i = 0; i < submitted.accepted(); i++)
        running_[first + i] = submitted.ids[i];
    if (!submitted)
        throw to_api_error(submitted.error); // those that were accepted are cancelled as this ends
}

cleave::Result<cleave::Kv> Sequences::import_ticket(std::size_t i, const std::vector<std::uint8_t> &ticket)
{
    return host_.cache.import_kv(ticket, host_.queue, first_tag_ + i);
}

void Sequences::cancel(std::size_t i)
{
    if (running_[i] != 0)
        static_cast<void>(host_.engine.cancel(running_[i])); // one that has ended meanwhile is as good
}

std::optional<cleave::Event> Sequences::next(std::chrono::milliseconds patience)
{
    auto event = mailbox_->take(patience);
    if (event && event->type() == cleave::EventType::Finished)
        running_[of(*event)] = 0;
    return event;
}

ApiError to_api_error(const cleave::Error &error)
{
    switch (error.code()) {
    case cleave::Status::InvalidArgument:
    case cleave::Status::OutOfMemory: // more than the whole cache holds
        return invalid("", error.message());
    case cleave::Status::WouldBlock: return ApiError(429, "rate_limit_error", error.message());
    case cleave::Status::Shutdown: return unavailable("the server is shutting down");
    default: return failed(error.message());
    }
}
