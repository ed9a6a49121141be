// Two threads run every pair of calls on the same objects. Each call must return a plausible status, and nothing may
// leak. The test uses plain threads and does not sleep, so that it also runs under a thread sanitizer.
#include "support.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

namespace {

cleave_model_t *model;
cleave_cache_t *cache;
cleave_queue_t *queue;
cleave_engine_t *engine, *prefiller;
cleave_detokenizer_t *detokenizer; // NULL if the model has no tokenizer
std::atomic<cleave_request_t> last_id{0};
std::atomic<cleave_kv_t> last_kv{0};
int32_t prompt[16];

struct Call {
    const char *name;
    std::function<cleave_status_t()> run;
};

template <class T> T sized()
{
    T value{};
    value.struct_size = sizeof value;
    return value;
}

cleave_status_t submit(cleave_engine_t *to, cleave_kv_t kv)
{
    auto desc = greedy(kv != 0 ? 0u : 16u, 3);
    cleave_request_t id = 0;
    size_t n = 0;
    desc.kv = kv;
    auto status = cleave_engine_submit(to, &desc, 1, prompt, 16, &id, &n, nullptr);
    if (n == 1)
        last_id = id;
    return status;
}

// Keeps the newest handle for other threads to use, and releases the one before.
cleave_status_t poll_once()
{
    cleave_event_t events[8];
    size_t n = 0;
    auto status = cleave_queue_poll(queue, events, sizeof events[0], 8, 0, &n);
    for (size_t i = 0; i < n; i++)
        if (events[i].type == CLEAVE_EVENT_FINISHED && events[i].kv != 0) {
            auto old = last_kv.exchange(events[i].kv);
            if (old != 0)
                cleave_kv_release(cache, old, nullptr);
        }
    return status;
}

const std::vector<Call> calls = {
    {"model_load", [] {
         cleave_model_t *m = nullptr;
         auto status = cleave_model_load(model_path(), &m, nullptr);
         cleave_model_release(m);
         return status;
     }},
    {"model_info", [] { auto i = sized<cleave_model_info_t>(); return cleave_model_info(model, &i, nullptr); }},
    {"device_info", [] { auto i = sized<cleave_device_info_t>(); return cleave_device_info(CLEAVE_DEVICE_CPU, &i, nullptr); }},
    {"tokenize", [] {
         int32_t t[64];
         size_t n;
         return cleave_tokenize(model, "the red box", 11, 0, t, 64, &n, nullptr);
     }},
    {"detokenizer_create", [] {
         cleave_detokenizer_t *d = nullptr;
         auto status = cleave_detokenizer_create(model, &d, nullptr);
         cleave_detokenizer_destroy(d);
         return status;
     }},
    {"detokenizer_push", [] {
         char text[256];
         size_t n;
         return detokenizer ? cleave_detokenizer_push(detokenizer, 9, text, sizeof text, &n, nullptr) : CLEAVE_OK;
     }},
    {"cache_create", [] { cleave_cache_destroy(make_cache(model)); return CLEAVE_OK; }},
    {"queue_create", [] { cleave_queue_destroy(make_queue(8)); return CLEAVE_OK; }},
    {"engine_create", [] {
         auto config = sized<cleave_engine_config_t>();
         cleave_engine_t *e = nullptr;
         config.threads = 1;
         auto status = cleave_engine_create(cache, queue, &config, &e, nullptr);
         cleave_engine_destroy(e);
         return status;
     }},
    {"engine_set_role", [] { return cleave_engine_set_role(engine, CLEAVE_ROLE_DECODE, nullptr); }},
    {"queue_fd", [] { return cleave_queue_fd(queue) >= 0 ? CLEAVE_OK : CLEAVE_ERR_INTERNAL; }},
    {"submit", [] { return submit(engine, 0); }},
    {"submit_prefill", [] { return submit(prefiller, 0); }},
    {"submit_kv", [] { auto kv = last_kv.exchange(0); return kv != 0 ? submit(engine, kv) : CLEAVE_OK; }},
    {"cancel", [] { return cleave_engine_cancel(engine, last_id, nullptr); }},
    {"export", [] { return cleave_engine_export(engine, last_id, nullptr); }},
    {"poll", poll_once},
    {"kv_info", [] { auto i = sized<cleave_kv_info_t>(); return cleave_kv_info(cache, last_kv, &i, nullptr); }},
    {"kv_ticket", [] {
         char ticket[4096];
         size_t n;
         return cleave_kv_ticket(cache, last_kv, ticket, sizeof ticket, &n, nullptr);
     }},
    {"kv_image", [] {
         static thread_local char image[1 << 16];
         size_t n = 0;
         cleave_kv_t kv = 0;
         auto status = cleave_kv_read_image(cache, last_kv, 0, image, sizeof image, &n, nullptr);
         if (status == CLEAVE_OK && cleave_kv_import(cache, nullptr, image, n, 0, &kv, nullptr) == CLEAVE_OK)
             status = cleave_kv_release(cache, kv, nullptr);
         return status;
     }},
    {"kv_duplicate", [] {
         cleave_kv_t kv = 0;
         auto status = cleave_kv_duplicate(cache, last_kv, &kv, nullptr);
         return status == CLEAVE_OK ? cleave_kv_release(cache, kv, nullptr) : status;
     }},
    {"kv_tokens", [] { size_t n; return cleave_kv_tokens(cache, last_kv, nullptr, 0, &n, nullptr); }},
    // Uses a duplicate, because a handle whose image was read cannot change
    {"kv_set_host_data", [] {
         cleave_kv_t kv = 0;
         auto status = cleave_kv_duplicate(cache, last_kv, &kv, nullptr);
         if (status != CLEAVE_OK)
             return status;
         status = cleave_kv_set_host_data(cache, kv, "trace", 5, nullptr);
         auto released = cleave_kv_release(cache, kv, nullptr);
         return status == CLEAVE_OK ? released : status;
     }},
    {"kv_host_data", [] { size_t n; return cleave_kv_host_data(cache, last_kv, nullptr, 0, &n, nullptr); }},
    {"kv_renew", [] { return cleave_kv_renew(cache, last_kv, 1000, nullptr); }},
    {"kv_release", [] { return cleave_kv_release(cache, last_kv.exchange(0), nullptr); }},
    {"cache_audit", [] { auto a = sized<cleave_audit_t>(); return cleave_cache_audit(cache, &a, nullptr); }},
    {"cache_events", [] {
        cleave_cache_event_t events[4];
        int32_t block_tokens[64];
        auto range = sized<cleave_cache_event_range_t>();
        return cleave_cache_events(cache, 1, events, sizeof *events, 4, block_tokens, 64, 1, &range, nullptr);
    }},
    {"cache_event_snapshot", [] {
        auto range = sized<cleave_cache_event_range_t>();
        return cleave_cache_event_snapshot(cache, nullptr, sizeof(cleave_cache_event_t), 0, nullptr, 0, &range, nullptr);
    }},
    {"engine_load", [] { auto load = sized<cleave_engine_load_t>(); return cleave_engine_load(engine, &load, nullptr); }},
    {"engine_metrics", [] { auto m = sized<cleave_metrics_t>(); return cleave_engine_metrics(engine, &m, nullptr); }},
    {"metrics_text", [] {
         static thread_local char text[1 << 16];
         size_t n;
         return cleave_metrics_text(text, sizeof text, &n, nullptr);
     }},
    {"log_set", [] { return cleave_log_set(CLEAVE_LOG_OFF, nullptr, 0, nullptr); }},
};

bool fits(cleave_status_t status)
{
    switch (status) {
    case CLEAVE_OK:
    case CLEAVE_ERR_NOT_FOUND: // request and KV ids may be gone
    case CLEAVE_ERR_EXPIRED:
    case CLEAVE_ERR_WOULD_BLOCK:
    case CLEAVE_ERR_UNSUPPORTED: // text functions of a model without a tokenizer
    case CLEAVE_ERR_OUT_OF_MEMORY:
        return true;
    default:
        return false;
    }
}

void loop(const Call &call, std::atomic<int> &started, std::chrono::milliseconds time)
{
    started++;
    while (started < 2) {
    }
    const auto end = std::chrono::steady_clock::now() + time;
    do {
        auto status = call.run();
        if (!fits(status)) {
            fprintf(stderr, "cleave_%s: %s\n", call.name, cleave_status_string(status));
            exit(1);
        }
    } while (std::chrono::steady_clock::now() < end);
}

bool has_requests(cleave_engine_t *of)
{
    auto metrics = sized<cleave_metrics_t>();
    CHECK_OK(cleave_engine_metrics(of, &metrics, nullptr));
    return metrics.running + metrics.waiting > 0;
}

// Polls until no request is left and no event either.
void settle()
{
    for (bool quiet = false; !quiet;) {
        cleave_event_t event;
        size_t n = 0;
        const bool open = has_requests(engine) || has_requests(prefiller);
        CHECK_OK(cleave_queue_poll(queue, &event, sizeof event, 1, open ? 200 : 0, &n));
        quiet = n == 0 && !open;
        if (n == 1 && event.kv != 0 && event.type == CLEAVE_EVENT_FINISHED)
            cleave_kv_release(cache, event.kv, nullptr);
    }
}

} // namespace

int main()
{
    const auto time = std::chrono::milliseconds(getenv("CLEAVE_STRESS_MS") ? atoi(getenv("CLEAVE_STRESS_MS")) : 10);
    model = load_model();
    auto config = sized<cleave_cache_config_t>();
    config.bytes_per_device = 16u << 20;
    config.events_kept = 64;
    CHECK_OK(cleave_cache_create(model, nullptr, 0, &config, &cache, nullptr));
    queue = make_queue(256);
    engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    prefiller = make_engine(cache, queue, CLEAVE_ROLE_PREFILL);
    if (cleave_detokenizer_create(model, &detokenizer, nullptr) != CLEAVE_OK)
        detokenizer = nullptr;
    fill_prompt(prompt, 16, vocab_size(model), 5);
    for (size_t i = 0; i < calls.size(); i++)
        for (size_t j = i; j < calls.size(); j++) {
            std::atomic<int> started{0};
            std::thread one(loop, std::cref(calls[i]), std::ref(started), time);
            loop(calls[j], started, time);
            one.join();
            poll_once();
        }
    settle();
    cleave_kv_release(cache, last_kv, nullptr);
    check_nothing_leaked(cache);

    // Each object is destroyed while another thread calls functions on it.
    std::atomic<bool> stop{false};
    std::thread user([&] {
        while (!stop) {
            submit(engine, 0);
            poll_once();
            cleave_engine_cancel(engine, last_id, nullptr);
            auto audit = sized<cleave_audit_t>();
            cleave_cache_audit(cache, &audit, nullptr);
            auto info = sized<cleave_model_info_t>();
            cleave_model_info(model, &info, nullptr);
        }
    });
    // Waits for events until the cache is destroyed.
    std::thread reader([] {
        cleave_cache_event_t events[4];
        int32_t block_tokens[64];
        auto range = sized<cleave_cache_event_range_t>();
        cleave_status_t status;
        do {
            const uint64_t next = range.next == 0 ? 1 : range.next;
            status = cleave_cache_events(cache, next, events, sizeof *events, 4, block_tokens, 64, UINT32_MAX, &range, nullptr);
            if (status == CLEAVE_ERR_EXPIRED)
                range.next = range.end;
        } while (status == CLEAVE_OK || status == CLEAVE_ERR_EXPIRED);
        CHECK(status == CLEAVE_ERR_SHUTDOWN || status == CLEAVE_ERR_NOT_FOUND);
    });
    std::this_thread::yield();
    cleave_engine_destroy(prefiller);
    cleave_model_release(model);
    cleave_cache_destroy(cache);
    cleave_engine_destroy(engine);
    cleave_queue_destroy(queue);
    cleave_detokenizer_destroy(detokenizer);
    stop = true;
    user.join();
    reader.join();
    printf("%zu pairs\n", calls.size() * (calls.size() + 1) / 2);
    return 0;
}
