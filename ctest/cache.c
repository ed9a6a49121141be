#include "support.h"

/* Calls of a progress function, and its return value. */
struct told {
    cleave_model_t *model;
    int calls, cancel;
    uint64_t done, total;
};

static int32_t progress(uintptr_t user_data, uint64_t done, uint64_t total)
{
    struct told *told = (struct told *)user_data;
    cleave_error_t err;
    cleave_cache_t *cache = NULL;
    cleave_model_info_t info = ZERO;
    info.struct_size = sizeof info;
    told->calls++;
    told->done = done;
    told->total = total;
    CHECK_OK(cleave_model_info(told->model, &info, NULL));
    CHECK_ERR(cleave_cache_create(told->model, NULL, 0, NULL, &cache, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "progress function"));
    CHECK(cache == NULL);
    return told->cancel;
}

static void check_progress(cleave_model_t *model, const cleave_cache_config_t *config)
{
    cleave_error_t err;
    cleave_cache_t *cache = NULL;
    cleave_model_info_t info = ZERO;
    struct told told = ZERO;
    uintptr_t user_data = (uintptr_t)&told;
    info.struct_size = sizeof info;
    CHECK_OK(cleave_model_info(model, &info, NULL));
    told.model = model;

    told.cancel = -3;
    CHECK_ERR(cleave_cache_create_with_progress(model, NULL, 0, config, progress, user_data, &cache, &err),
              CLEAVE_ERR_CANCELLED);
    CHECK(cache == NULL && told.calls == 1);
    /* On the CPU the weights are mapped, so all bytes are available at once. */
    told.cancel = 0;
    CHECK_ERR(cleave_cache_create_with_progress(model, NULL, 0, config, progress, user_data, &cache, &err), CLEAVE_OK);
    CHECK(told.calls == 2 && told.done == told.total && told.total == info.weight_bytes);
    cleave_cache_destroy(cache);
    /* The progress function is optional. The pointer for the new cache is not. */
    CHECK_ERR(cleave_cache_create_with_progress(model, NULL, 0, config, NULL, 0, &cache, &err), CLEAVE_OK);
    cleave_cache_destroy(cache);
    CHECK_ERR(cleave_cache_create_with_progress(model, NULL, 0, config, progress, user_data, NULL, &err),
              CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(told.calls == 2);
}

int main(void)
{
    cleave_error_t err;
    cleave_model_t *model = load_model();
    cleave_cache_t *cache = NULL, *defaults = NULL;
    cleave_cache_config_t config = ZERO;
    cleave_audit_t audit = ZERO;
    const int32_t cpu = CLEAVE_DEVICE_CPU, cuda = 99, nonsense = -5;
    const int32_t two[] = {CLEAVE_DEVICE_CPU, CLEAVE_DEVICE_CPU};
    config.struct_size = sizeof config;
    config.bytes_per_device = 1u << 20;
    audit.struct_size = sizeof audit;

    CHECK_ERR(cleave_cache_create(model, &nonsense, 1, &config, &cache, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(cleave_cache_create(model, &cuda, 1, &config, &cache, &err) < 0);
    CHECK(err.code == CLEAVE_ERR_NOT_FOUND || err.code == CLEAVE_ERR_UNSUPPORTED);
    CHECK_ERR(cleave_cache_create(model, two, 2, &config, &cache, &err), CLEAVE_ERR_UNSUPPORTED);
    CHECK_ERR(cleave_cache_create(model, NULL, 1, &config, &cache, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    config.dtype = 77;
    CHECK_ERR(cleave_cache_create(model, &cpu, 1, &config, &cache, &err), CLEAVE_ERR_UNSUPPORTED);
    config.dtype = 0;
    config.flags = 1u << 30;
    CHECK_ERR(cleave_cache_create(model, &cpu, 1, &config, &cache, &err), CLEAVE_ERR_UNSUPPORTED);
    config.flags = CLEAVE_CACHE_NO_PREFIX;
    config.block_tokens = 257;
    CHECK_ERR(cleave_cache_create(model, &cpu, 1, &config, &cache, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    config.block_tokens = 0;
    CHECK(cache == NULL);
    check_progress(model, &config);
    cache = NULL;

    config.dtype = CLEAVE_DTYPE_I8;
    config.flags |= CLEAVE_CACHE_NO_CONVERT | CLEAVE_CACHE_SHARE_WEIGHTS;
    CHECK_ERR(cleave_cache_create(model, &cpu, 1, &config, &cache, &err), CLEAVE_OK);
    cleave_cache_destroy(cache);
    config.dtype = 0;

    CHECK_ERR(cleave_cache_create(model, &cpu, 1, &config, &cache, &err), CLEAVE_OK);
    CHECK_OK(cleave_cache_audit(cache, &audit, NULL));
    CHECK(audit.total > 0 && audit.free == audit.total && audit.leaked == 0);
    CHECK_ERR(cleave_cache_create(model, NULL, 0, NULL, &defaults, &err), CLEAVE_OK);

    /* A cache keeps its model alive. */
    cleave_model_release(model);
    CHECK_OK(cleave_cache_audit(cache, &audit, NULL));
    cleave_cache_destroy(defaults);
    cleave_cache_destroy(cache);
    CHECK_STATUS(cleave_cache_audit(cache, &audit, NULL), CLEAVE_ERR_NOT_FOUND);
    cleave_cache_destroy(cache);
    cleave_cache_destroy(NULL);
    return 0;
}
