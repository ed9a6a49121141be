/* Shared by the tests: checks that print their location, a model to run, and the usual calls of an engine. */
#ifndef CLEAVE_CTEST_SUPPORT_H
#define CLEAVE_CTEST_SUPPORT_H

#include <cleave/cleave.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
#define ZERO {}
#else
#define ZERO {0}
#endif

#define SKIPPED 77

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition);         \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

#define CHECK_INT(found, wanted)                                                           \
    do {                                                                                   \
        long long found_ = (long long)(found), wanted_ = (long long)(wanted);              \
        if (found_ != wanted_) {                                                           \
            fprintf(stderr, "%s:%d: %s is %lld, should be %s = %lld\n", __FILE__, __LINE__, #found, found_, #wanted, \
                    wanted_);                                                              \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

/* Checks a call without cleave_error_t. */
#define CHECK_STATUS(call, wanted) check_status(__FILE__, __LINE__, #call, (call), (wanted), NULL)
#define CHECK_OK(call) CHECK_STATUS(call, CLEAVE_OK)
/* Checks a call that fills `err`. Prints the failure's text; an expected failure must have one. */
#define CHECK_ERR(call, wanted) check_status(__FILE__, __LINE__, #call, (call), (wanted), &err)

static inline void check_status(const char *file, int line, const char *call, cleave_status_t found,
                                cleave_status_t wanted, const cleave_error_t *err)
{
    if (found != wanted) {
        fprintf(stderr, "%s:%d: %s is %s, should be %s\n", file, line, call, cleave_status_string(found),
                cleave_status_string(wanted));
        if (err != NULL && found != CLEAVE_OK)
            fprintf(stderr, "    %.252s\n", err->message);
        exit(1);
    }
    if (err != NULL && found != CLEAVE_OK && (err->code != found || err->message[0] == 0)) {
        fprintf(stderr, "%s:%d: %s filled no error\n", file, line, call);
        exit(1);
    }
}

static inline int has_text(const cleave_error_t *err, const char *part)
{
    if (strstr(err->message, part) != NULL)
        return 1;
    fprintf(stderr, "no \"%s\" in \"%.252s\"\n", part, err->message);
    return 0;
}

/* Returns the directory of the model that the tests run, or NULL. */
static inline const char *model_path(void)
{
    char config[4096]; /* local, because two threads may call this at once */
    const char *path = getenv("CLEAVE_TEST_MODEL");
    FILE *file;
    if (path == NULL)
        path = "models/tiny";
    snprintf(config, sizeof config, "%s/config.json", path);
    file = fopen(config, "r");
    if (file == NULL)
        return NULL;
    fclose(file);
    return path;
}

static inline cleave_model_t *load_model(void)
{
    cleave_error_t err;
    cleave_model_t *model = NULL;
    const char *path = model_path();
    if (path == NULL) {
        printf("skipped: no model at CLEAVE_TEST_MODEL or models/tiny\n");
        exit(SKIPPED);
    }
    CHECK_ERR(cleave_model_load(path, &model, &err), CLEAVE_OK);
    CHECK(model != NULL);
    return model;
}

static inline uint32_t vocab_size(const cleave_model_t *model)
{
    cleave_model_info_t info = ZERO;
    info.struct_size = sizeof info;
    CHECK_OK(cleave_model_info(model, &info, NULL));
    return info.vocab_size;
}

static inline cleave_cache_t *make_cache(cleave_model_t *model)
{
    cleave_error_t err;
    cleave_cache_t *cache = NULL;
    cleave_cache_config_t config = ZERO;
    config.struct_size = sizeof config;
    config.bytes_per_device = 16u << 20;
    memset(config.secret, 0x5e, sizeof config.secret);
    CHECK_ERR(cleave_cache_create(model, NULL, 0, &config, &cache, &err), CLEAVE_OK);
    return cache;
}

static inline cleave_queue_t *make_queue(uint32_t capacity)
{
    cleave_error_t err;
    cleave_queue_t *queue = NULL;
    CHECK_ERR(cleave_queue_create(capacity, &queue, &err), CLEAVE_OK);
    return queue;
}

static inline cleave_engine_t *make_engine(cleave_cache_t *cache, cleave_queue_t *queue, uint32_t role)
{
    cleave_error_t err;
    cleave_engine_t *engine = NULL;
    cleave_engine_config_t config = ZERO;
    config.struct_size = sizeof config;
    config.role = role;
    config.threads = 1;
    config.max_sequences = 8;
    config.max_batch_tokens = 64;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, &engine, &err), CLEAVE_OK);
    return engine;
}

/* Fills in `n` tokens that every vocabulary has. Different seeds give different tokens. */
static inline void fill_prompt(int32_t *tokens, size_t n, uint32_t vocab, uint32_t seed)
{
    size_t i;
    for (i = 0; i < n; i++)
        tokens[i] = (int32_t)((i * 7 + seed * 31 + 3) % (vocab < 64 ? vocab : 64));
}

static inline cleave_request_desc_t greedy(uint32_t prompt_len, uint32_t max_new_tokens)
{
    cleave_request_desc_t desc = ZERO;
    desc.struct_size = sizeof desc;
    desc.flags = CLEAVE_REQUEST_IGNORE_EOS;
    desc.prompt_len = prompt_len;
    desc.max_new_tokens = max_new_tokens;
    return desc;
}

static inline cleave_request_t submit_one(cleave_engine_t *engine, const cleave_request_desc_t *desc,
                                          const int32_t *tokens, size_t n_tokens)
{
    cleave_error_t err;
    cleave_request_t id = 0;
    size_t n_accepted = 0;
    CHECK_ERR(cleave_engine_submit(engine, desc, 1, tokens, n_tokens, &id, &n_accepted, &err), CLEAVE_OK);
    CHECK_INT(n_accepted, 1);
    CHECK(id != 0);
    return id;
}

/* Returns the next event, which must arrive within a minute. */
static inline cleave_event_t next_event(cleave_queue_t *queue)
{
    cleave_event_t event = ZERO;
    size_t n = 0;
    CHECK_OK(cleave_queue_poll(queue, &event, sizeof event, 1, 60000, &n));
    CHECK_INT(n, 1);
    return event;
}

/* Collects the tokens of one request until it has finished. */
static inline cleave_event_t run_to_end(cleave_queue_t *queue, cleave_request_t id, int32_t *tokens, size_t cap,
                                        size_t *n)
{
    *n = 0;
    for (;;) {
        cleave_event_t event = next_event(queue);
        if (event.type == CLEAVE_EVENT_KV_READY)
            continue;
        CHECK_INT(event.request, id);
        if (event.type == CLEAVE_EVENT_FINISHED)
            return event;
        if (event.type == CLEAVE_EVENT_TOKEN) {
            CHECK(*n < cap);
            tokens[(*n)++] = event.token;
        }
    }
}

static inline void check_nothing_leaked(cleave_cache_t *cache)
{
    cleave_audit_t audit = ZERO;
    audit.struct_size = sizeof audit;
    CHECK_OK(cleave_cache_audit(cache, &audit, NULL));
    CHECK_INT(audit.leaked, 0);
    CHECK_INT(audit.by_requests + audit.by_transfers + audit.by_exports + audit.by_prefix_index + audit.free,
              audit.total);
}

#endif
