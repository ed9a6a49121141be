/* Structs grow. Programs and libraries of different versions must work together. */
#include "support.h"
#include <stddef.h>

static cleave_model_t *model;
static cleave_cache_t *cache;
static cleave_queue_t *queue;
static cleave_engine_t *engine;
static cleave_kv_t kv;

static cleave_status_t device_info(void *out) { return cleave_device_info(CLEAVE_DEVICE_CPU, (cleave_device_info_t *)out, NULL); }
static cleave_status_t model_info(void *out) { return cleave_model_info(model, (cleave_model_info_t *)out, NULL); }
static cleave_status_t kv_info(void *out) { return cleave_kv_info(cache, kv, (cleave_kv_info_t *)out, NULL); }
static cleave_status_t metrics(void *out) { return cleave_engine_metrics(engine, (cleave_metrics_t *)out, NULL); }
static cleave_status_t load(void *out) { return cleave_engine_load(engine, (cleave_engine_load_t *)out, NULL); }
static cleave_status_t audit(void *out) { return cleave_cache_audit(cache, (cleave_audit_t *)out, NULL); }

/* The call is refused for an invalid address, which is found after the struct was checked. The report is written even
 * so. */
static cleave_status_t pair_report(void *out)
{
    cleave_status_t status = cleave_cache_pair(cache, "no address", 10, 0, (cleave_pair_report_t *)out, NULL);
    return status == CLEAVE_ERR_CORRUPT ? CLEAVE_OK : status;
}

/* Checks a struct that the library writes, as programs of all other versions pass it. */
static void grows_out(const char *name, cleave_status_t (*call)(void *), size_t size)
{
    union { uint64_t align; unsigned char bytes[2048]; } full, cut;
    uint32_t claimed;
    size_t i;
    const uint32_t nonsense[] = {0, 1, 3, 6, 65540, 0x7fffffff, 0xffffffff};
    printf("%s\n", name);
    memset(&full, 0xa5, sizeof full);
    claimed = (uint32_t)size + 64;
    memcpy(&full, &claimed, 4);
    CHECK_OK(call(&full));
    CHECK(memcmp(&full, &claimed, 4) == 0);
    for (i = size; i < size + 64; i++)
        CHECK_INT(full.bytes[i], 0);
    CHECK_INT(full.bytes[size + 64], 0xa5);
    for (claimed = 4; claimed <= size; claimed += 4) {
        memset(&cut, 0xa5, sizeof cut);
        memcpy(&cut, &claimed, 4);
        CHECK_OK(call(&cut));
        for (i = claimed; i < sizeof cut; i++)
            CHECK_INT(cut.bytes[i], 0xa5);
    }
    for (i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        memcpy(&full, &nonsense[i], 4);
        CHECK_STATUS(call(&full), CLEAVE_ERR_INVALID_ARGUMENT);
    }
    CHECK_STATUS(call(NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(call(full.bytes + 1), CLEAVE_ERR_INVALID_ARGUMENT);
}

static cleave_status_t make_cache_with(const void *config, cleave_error_t *err)
{
    cleave_cache_t *made = NULL;
    cleave_status_t status = cleave_cache_create(model, NULL, 0, (const cleave_cache_config_t *)config, &made, err);
    CHECK((status == CLEAVE_OK) == (made != NULL));
    cleave_cache_destroy(made);
    return status;
}

static cleave_status_t make_engine_with(const void *config, cleave_error_t *err)
{
    cleave_engine_t *made = NULL;
    cleave_status_t status = cleave_engine_create(cache, queue, (const cleave_engine_config_t *)config, &made, err);
    CHECK((status == CLEAVE_OK) == (made != NULL));
    cleave_engine_destroy(made);
    return status;
}

/* The call is refused for a missing prompt, which is found after the struct was read. */
static cleave_status_t submit_with(const void *desc, cleave_error_t *err)
{
    cleave_request_t id;
    size_t n;
    cleave_status_t status = cleave_engine_submit(engine, (const cleave_request_desc_t *)desc, 1, NULL, 0, &id, &n, err);
    return status == CLEAVE_ERR_INVALID_ARGUMENT && strstr(err->message, "prompt_len is 0") ? CLEAVE_OK : status;
}

/* Checks a struct that the library reads. */
static void grows_in(const char *name, cleave_status_t (*call)(const void *, cleave_error_t *), size_t size)
{
    cleave_error_t err;
    union { uint64_t align; unsigned char bytes[2048]; } full;
    const uint32_t nonsense[] = {0, 2, 6, 65540, 0xffffffff};
    uint32_t claimed = (uint32_t)size + 64;
    size_t i;
    printf("%s\n", name);
    memset(&full, 0, sizeof full);
    memcpy(&full, &claimed, 4);
    CHECK_ERR(call(&full, &err), CLEAVE_OK);
    full.bytes[size + 64] = 1; /* beyond struct_size: ignored */
    CHECK_ERR(call(&full, &err), CLEAVE_OK);
    for (i = size; i < size + 64; i += 21) {
        full.bytes[i] = 1;
        CHECK_ERR(call(&full, &err), CLEAVE_ERR_UNSUPPORTED);
        CHECK(has_text(&err, name));
        full.bytes[i] = 0;
    }
    /* Fields that an older program lacks read as zero, whatever follows its struct in memory. */
    for (claimed = 4; claimed <= size; claimed += 4) {
        memset(&full, 0xff, sizeof full);
        memset(&full, 0, claimed);
        memcpy(&full, &claimed, 4);
        CHECK_ERR(call(&full, &err), CLEAVE_OK);
    }
    memset(&full, 0, sizeof full);
    for (i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
        memcpy(&full, &nonsense[i], 4);
        CHECK_ERR(call(&full, &err), CLEAVE_ERR_INVALID_ARGUMENT);
        CHECK(nonsense[i] != 0 || has_text(&err, name));
    }
}

/* Arrays of requests of a later version, and of the first one: the first struct_size is the stride. */
static void strides(void)
{
    cleave_error_t err;
    union { uint64_t align; unsigned char bytes[1024]; } array;
    const uint32_t sizes[] = {104, sizeof(cleave_request_desc_t), sizeof(cleave_request_desc_t) + 40};
    size_t k;
    int32_t tokens[8];
    fill_prompt(tokens, 8, vocab_size(model), 4);
    for (k = 0; k < 3; k++) {
        cleave_request_t ids[3] = ZERO;
        size_t n = 0, i, finished = 0;
        memset(&array, 0, sizeof array);
        for (i = 0; i < 3; i++) {
            cleave_request_desc_t desc = greedy(8, (uint32_t)i + 1);
            desc.user_tag = i;
            desc.struct_size = sizes[k];
            memcpy(array.bytes + i * sizes[k], &desc, sizes[k] < sizeof desc ? sizes[k] : sizeof desc);
        }
        CHECK_ERR(cleave_engine_submit(engine, (const cleave_request_desc_t *)(const void *)&array, 3, tokens, 8, ids, &n, &err),
                  CLEAVE_OK);
        CHECK_INT(n, 3);
        while (finished < 3) {
            cleave_event_t event = next_event(queue);
            if (event.type == CLEAVE_EVENT_FINISHED) {
                CHECK_INT(event.index, event.user_tag + 1);
                CHECK_INT(event.request, ids[event.user_tag]);
                finished++;
            }
        }
    }
}

int main(void)
{
    /* Fields of the first version have kept their offsets. */
    CHECK(offsetof(cleave_request_desc_t, cache_salt) == 96 && offsetof(cleave_request_desc_t, min_new_tokens) == 104);
    CHECK(offsetof(cleave_engine_config_t, flags) == 20 && offsetof(cleave_engine_config_t, max_waiting) == 24);
    CHECK(offsetof(cleave_metrics_t, steps) == 32 && offsetof(cleave_kv_info_t, fingerprint) == 40);
    CHECK(offsetof(cleave_engine_config_t, local_prefill_tokens) == 28 && offsetof(cleave_engine_config_t, cpu_mask) == 32);
    CHECK(offsetof(cleave_engine_config_t, sm_percent) == 160 && offsetof(cleave_metrics_t, prefill_step_tokens) == 216);
    CHECK(offsetof(cleave_cache_config_t, secret) == 28 && offsetof(cleave_cache_config_t, peer_timeout_ms) == 60);
    CHECK(offsetof(cleave_metrics_t, imports) == offsetof(cleave_metrics_t, role_switch_ns_last) + 8);
    CHECK(offsetof(cleave_pair_report_t, detail) == 32 && sizeof(cleave_pair_report_t) == 192);
    CHECK(sizeof(cleave_event_t) == 64 && sizeof(cleave_error_t) == 256 && sizeof(cleave_cache_config_t) == 72);
    CHECK(sizeof(cleave_cache_event_t) == 64 && offsetof(cleave_cache_config_t, events_kept) == 64);
    CHECK(offsetof(cleave_engine_load_t, steps) == 88 && sizeof(cleave_engine_load_t) == 136);

    grows_out("cleave_device_info_t", device_info, sizeof(cleave_device_info_t));
    model = load_model();
    cache = make_cache(model);
    queue = make_queue(0);
    engine = make_engine(cache, queue, CLEAVE_ROLE_PREFILL);
    {
        cleave_request_desc_t desc = greedy(8, 2);
        int32_t tokens[8];
        size_t n;
        fill_prompt(tokens, 8, vocab_size(model), 4);
        kv = run_to_end(queue, submit_one(engine, &desc, tokens, 8), tokens, 8, &n).kv;
        CHECK(kv != 0);
    }
    CHECK_OK(cleave_engine_set_role(engine, CLEAVE_ROLE_MIXED, NULL));
    grows_out("cleave_model_info_t", model_info, sizeof(cleave_model_info_t));
    grows_out("cleave_kv_info_t", kv_info, sizeof(cleave_kv_info_t));
    grows_out("cleave_metrics_t", metrics, sizeof(cleave_metrics_t));
    grows_out("cleave_engine_load_t", load, sizeof(cleave_engine_load_t));
    grows_out("cleave_audit_t", audit, sizeof(cleave_audit_t));
    grows_out("cleave_pair_report_t", pair_report, sizeof(cleave_pair_report_t));
    grows_in("cleave_cache_config_t", make_cache_with, sizeof(cleave_cache_config_t));
    grows_in("cleave_engine_config_t", make_engine_with, sizeof(cleave_engine_config_t));
    grows_in("cleave_request_desc_t", submit_with, sizeof(cleave_request_desc_t));
    strides();
    cleave_kv_release(cache, kv, NULL);
    cleave_engine_destroy(engine);
    cleave_queue_destroy(queue);
    cleave_cache_destroy(cache);
    cleave_model_release(model);
    return 0;
}
