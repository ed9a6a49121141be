#include "support.h"
#include <pthread.h>
#include <sys/prctl.h>

static pthread_t main_thread;
static int calls, from_main, named_wrong, reentered_status = 1, bad_level, named_model;

static void sink(uintptr_t user_data, int32_t level, const char *target, const char *message)
{
    char name[17] = ZERO;
    CHECK(user_data == 0x1234);
    calls++;
    from_main |= pthread_equal(pthread_self(), main_thread);
    prctl(PR_GET_NAME, name, 0, 0, 0);
    named_wrong |= strcmp(name, "cleave-log") != 0;
    bad_level |= level < CLEAVE_LOG_ERROR || level > CLEAVE_LOG_DEBUG;
    CHECK(target[0] != 0 && strchr(message, '\n') == NULL);
    named_model |= strstr(message, "model-1") != NULL;
    if (reentered_status == 1) {
        reentered_status = 2;
        reentered_status = cleave_log_set(CLEAVE_LOG_OFF, NULL, 0, NULL);
        /* A sink may call every other function. */
        CHECK(cleave_device_count() >= 0);
    }
}

static void fail_once(const char *path)
{
    cleave_model_t *model;
    CHECK_STATUS(cleave_model_load(path, &model, NULL), CLEAVE_ERR_NOT_FOUND);
}

/* The log of a working host has a line for each object once, and for each step. */
static int loaded, caches, engines, steps, ended;

static void count(uintptr_t user_data, int32_t level, const char *target, const char *message)
{
    (void)user_data;
    loaded += level == CLEAVE_LOG_INFO && strcmp(target, "model") == 0 && strncmp(message, "loaded ", 7) == 0;
    caches += level == CLEAVE_LOG_INFO && strcmp(target, "cache") == 0 && strncmp(message, "created", 7) == 0;
    engines += level == CLEAVE_LOG_INFO && strcmp(target, "engine") == 0 && strncmp(message, "created: Mixed", 14) == 0;
    ended += level == CLEAVE_LOG_INFO && strcmp(target, "engine") == 0 && strcmp(message, "destroyed") == 0;
    steps += level == CLEAVE_LOG_TRACE && strstr(message, "step of 1 ") != NULL;
}

static void tells_of_work(void)
{
    static const int32_t prompt[] = {1, 2, 3};
    int32_t got[4];
    size_t n;
    cleave_queue_t *queue;
    cleave_engine_t *engine;
    cleave_cache_t *cache;
    cleave_request_desc_t desc = ZERO;
    CHECK_OK(cleave_log_set(CLEAVE_LOG_TRACE, count, 0, NULL));
    CHECK_OK(cleave_queue_create(0, &queue, NULL));
    cache = make_cache(load_model());
    engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    desc.struct_size = sizeof desc;
    desc.prompt_len = 3;
    desc.max_new_tokens = 4;
    desc.flags = CLEAVE_REQUEST_IGNORE_EOS;
    CHECK_INT(run_to_end(queue, submit_one(engine, &desc, prompt, 3), got, 4, &n).status, CLEAVE_OK);
    cleave_engine_destroy(engine);
    cleave_engine_destroy(engine);
    cleave_cache_destroy(cache);
    cleave_queue_destroy(queue);
    CHECK_OK(cleave_log_set(CLEAVE_LOG_OFF, NULL, 0, NULL));
    CHECK(loaded == 1 && caches == 1 && engines == 1 && ended == 1 && steps == 4);
}

int main(void)
{
    int before;
    main_thread = pthread_self();
    CHECK_STATUS(cleave_log_set(6, sink, 0, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_log_set(-1, sink, 0, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_OK(cleave_log_set(CLEAVE_LOG_OFF, NULL, 0, NULL));

    CHECK_OK(cleave_log_set(CLEAVE_LOG_DEBUG, sink, 0x1234, NULL));
    fail_once("/no/such/model-1");
    CHECK_OK(cleave_log_set(CLEAVE_LOG_OFF, NULL, 0, NULL)); /* delivers queued messages */
    CHECK(calls > 0);
    CHECK(named_model);
    CHECK_INT(from_main, 0);
    CHECK_INT(named_wrong, 0);
    CHECK_INT(bad_level, 0);
    CHECK_INT(reentered_status, CLEAVE_ERR_INVALID_ARGUMENT);

    before = calls;
    fail_once("/no/such/model-2");
    CHECK_INT(calls, before);

    /* Messages below the level are dropped. */
    CHECK_OK(cleave_log_set(CLEAVE_LOG_WARN, sink, 0x1234, NULL));
    fail_once("/no/such/model-3");
    CHECK_OK(cleave_log_set(CLEAVE_LOG_OFF, sink, 0x1234, NULL));
    CHECK_INT(calls, before);
    tells_of_work();
    return 0;
}
