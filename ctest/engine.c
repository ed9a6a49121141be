#include "support.h"

int main(void)
{
    cleave_error_t err;
    cleave_model_t *model = load_model();
    cleave_cache_t *cache = make_cache(model);
    cleave_queue_t *queue = make_queue(0);
    cleave_engine_t *engine = NULL;
    cleave_engine_config_t config = ZERO;
    cleave_metrics_t metrics = ZERO;
    cleave_request_desc_t desc = greedy(8, 8);
    cleave_request_t id;
    cleave_event_t end;
    int32_t prompt[8], got[8];
    size_t n;
    fill_prompt(prompt, 8, vocab_size(model), 1);
    config.struct_size = sizeof config;
    metrics.struct_size = sizeof metrics;

    config.role = 3;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, &engine, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    config.role = CLEAVE_ROLE_PREFILL;
    config.flags = 1;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, &engine, &err), CLEAVE_ERR_UNSUPPORTED);
    config.flags = 0;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(engine == NULL);
    config.reserved = 1;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, &engine, &err), CLEAVE_ERR_UNSUPPORTED);
    config.reserved = 0;
    /* The CPU has no multiprocessors to partition. */
    config.sm_percent = 101;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, &engine, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    config.sm_percent = 50;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, &engine, &err), CLEAVE_ERR_UNSUPPORTED);
    CHECK(engine == NULL && has_text(&err, "sm_percent"));
    config.sm_percent = 0;
    CHECK_ERR(cleave_engine_create(cache, queue, NULL, &engine, &err), CLEAVE_OK);
    CHECK_ERR(cleave_engine_set_sm_percent(engine, 50, &err), CLEAVE_ERR_UNSUPPORTED);
    CHECK_ERR(cleave_engine_set_sm_percent(engine, 101, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_engine_set_sm_percent(engine, 100, &err), CLEAVE_OK);
    CHECK_ERR(cleave_engine_set_sm_percent(NULL, 0, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    cleave_engine_destroy(engine);
    CHECK_ERR(cleave_engine_set_sm_percent(engine, 0, &err), CLEAVE_ERR_NOT_FOUND);

    /* Most machines have CPU 0. If the process may not use it, the call may fail. */
    config.cpu_mask[0] = 1;
    config.threads = 1;
    if (cleave_engine_create(cache, queue, &config, &engine, &err) != CLEAVE_OK) {
        CHECK(err.code == CLEAVE_ERR_INVALID_ARGUMENT || err.code == CLEAVE_ERR_NOT_FOUND);
        config.cpu_mask[0] = 0;
        CHECK_ERR(cleave_engine_create(cache, queue, &config, &engine, &err), CLEAVE_OK);
    }
    CHECK_OK(cleave_engine_metrics(engine, &metrics, NULL));
    CHECK_INT(metrics.role, CLEAVE_ROLE_PREFILL);

    /* A prefill engine hands over; the same engine in the mixed role runs to the end. */
    id = submit_one(engine, &desc, prompt, 8);
    end = run_to_end(queue, id, got, 8, &n);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_PREFILLED);
    CHECK_INT(end.status, CLEAVE_OK);
    CHECK(end.kv != 0);
    CHECK_OK(cleave_kv_release(cache, end.kv, NULL));
    CHECK_ERR(cleave_engine_set_role(engine, 9, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_engine_set_role(engine, CLEAVE_ROLE_MIXED, &err), CLEAVE_OK);
    id = submit_one(engine, &desc, prompt, 8);
    end = run_to_end(queue, id, got, 8, &n);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_LENGTH);
    CHECK_INT(n, 8);
    CHECK_INT(end.index, 8);
    CHECK_OK(cleave_engine_metrics(engine, &metrics, NULL));
    CHECK_INT(metrics.role, CLEAVE_ROLE_MIXED);
    CHECK(metrics.steps > 0 && metrics.generated_tokens >= 8 && metrics.busy_ns > 0);
    check_nothing_leaked(cache);

    /* A draining engine refuses new requests and finishes the old ones. */
    desc.max_new_tokens = 32;
    id = submit_one(engine, &desc, prompt, 8);
    CHECK_OK(cleave_engine_drain(engine, UINT32_MAX, NULL));
    CHECK(cleave_engine_submit(engine, &desc, 1, prompt, 8, &id, &n, &err) == CLEAVE_ERR_SHUTDOWN);
    CHECK_INT(n, 0);
    do {
        end = next_event(queue);
    } while (end.type != CLEAVE_EVENT_FINISHED);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_LENGTH);

    /* Destroying an engine ends its open requests with an event. It works after other handles were destroyed. */
    cleave_engine_destroy(engine);
    config.role = CLEAVE_ROLE_MIXED;
    CHECK_ERR(cleave_engine_create(cache, queue, &config, &engine, &err), CLEAVE_OK);
    desc.max_new_tokens = 100000;
    id = submit_one(engine, &desc, prompt, 8);
    cleave_model_release(model);
    cleave_engine_destroy(engine);
    do {
        end = next_event(queue);
        CHECK_INT(end.request, id);
    } while (end.type != CLEAVE_EVENT_FINISHED);
    CHECK(end.status == CLEAVE_ERR_SHUTDOWN || end.finish_reason == CLEAVE_FINISH_LENGTH);
    CHECK_OK(cleave_queue_poll(queue, &end, sizeof end, 1, 0, &n));
    CHECK_INT(n, 0);
    check_nothing_leaked(cache);
    cleave_cache_destroy(cache);
    cleave_queue_destroy(queue);
    return 0;
}
