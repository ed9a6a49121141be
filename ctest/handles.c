/* Every function returns an error for a handle that is NULL, stale, destroyed twice, of another type or garbage. */
#include "support.h"

enum { MODEL, CACHE, QUEUE, ENGINE, DETOKENIZER, KINDS };

static void *alive[KINDS], *dead[KINDS];
static cleave_error_t err;
static char buffer[4096];
static size_t n;

#define MODEL_OF(h) ((cleave_model_t *)(h))
#define CACHE_OF(h) ((cleave_cache_t *)(h))
#define QUEUE_OF(h) ((cleave_queue_t *)(h))
#define ENGINE_OF(h) ((cleave_engine_t *)(h))
#define DETOK_OF(h) ((cleave_detokenizer_t *)(h))

static cleave_model_info_t model_info_ = ZERO;
static cleave_kv_info_t kv_info_ = ZERO;
static cleave_metrics_t metrics_ = ZERO;
static cleave_engine_load_t load_ = ZERO;
static cleave_audit_t audit_ = ZERO;
static cleave_pair_report_t report_ = ZERO;
static cleave_request_desc_t desc_ = ZERO;
static cleave_event_t event_;
static cleave_cache_event_t cache_event_;
static cleave_cache_event_range_t range_ = ZERO;
static cleave_request_t id_;
static cleave_kv_t kv_;
static int32_t ids_[4];
static int32_t tokens_[8];
static cleave_cache_t *cache_;
static cleave_engine_t *engine_;
static cleave_detokenizer_t *detokenizer_;

/* Every function that takes an object and returns a status: the object's kind, the function's name, the call. */
#define FUNCTIONS(F) \
    F(MODEL, model_info, MODEL_OF(h), &model_info_, &err) \
    F(MODEL, tokenize, MODEL_OF(h), "a", 1, 0, tokens_, 8, &n, &err) \
    F(MODEL, chat_prompt, MODEL_OF(h), "[]", 2, NULL, 0, NULL, 0, 0, buffer, sizeof buffer, &n, &err) \
    F(MODEL, token_bytes, MODEL_OF(h), 1, buffer, sizeof buffer, &n, &err) \
    F(MODEL, detokenizer_create, MODEL_OF(h), &detokenizer_, &err) \
    F(MODEL, cache_create, MODEL_OF(h), NULL, 0, NULL, &cache_, &err) \
    F(MODEL, cache_create_with_progress, MODEL_OF(h), NULL, 0, NULL, NULL, 0, &cache_, &err) \
    F(DETOKENIZER, detokenizer_push, DETOK_OF(h), 1, buffer, sizeof buffer, &n, &err) \
    F(DETOKENIZER, detokenizer_flush, DETOK_OF(h), buffer, sizeof buffer, &n, &err) \
    F(QUEUE, queue_fd, QUEUE_OF(h)) \
    F(QUEUE, queue_poll, QUEUE_OF(h), &event_, sizeof event_, 1, 0, &n) \
    F(CACHE, engine_create, CACHE_OF(h), QUEUE_OF(alive[QUEUE]), NULL, &engine_, &err) \
    F(CACHE, kv_info, CACHE_OF(h), 1, &kv_info_, &err) \
    F(CACHE, kv_tokens, CACHE_OF(h), 1, ids_, 4, &n, &err) \
    F(CACHE, kv_set_host_data, CACHE_OF(h), 1, "x", 1, &err) \
    F(CACHE, kv_host_data, CACHE_OF(h), 1, buffer, sizeof buffer, &n, &err) \
    F(CACHE, kv_ticket, CACHE_OF(h), 1, buffer, sizeof buffer, &n, &err) \
    F(CACHE, kv_read_image, CACHE_OF(h), 1, 0, buffer, sizeof buffer, &n, &err) \
    F(CACHE, kv_import, CACHE_OF(h), NULL, buffer, 10, 0, &kv_, &err) \
    F(CACHE, kv_save, CACHE_OF(h), 1, "/no/such/directory/x", &err) \
    F(CACHE, kv_load, CACHE_OF(h), "/no/such/directory/x", &kv_, &err) \
    F(CACHE, kv_duplicate, CACHE_OF(h), 1, &kv_, &err) \
    F(CACHE, kv_renew, CACHE_OF(h), 1, 1000, &err) \
    F(CACHE, kv_release, CACHE_OF(h), 1, &err) \
    F(CACHE, cache_listen, CACHE_OF(h), "127.0.0.1:0", NULL, 0, NULL, &err) \
    F(CACHE, cache_address, CACHE_OF(h), buffer, sizeof buffer, &n, &err) \
    F(CACHE, cache_pair, CACHE_OF(h), "x", 1, 0, &report_, &err) \
    F(CACHE, cache_events, CACHE_OF(h), 1, &cache_event_, sizeof cache_event_, 1, tokens_, 8, 0, &range_, &err) \
    F(CACHE, cache_event_snapshot, CACHE_OF(h), &cache_event_, sizeof cache_event_, 1, tokens_, 8, &range_, &err) \
    F(CACHE, cache_audit, CACHE_OF(h), &audit_, &err) \
    F(ENGINE, engine_set_role, ENGINE_OF(h), CLEAVE_ROLE_MIXED, &err) \
    F(ENGINE, engine_set_sm_percent, ENGINE_OF(h), 100, &err) \
    F(ENGINE, engine_drain, ENGINE_OF(h), 0, &err) \
    F(ENGINE, engine_submit, ENGINE_OF(h), &desc_, 1, tokens_, 8, &id_, &n, &err) \
    F(ENGINE, engine_cancel, ENGINE_OF(h), 1, &err) \
    F(ENGINE, engine_export, ENGINE_OF(h), 1, &err) \
    F(ENGINE, engine_metrics, ENGINE_OF(h), &metrics_, &err) \
    F(ENGINE, engine_load, ENGINE_OF(h), &load_, &err)

#define CALL(kind, name, ...) \
    static cleave_status_t call_##name(void *h) { return cleave_##name(__VA_ARGS__); }
FUNCTIONS(CALL)

/* Calls with a bad second handle, for the functions that have two. */
static cleave_status_t call_engine_create_queue(void *h)
{
    return cleave_engine_create(CACHE_OF(alive[CACHE]), QUEUE_OF(h), NULL, &engine_, &err);
}
static cleave_status_t call_kv_import_queue(void *h)
{
    if (h == NULL) /* allowed: there is no event queue */
        return CLEAVE_ERR_INVALID_ARGUMENT;
    return cleave_kv_import(CACHE_OF(alive[CACHE]), QUEUE_OF(h), "x", 1, 0, &kv_, &err);
}

static void end_model(void *h) { cleave_model_release(MODEL_OF(h)); }
static void end_cache(void *h) { cleave_cache_destroy(CACHE_OF(h)); }
static void end_queue(void *h) { cleave_queue_destroy(QUEUE_OF(h)); }
static void end_engine(void *h) { cleave_engine_destroy(ENGINE_OF(h)); }
static void end_detokenizer(void *h) { cleave_detokenizer_destroy(DETOK_OF(h)); }
static void (*const ends[KINDS])(void *) = {end_model, end_cache, end_queue, end_engine, end_detokenizer};

static const struct {
    const char *name;
    int kind;
    cleave_status_t (*call)(void *);
} calls[] = {
#define ROW(kind, name, ...) {#name, kind, call_##name},
    FUNCTIONS(ROW)
    {"engine_create_queue", QUEUE, call_engine_create_queue},
    {"kv_import_queue", QUEUE, call_kv_import_queue},
};

static void gives(size_t row, void *handle, cleave_status_t wanted, const char *what)
{
    cleave_status_t found;
    memset(&err, 0, sizeof err);
    found = calls[row].call(handle);
    /* A failure has a text, except from the functions that poll and in calls that this test fails itself. */
    if (handle != NULL && strncmp(calls[row].name, "queue_", 6) != 0)
        CHECK(err.code == found && err.message[0] != 0);
    if (found != wanted) {
        fprintf(stderr, "cleave_%s on a handle that is %s: %s, should be %s\n", calls[row].name, what,
                cleave_status_string(found), cleave_status_string(wanted));
        exit(1);
    }
}

int main(void)
{
    size_t row, i;
    int kind;
    uint64_t local = 0;
    void *garbage[] = {(void *)1, (void *)8, (void *)4096, &local, buffer, (void *)(intptr_t)-1};
    model_info_.struct_size = sizeof model_info_;
    kv_info_.struct_size = sizeof kv_info_;
    metrics_.struct_size = sizeof metrics_;
    load_.struct_size = sizeof load_;
    audit_.struct_size = sizeof audit_;
    report_.struct_size = sizeof report_;
    range_.struct_size = sizeof range_;
    desc_ = greedy(8, 1);

    for (kind = 0; kind < 2; kind++) { /* first the dead objects, then the live ones */
        void **objects = kind == 0 ? dead : alive;
        cleave_model_t *model = load_model();
        cleave_detokenizer_t *d = NULL;
        cleave_cache_t *cache = make_cache(model);
        cleave_queue_t *queue = make_queue(64);
        objects[MODEL] = model;
        objects[CACHE] = cache;
        objects[QUEUE] = queue;
        objects[ENGINE] = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
        if (cleave_detokenizer_create(model, &d, &err) != CLEAVE_OK)
            CHECK_INT(err.code, CLEAVE_ERR_UNSUPPORTED); /* the model has no tokenizer */
        objects[DETOKENIZER] = d;
    }
    for (i = 0; i < 3; i++) /* destroying twice or more often does nothing */
        for (kind = 0; kind < KINDS; kind++)
            ends[kind](dead[kind]);
    for (kind = 0; kind < KINDS; kind++) {
        ends[kind](NULL);
        for (i = 0; i < sizeof garbage / sizeof *garbage; i++)
            ends[kind](garbage[i]);
        for (i = 0; i < KINDS; i++) /* the destroy function of another type does nothing */
            if ((int)i != kind)
                ends[kind](alive[i]);
    }
    for (row = 0; row < sizeof calls / sizeof *calls; row++) {
        gives(row, NULL, CLEAVE_ERR_INVALID_ARGUMENT, "NULL");
        for (i = 0; i < sizeof garbage / sizeof *garbage; i++)
            gives(row, garbage[i], CLEAVE_ERR_INVALID_ARGUMENT, "garbage");
        if (dead[calls[row].kind] != NULL)
            gives(row, dead[calls[row].kind], CLEAVE_ERR_NOT_FOUND, "stale");
        for (kind = 0; kind < KINDS; kind++)
            if (kind != calls[row].kind && alive[kind] != NULL)
                gives(row, alive[kind], CLEAVE_ERR_INVALID_ARGUMENT, "of another type");
    }
    /* The live objects still work. */
    CHECK_OK(call_model_info(alive[MODEL]));
    CHECK_OK(call_cache_audit(alive[CACHE]));
    CHECK_OK(call_queue_poll(alive[QUEUE]));
    CHECK_OK(call_engine_metrics(alive[ENGINE]));
    CHECK(cache_ == NULL && engine_ == NULL && detokenizer_ == NULL && kv_ == 0 && id_ == 0);
    for (kind = KINDS; kind-- > 0;)
        ends[kind](alive[kind]);
    return 0;
}
