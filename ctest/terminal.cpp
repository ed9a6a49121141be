// Every accepted request has exactly one FINISHED event and nothing after it, under random cancels, deadlines, exports,
// role changes, refusals and destroyed engines.
#include "support.h"

#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

struct Request {
    uint32_t tokens = 0, next = 0;
    bool finished = false;
};

struct Round {
    std::mt19937 random;
    cleave_model_t *model;
    cleave_cache_t *cache;
    cleave_queue_t *queue;
    std::vector<cleave_engine_t *> engines;
    std::vector<std::atomic<cleave_request_t>> ids;
    std::unordered_map<uint64_t, Request> seen; // by user_tag: an event may arrive before the id is known
    std::unordered_map<uint64_t, cleave_request_t> accepted;
    std::vector<cleave_kv_t> handles;
    uint32_t vocab;

    explicit Round(uint32_t seed) : random(seed), ids(512) {}
    uint32_t pick(uint32_t below) { return static_cast<uint32_t>(random() % below); }
    void submit();
    void take(const cleave_event_t &event);
    void poll(uint32_t timeout_ms, bool until_empty);
    void run();
};

void Round::submit()
{
    cleave_request_desc_t batch[3] = {};
    cleave_request_t out[3] = {};
    int32_t tokens[48];
    size_t n = 0;
    const size_t wanted = 1 + pick(3);
    fill_prompt(tokens, 48, vocab, pick(5));
    for (size_t i = 0; i < wanted; i++) {
        auto &desc = batch[i];
        desc = greedy(1 + pick(48), 1 + pick(30));
        desc.user_tag = accepted.size() + i;
        desc.priority = pick(3);
        desc.temperature = pick(2) ? 1.5f : 0.0f;
        if (pick(4) == 0)
            desc.deadline_us = 1 + pick(20000);
        if (pick(6) == 0)
            desc.flags |= CLEAVE_REQUEST_KEEP_KV;
        if (pick(8) == 0) {
            desc.flags |= CLEAVE_REQUEST_LOGPROBS;
            desc.logprobs = 2;
        }
        if (pick(20) == 0)
            desc.top_p = 9; // invalid: this request and the rest of the batch are refused
        if (pick(3) == 0 && !handles.empty()) {
            desc.kv = handles.back();
            handles.pop_back();
            desc.prompt_len = pick(2) ? 0 : 3;
        }
    }
    const auto status = cleave_engine_submit(engines[pick(static_cast<uint32_t>(engines.size()))], batch, wanted, tokens, 48,
                                      out, &n, nullptr);
    CHECK((status == CLEAVE_OK) == (n == wanted));
    CHECK(status != CLEAVE_ERR_INTERNAL);
    for (size_t i = 0; i < n; i++) {
        CHECK(out[i] != 0);
        ids[accepted.size() % ids.size()] = out[i];
        accepted[batch[i].user_tag] = out[i];
    }
    for (size_t i = n; i < wanted; i++)
        if (batch[i].kv != 0)
            cleave_kv_release(cache, batch[i].kv, nullptr);
}

void Round::take(const cleave_event_t &event)
{
    if (event.type == CLEAVE_EVENT_KV_READY || event.type == CLEAVE_EVENT_ENGINE_FAILED)
        return;
    auto &request = seen[event.user_tag];
    if (request.finished) {
        fprintf(stderr, "request %llx: event %u after its FINISHED\n", static_cast<unsigned long long>(event.request),
                event.type);
        exit(1);
    }
    if (event.type == CLEAVE_EVENT_TOKEN) {
        // A continuation counts on from its handle's last index.
        CHECK(request.tokens == 0 || event.index == request.next);
        request.next = event.index + 1;
        request.tokens++;
    } else if (event.type == CLEAVE_EVENT_FINISHED) {
        request.finished = true;
        CHECK(event.finish_reason >= CLEAVE_FINISH_STOP && event.finish_reason <= CLEAVE_FINISH_ERROR);
        CHECK((event.finish_reason == CLEAVE_FINISH_ERROR) == (event.status != CLEAVE_OK));
        if (event.kv != 0)
            handles.push_back(event.kv);
    }
}

void Round::poll(uint32_t timeout_ms, bool until_empty)
{
    cleave_event_t events[16];
    size_t n = 0;
    do {
        CHECK_OK(cleave_queue_poll(queue, events, sizeof events[0], 16, timeout_ms, &n));
        for (size_t i = 0; i < n; i++)
            take(events[i]);
    } while (until_empty && n > 0);
}

void Round::run()
{
    model = load_model();
    vocab = vocab_size(model);
    cache = make_cache(model);
    queue = make_queue(16 + pick(64));
    for (uint32_t i = 0; i < 2; i++)
        engines.push_back(make_engine(cache, queue, pick(3)));
    std::atomic<bool> stop{false};
    std::thread meddler([this, &stop, seed = random()] {
        std::mt19937 own(static_cast<uint32_t>(seed));
        while (!stop) {
            auto id = ids[own() % ids.size()].load();
            auto *engine = engines[own() % engines.size()];
            if (own() % 2)
                cleave_engine_cancel(engine, id, nullptr);
            else
                cleave_engine_export(engine, id, nullptr);
            cleave_engine_set_role(engine, own() % 3, nullptr);
            std::this_thread::sleep_for(std::chrono::microseconds(own() % 300));
        }
    });
    const uint32_t submissions = 20 + pick(40);
    for (uint32_t i = 0; i < submissions; i++) {
        submit();
        poll(pick(3), pick(2) == 0);
    }
    // The engines are destroyed while requests run, either at once or after a few polls.
    for (uint32_t i = pick(4); i > 0; i--)
        poll(5, true);
    std::thread destroyer([this] { cleave_engine_destroy(engines[0]); });
    cleave_engine_destroy(engines[1]);
    destroyer.join();
    stop = true;
    meddler.join();
    poll(0, true); // all events are in the queue when destroy returns

    for (const auto &entry : accepted)
        if (!seen[entry.first].finished) {
            fprintf(stderr, "request %llx never finished\n", static_cast<unsigned long long>(entry.second));
            exit(1);
        }
    CHECK_INT(seen.size(), accepted.size());
    for (auto kv : handles)
        CHECK_OK(cleave_kv_release(cache, kv, nullptr));
    cleave_audit_t audit = {};
    audit.struct_size = sizeof audit;
    CHECK_OK(cleave_cache_audit(cache, &audit, nullptr));
    CHECK_INT(audit.leaked, 0);
    CHECK_INT(audit.by_requests, 0);
    CHECK_INT(audit.by_exports, 0);
    cleave_cache_destroy(cache);
    cleave_queue_destroy(queue);
    cleave_model_release(model);
}

} // namespace

int main(int argc, char **argv)
{
    const auto first = static_cast<uint32_t>(argc > 1 ? atoi(argv[1]) : 1);
    const uint32_t rounds = argc > 1 ? 1 : 40;
    size_t requests = 0;
    for (uint32_t seed = first; seed < first + rounds; seed++) {
        Round round(seed);
        printf("seed %u\n", seed);
        fflush(stdout);
        round.run();
        requests += round.accepted.size();
    }
    printf("%zu requests\n", requests);
    return 0;
}
