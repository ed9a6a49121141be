// Requests of the engine that serve one client's request.
#pragma once

#include "clock.hpp"
#include "generation.hpp"

/// Sequences of one client's request: choices, or a prompt for another worker to decode. The destructor cancels those
/// that still run, one that waits for imported KV once that is here, and releases the handles in unread events. One thread
/// at a time may use it.
class Sequences {
public:
    /// `arrived` is called by the poller whenever there is an event, for users that do not wait in `next`. It must not block.
    explicit Sequences(EngineHost &host, std::size_t n, std::function<void()> arrived = {})
        : host_(host), running_(n), events_(std::move(arrived))
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
            if (!importing_ || i != *importing_)
                cancel(i);
        {
            const std::lock_guard<std::mutex> lock(host_.mutex_);
            if (importing_)
                host_.landing_[first_tag_ + *importing_] = {std::move(held_), running_[*importing_]};
            for (std::size_t i = 0; i < running_.size(); i++)
                host_.waiting_.erase(first_tag_ + i); // from here on the poller handles the remaining events
        }
        while (auto event = events_.take(std::chrono::milliseconds(0))) {
            if (event->type() == cleave::EventType::KvReady) {
                const std::lock_guard<std::mutex> lock(host_.mutex_);
                host_.let_go(event->user_tag());
            }
            host_.cache.take_kv(*event).reset();
        }
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
        if (!submitted) {
            for (cleave::Request &request : requests)
                if (request.kv)
                    hold(std::move(request.kv));
            throw to_api_error(submitted.error); // the destructor cancels those that were accepted
        }
    }

    /// Imports a ticket for sequence `i`; KvReady reports the result.
    cleave::Result<cleave::Kv> import_ticket(std::size_t i, const std::vector<std::uint8_t> &ticket)
    {
        auto kv = host_.cache.import_kv(ticket, host_.queue, first_tag_ + i);
        if (kv)
            importing_ = i;
        return kv;
    }
    /// Keeps an imported handle that no request continues until its KV is here, because the exporter is rid of it then.
    void hold(cleave::Kv kv) { held_ = std::move(kv); }

    void cancel(std::size_t i)
    {
        if (running_[i] != 0)
            static_cast<void>(host_.engine.cancel(running_[i])); // it fails harmlessly if the request has just ended
    }

    /// The next event, or none if there is none within `patience`.
    std::optional<cleave::Event> next(std::chrono::milliseconds patience = look_around)
    {
        const auto event = events_.take(patience);
        if (event && event->type() == cleave::EventType::Finished)
            running_[of(*event)] = 0;
        if (event && event->type() == cleave::EventType::KvReady) {
            importing_.reset();
            held_.reset();
        }
        return event;
    }
    std::size_t of(const cleave::Event &event) const { return static_cast<std::size_t>(event.user_tag() - first_tag_); }

private:
    EngineHost &host_;
    std::vector<cleave::RequestId> running_; // 0: not submitted yet, or ended
    std::optional<std::size_t> importing_;   // the sequence whose KV is on its way
    cleave::Kv held_;
    std::uint64_t first_tag_;
    Mailbox<cleave::Event> events_;
};
