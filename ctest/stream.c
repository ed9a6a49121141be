/* KV that is streamed while its prompt is computed, KV that does not arrive, and prompts that belong on another engine. */
#define _POSIX_C_SOURCE 200809L
#include "support.h"
#include <time.h>

#define PROMPT 200 /* four steps of a test engine */
#define NEW 12

static cleave_model_t *model;
static cleave_queue_t *queue;
static int32_t prompt[PROMPT], wanted[NEW];

static cleave_cache_t *cache_with_lease(uint32_t lease_ms)
{
    cleave_error_t err;
    cleave_cache_t *cache = NULL;
    cleave_cache_config_t config = ZERO;
    config.struct_size = sizeof config;
    config.bytes_per_device = 16u << 20;
    config.lease_ms = lease_ms;
    memset(config.secret, 3, sizeof config.secret);
    CHECK_ERR(cleave_cache_create(model, NULL, 0, &config, &cache, &err), CLEAVE_OK);
    return cache;
}

static cleave_metrics_t metrics_of(cleave_engine_t *engine)
{
    cleave_metrics_t metrics = ZERO;
    metrics.struct_size = sizeof metrics;
    CHECK_OK(cleave_engine_metrics(engine, &metrics, NULL));
    return metrics;
}

struct ticket {
    char bytes[4096];
    size_t len;
};

static struct ticket ticket_of(cleave_cache_t *cache, cleave_kv_t kv)
{
    cleave_error_t err;
    struct ticket ticket;
    CHECK_ERR(cleave_kv_ticket(cache, kv, ticket.bytes, sizeof ticket.bytes, &ticket.len, &err), CLEAVE_OK);
    return ticket;
}

static cleave_kv_t import(cleave_cache_t *cache, const struct ticket *ticket, uint64_t tag)
{
    cleave_error_t err;
    cleave_kv_t kv = 0;
    CHECK_ERR(cleave_kv_import(cache, queue, ticket->bytes, ticket->len, tag, &kv, &err), CLEAVE_OK);
    CHECK(kv != 0);
    return kv;
}

/* Runs a request to its end among the events of others. Its tokens must equal a mixed engine's. Returns the flags of
 * its FINISHED event. */
static uint32_t goes_on(cleave_engine_t *engine, cleave_kv_t kv, uint32_t flags)
{
    cleave_request_desc_t desc = greedy(0, 0);
    cleave_event_t event;
    cleave_request_t id;
    uint32_t n = 0;
    desc.flags = flags;
    desc.kv = kv;
    id = submit_one(engine, &desc, NULL, 0);
    do {
        event = next_event(queue);
        if (event.request != id)
            continue;
        if (event.type == CLEAVE_EVENT_TOKEN) {
            CHECK_INT(event.index, n);
            CHECK(n < NEW && event.token == wanted[n]);
            n++;
        }
    } while (event.request != id || event.type != CLEAVE_EVENT_FINISHED);
    CHECK_INT(event.status, CLEAVE_OK);
    CHECK_INT(event.finish_reason, CLEAVE_FINISH_LENGTH);
    CHECK_INT(n, NEW);
    return event.flags;
}

/* KV_STREAM_STARTED comes first, then FINISHED with the same handle. KV computed between the two is pulled meanwhile. */
static void streams(void)
{
    cleave_error_t err;
    cleave_cache_t *from = cache_with_lease(0), *to = cache_with_lease(0);
    cleave_engine_t *prefiller = make_engine(from, queue, CLEAVE_ROLE_PREFILL);
    cleave_engine_t *decoder = make_engine(to, queue, CLEAVE_ROLE_DECODE);
    cleave_request_desc_t desc = greedy(PROMPT, NEW);
    cleave_kv_info_t info = ZERO;
    cleave_event_t event;
    cleave_request_t id;
    cleave_status_t cancelled;
    cleave_kv_t kv, there;
    struct ticket ticket;
    int ended = 0, ready = 0;
    info.struct_size = sizeof info;
    desc.flags |= CLEAVE_REQUEST_STREAM_KV;
    desc.user_tag = 7;
    id = submit_one(prefiller, &desc, prompt, PROMPT);
    event = next_event(queue);
    CHECK_INT(event.type, CLEAVE_EVENT_KV_STREAM_STARTED);
    CHECK(event.request == id && event.user_tag == 7 && event.kv != 0 && event.token == -1 && event.timestamp_ns > 0);
    kv = event.kv;
    CHECK_OK(cleave_kv_info(from, kv, &info, NULL));
    CHECK(info.n_tokens >= PROMPT && info.n_tokens <= PROMPT + 1 && info.n_computed <= PROMPT && info.lease_left_ms > 0);
    CHECK(info.n_computed == PROMPT || info.flags & CLEAVE_KV_STREAMING);
    ticket = ticket_of(from, kv);
    there = import(to, &ticket, 8);
    desc = greedy(0, 0);
    desc.flags = CLEAVE_REQUEST_EMIT_PENDING;
    desc.kv = there;
    desc.user_tag = 9;
    submit_one(decoder, &desc, NULL, 0);
    while (ended < 2 || ready < 1) { /* KV_READY is independent of FINISHED and may follow it */
        event = next_event(queue);
        if (event.type == CLEAVE_EVENT_TOKEN) {
            CHECK(event.user_tag == 7 || event.user_tag == 9);
            CHECK(event.index < (event.user_tag == 7 ? 1u : NEW) && event.token == wanted[event.index]);
        } else if (event.type == CLEAVE_EVENT_KV_READY) {
            CHECK(event.kv == there && event.user_tag == 8 && event.status == CLEAVE_OK);
            ready++;
        } else {
            CHECK_INT(event.type, CLEAVE_EVENT_FINISHED);
            CHECK_INT(event.status, CLEAVE_OK);
            CHECK_INT(event.finish_reason, event.user_tag == 7 ? CLEAVE_FINISH_PREFILLED : CLEAVE_FINISH_LENGTH);
            CHECK_INT(event.kv, event.user_tag == 7 ? kv : 0);
            CHECK_INT(event.index, event.user_tag == 7 ? 1 : NEW);
            ended++;
        }
    }
    CHECK_INT(ready, 1);
    CHECK_STATUS(cleave_kv_info(from, kv, &info, NULL), CLEAVE_ERR_EXPIRED); /* its KV was fetched */
    there = import(to, &ticket, 10);                                   /* too late for another import */
    event = next_event(queue);
    CHECK(event.type == CLEAVE_EVENT_KV_READY && event.user_tag == 10 && event.status == CLEAVE_ERR_EXPIRED);
    CHECK_OK(cleave_kv_release(to, there, NULL));
    {
        cleave_metrics_t m = metrics_of(decoder);
        CHECK(m.imports == 1 && m.imports_failed == 1 && m.recomputed == 0 && m.kv_bytes_in > 0);
        CHECK_INT(m.kv_bytes_hidden + m.kv_bytes_exposed, m.kv_bytes_in);
        CHECK_INT(m.kv_exposed_ns_total, m.kv_exposed_ns_last);
    }

    /* A request that ends without its KV also ends its handle. */
    desc = greedy(PROMPT, NEW);
    desc.flags |= CLEAVE_REQUEST_STREAM_KV;
    desc.cache_salt = 5; /* nothing is in the prefix cache */
    id = submit_one(prefiller, &desc, prompt, PROMPT);
    event = next_event(queue);
    CHECK_INT(event.type, CLEAVE_EVENT_KV_STREAM_STARTED);
    kv = event.kv;
    cancelled = cleave_engine_cancel(prefiller, id, NULL);
    CHECK(cancelled == CLEAVE_OK || cancelled == CLEAVE_ERR_NOT_FOUND); /* the prompt may have ended first */
    do {
        event = next_event(queue);
    } while (event.type != CLEAVE_EVENT_FINISHED);
    if (event.status == CLEAVE_ERR_CANCELLED) {
        CHECK_INT(event.kv, 0);
        CHECK(cleave_kv_ticket(from, kv, ticket.bytes, sizeof ticket.bytes, &ticket.len, &err) < 0);
    } else {
        CHECK_INT(event.kv, kv);
        CHECK_OK(cleave_kv_release(from, kv, NULL));
    }
    cleave_engine_destroy(prefiller);
    cleave_engine_destroy(decoder);
    check_nothing_leaked(from);
    check_nothing_leaked(to);
    cleave_cache_destroy(from);
    cleave_cache_destroy(to);
}

/* Engines of other roles do not support streaming export. */
static void streams_from_prefill_engines_only(void)
{
    cleave_cache_t *cache = cache_with_lease(0);
    uint32_t role;
    for (role = CLEAVE_ROLE_MIXED; role <= CLEAVE_ROLE_DECODE; role++) {
        cleave_engine_t *engine = make_engine(cache, queue, role);
        cleave_request_desc_t desc = greedy(PROMPT, NEW);
        cleave_event_t event;
        int started = 0;
        desc.flags |= CLEAVE_REQUEST_STREAM_KV;
        desc.cache_salt = role + 1;
        submit_one(engine, &desc, prompt, PROMPT);
        do {
            event = next_event(queue);
            started += event.type == CLEAVE_EVENT_KV_STREAM_STARTED;
        } while (event.type != CLEAVE_EVENT_FINISHED);
        CHECK_INT(started, role == CLEAVE_ROLE_PREFILL);
        CHECK((event.kv != 0) == (role == CLEAVE_ROLE_PREFILL));
        cleave_kv_release(cache, event.kv, NULL);
        cleave_engine_destroy(engine);
    }
    check_nothing_leaked(cache);
    cleave_cache_destroy(cache);
}

/* If the exporter's lease has ended or the exporter is gone, there is an error, or the same tokens are computed here. */
static void recomputes(void)
{
    cleave_cache_t *from = cache_with_lease(1000), *gone = cache_with_lease(0), *to = cache_with_lease(0);
    cleave_engine_t *decoder = make_engine(to, queue, CLEAVE_ROLE_DECODE);
    struct timespec tick = {0, 10000000};
    cleave_kv_info_t info = ZERO;
    int i;
    info.struct_size = sizeof info;
    for (i = 0; i < 4; i++) {
        cleave_cache_t *exporter = i < 2 ? from : gone;
        cleave_engine_t *prefiller = make_engine(exporter, queue, CLEAVE_ROLE_PREFILL);
        cleave_request_desc_t desc = greedy(PROMPT, NEW);
        cleave_status_t why = i < 2 ? CLEAVE_ERR_EXPIRED : 0;
        cleave_event_t event;
        struct ticket ticket;
        cleave_kv_t kv;
        int32_t first[2];
        size_t n;
        event = run_to_end(queue, submit_one(prefiller, &desc, prompt, PROMPT), first, 2, &n);
        ticket = ticket_of(exporter, event.kv);
        cleave_engine_destroy(prefiller);
        if (i == 3)
            cleave_cache_destroy(gone);
        if (i == 2) /* released by its host */
            CHECK_OK(cleave_kv_release(exporter, event.kv, NULL));
        if (i == 1) /* the lease ends soon, after the ticket was made */
            CHECK_OK(cleave_kv_renew(exporter, event.kv, 20, NULL));
        while (i < 2 && cleave_kv_info(exporter, event.kv, &info, NULL) == CLEAVE_OK)
            nanosleep(&tick, NULL);
        kv = import(to, &ticket, 70u + (unsigned)i);
        if (i % 2 == 0) { /* KV_READY is read before the request is submitted */
            cleave_event_t ready = next_event(queue);
            CHECK_INT(ready.type, CLEAVE_EVENT_KV_READY);
            CHECK(ready.kv == kv && ready.status < 0 && (why == 0 || ready.status == why));
            why = ready.status;
        }
        if (i == 0) { /* without the flag it is an error */
            cleave_error_t err;
            cleave_request_t id;
            desc = greedy(0, 0);
            desc.kv = kv;
            CHECK_ERR(cleave_engine_submit(decoder, &desc, 1, NULL, 0, &id, &n, &err), why);
            CHECK_INT(n, 0);
        }
        CHECK_INT(goes_on(decoder, kv, CLEAVE_REQUEST_RECOMPUTE | CLEAVE_REQUEST_EMIT_PENDING), CLEAVE_EVENT_RECOMPUTED);
        CHECK_INT(metrics_of(decoder).recomputed, i + 1);
        CHECK_INT(metrics_of(decoder).imports_failed, i + 1);
        CHECK(cleave_kv_info(to, kv, &info, NULL) < 0);
    }
    cleave_engine_destroy(decoder);
    check_nothing_leaked(from);
    check_nothing_leaked(to);
    cleave_cache_destroy(from);
    cleave_cache_destroy(to);
}

/* Conditional disaggregation: short or cached prompts are prefilled here, all others elsewhere. */
static void refuses_long_prompts(void)
{
    cleave_error_t err;
    cleave_cache_t *cache = cache_with_lease(0);
    cleave_engine_t *decoder, *mixed = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    cleave_engine_config_t config = ZERO;
    cleave_request_desc_t desc = greedy(33, 2);
    cleave_request_t id = 0;
    int32_t got[NEW];
    size_t n;
    config.struct_size = sizeof config;
    config.role = CLEAVE_ROLE_DECODE;
    config.threads = 1;
    config.local_prefill_tokens = 32;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, &decoder, &err), CLEAVE_OK);
    CHECK_ERR(cleave_engine_submit(decoder, &desc, 1, prompt, PROMPT, &id, &n, &err), CLEAVE_ERR_PREFILL_ELSEWHERE);
    CHECK(n == 0 && id == 0 && has_text(&err, "local_prefill_tokens is 32") && has_text(&err, "33 to compute"));
    desc.prompt_len = 32; /* short enough */
    CHECK_INT(run_to_end(queue, submit_one(decoder, &desc, prompt, PROMPT), got, NEW, &n).status, CLEAVE_OK);

    /* Only the rest of a cached prompt counts. With another salt nothing is cached. */
    desc = greedy(PROMPT, NEW);
    CHECK_ERR(cleave_engine_submit(decoder, &desc, 1, prompt, PROMPT, &id, &n, &err), CLEAVE_ERR_PREFILL_ELSEWHERE);
    CHECK(has_text(&err, "32 of them cached"));
    run_to_end(queue, submit_one(mixed, &desc, prompt, PROMPT), got, NEW, &n);
    run_to_end(queue, submit_one(decoder, &desc, prompt, PROMPT), got, NEW, &n);
    CHECK(n == NEW && memcmp(got, wanted, sizeof got) == 0);
    desc.cache_salt = 1;
    CHECK_ERR(cleave_engine_submit(decoder, &desc, 1, prompt, PROMPT, &id, &n, &err), CLEAVE_ERR_PREFILL_ELSEWHERE);

    /* A handle is accepted whatever its length. The limit applies to the decode role only. */
    {
        cleave_engine_t *prefiller = make_engine(cache, queue, CLEAVE_ROLE_PREFILL);
        cleave_event_t end = run_to_end(queue, submit_one(prefiller, &desc, prompt, PROMPT), got, NEW, &n);
        CHECK_INT(goes_on(decoder, end.kv, CLEAVE_REQUEST_EMIT_PENDING), 0);
        cleave_engine_destroy(prefiller);
    }
    desc.cache_salt = 2;
    CHECK_ERR(cleave_engine_set_role(decoder, CLEAVE_ROLE_MIXED, &err), CLEAVE_OK);
    CHECK_INT(run_to_end(queue, submit_one(decoder, &desc, prompt, PROMPT), got, NEW, &n).status, CLEAVE_OK);
    CHECK(n == NEW && memcmp(got, wanted, sizeof got) == 0);
    desc.cache_salt = 3;
    CHECK_ERR(cleave_engine_set_role(decoder, CLEAVE_ROLE_DECODE, &err), CLEAVE_OK);
    CHECK_ERR(cleave_engine_submit(decoder, &desc, 1, prompt, PROMPT, &id, &n, &err), CLEAVE_ERR_PREFILL_ELSEWHERE);
    cleave_engine_destroy(decoder);
    cleave_engine_destroy(mixed);
    check_nothing_leaked(cache);
    cleave_cache_destroy(cache);
}

int main(void)
{
    cleave_cache_t *cache;
    cleave_engine_t *engine;
    cleave_request_desc_t desc = greedy(PROMPT, NEW);
    size_t n;
    CHECK(strcmp(cleave_status_string(CLEAVE_ERR_PREFILL_ELSEWHERE), "PREFILL_ELSEWHERE") == 0);
    model = load_model();
    queue = make_queue(0);
    cache = make_cache(model);
    engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    fill_prompt(prompt, PROMPT, vocab_size(model), 6);
    run_to_end(queue, submit_one(engine, &desc, prompt, PROMPT), wanted, NEW, &n);
    CHECK_INT(n, NEW);
    cleave_engine_destroy(engine);
    cleave_cache_destroy(cache);
    streams();
    streams_from_prefill_engines_only();
    recomputes();
    refuses_long_prompts();
    cleave_queue_destroy(queue);
    cleave_model_release(model);
    return 0;
}
