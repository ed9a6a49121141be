/* The library writes nothing to stdout or stderr, even if calls fail. */
#define _GNU_SOURCE
#include "support.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Two caches exchange KV over sockets as two processes would, with wrong input, and with one cache gone. */
static void with_peers(cleave_model_t *model)
{
    cleave_error_t err;
    cleave_cache_t *from = make_cache(model), *to = make_cache(model);
    cleave_queue_t *queue = make_queue(16);
    cleave_engine_t *prefiller = make_engine(from, queue, CLEAVE_ROLE_PREFILL);
    cleave_engine_t *decoder = make_engine(to, queue, CLEAVE_ROLE_DECODE);
    cleave_pair_report_t report = ZERO;
    cleave_request_desc_t desc = greedy(8, 4);
    int32_t tokens[8], got[8];
    char address[1024], ticket[1024];
    size_t len, n;
    int i;
    report.struct_size = sizeof report;
    fill_prompt(tokens, 8, vocab_size(model), 2);
    CHECK(cleave_cache_listen(from, "nowhere", NULL, 0, NULL, &err) < 0);
    CHECK(cleave_cache_pair(to, "garbage", 7, 0, &report, &err) < 0);
    CHECK_ERR(cleave_cache_listen(from, "127.0.0.1:0", NULL, CLEAVE_LISTEN_ENCRYPT, NULL, &err), CLEAVE_OK);
    CHECK_ERR(cleave_cache_address(from, address, sizeof address, &len, &err), CLEAVE_OK);
    CHECK_ERR(cleave_cache_pair(to, address, len, CLEAVE_TRANSPORT_TCP, &report, &err), CLEAVE_OK);
    CHECK(cleave_cache_pair(to, address, len, CLEAVE_TRANSPORT_NIXL, &report, &err) < 0 || report.transport == CLEAVE_TRANSPORT_NIXL);
    for (i = 0; i < 2; i++) {
        cleave_event_t event;
        desc = greedy(8, 4);
        desc.flags |= CLEAVE_REQUEST_STREAM_KV;
        submit_one(prefiller, &desc, tokens, 8);
        do {
            event = next_event(queue);
        } while (event.type != CLEAVE_EVENT_FINISHED);
        CHECK_ERR(cleave_kv_ticket(from, event.kv, ticket, sizeof ticket, &n, &err), CLEAVE_OK);
        if (i == 1) /* while connections are open */
            cleave_cache_destroy(from);
        desc = greedy(0, 0);
        desc.flags = CLEAVE_REQUEST_RECOMPUTE;
        CHECK_ERR(cleave_kv_import(to, NULL, ticket, n, 0, &desc.kv, &err), CLEAVE_OK);
        run_to_end(queue, submit_one(decoder, &desc, NULL, 0), got, 8, &n);
    }
    CHECK(cleave_cache_pair(to, address, len, 0, &report, &err) < 0);
    cleave_engine_destroy(prefiller);
    cleave_cache_destroy(to);
    cleave_engine_destroy(decoder);
    cleave_queue_destroy(queue);
}

static void scenario(cleave_model_t *model)
{
    cleave_error_t err;
    cleave_model_t *none = NULL;
    cleave_cache_t *cache = make_cache(model);
    cleave_queue_t *queue = make_queue(16);
    cleave_engine_t *engine = make_engine(cache, queue, CLEAVE_ROLE_PREFILL);
    cleave_engine_t *decoder = make_engine(cache, queue, CLEAVE_ROLE_DECODE);
    cleave_request_desc_t desc = greedy(8, 4);
    cleave_request_t id;
    int32_t tokens[8], got[8];
    size_t n;
    cleave_kv_t kv;
    fill_prompt(tokens, 8, vocab_size(model), 1);
    CHECK(cleave_model_load("/no/such", &none, &err) < 0);
    CHECK(cleave_model_load("/proc/self", &none, &err) < 0);
    CHECK(cleave_kv_import(cache, queue, "garbage", 7, 0, &kv, &err) < 0);
    CHECK(cleave_kv_load(cache, "/proc/self/cmdline", &kv, &err) < 0);
    CHECK(cleave_engine_submit(engine, NULL, 1, NULL, 0, &id, &n, &err) < 0);
    CHECK(cleave_queue_poll(NULL, NULL, 0, 0, 0, &n) < 0);
    desc.kv = run_to_end(queue, submit_one(engine, &desc, tokens, 8), got, 8, &n).kv;
    desc.prompt_len = 0;
    run_to_end(queue, submit_one(decoder, &desc, tokens, 8), got, 8, &n);
    desc = greedy(8, 100000);
    submit_one(decoder, &desc, tokens, 8);
    cleave_engine_destroy(decoder);
    cleave_cache_destroy(cache);
    cleave_engine_destroy(engine);
    cleave_engine_destroy(engine);
    cleave_queue_destroy(queue);
}

int main(void)
{
    cleave_model_t *model = load_model();
    struct stat captured;
    int saved_out = dup(1), saved_err = dup(2);
    int file = open(".", O_TMPFILE | O_RDWR, 0600);
    CHECK(saved_out >= 0 && saved_err >= 0 && file >= 0);
    fflush(NULL);
    dup2(file, 1);
    dup2(file, 2);
    scenario(model);
    with_peers(model);
    cleave_model_release(model);
    dup2(saved_out, 1);
    dup2(saved_err, 2);
    CHECK_INT(fstat(file, &captured), 0);
    CHECK_INT(captured.st_size, 0);
    return 0;
}
