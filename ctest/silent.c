/* The library writes nothing to stdout or stderr, whatever goes wrong. */
#define _GNU_SOURCE
#include "support.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

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
    CHECK(cleave_submit(engine, NULL, 1, NULL, 0, &id, &n, &err) < 0);
    CHECK(cleave_poll(NULL, NULL, 0, 0, 0, &n) < 0);
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
    cleave_model_release(model);
    dup2(saved_out, 1);
    dup2(saved_err, 2);
    CHECK_INT(fstat(file, &captured), 0);
    CHECK_INT(captured.st_size, 0);
    return 0;
}
