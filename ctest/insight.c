#include "support.h"

static char *metrics_text(size_t *len)
{
    char *text;
    size_t again;
    CHECK_OK(cleave_metrics_text(NULL, 0, len, NULL));
    CHECK(*len > 0);
    text = (char *)malloc(*len + 256);
    CHECK(text != NULL);
    CHECK_OK(cleave_metrics_text(text, *len + 256, &again, NULL));
    CHECK_INT(strlen(text), again);
    *len = again;
    return text;
}

/* Returns the next series of `name` in `text`, or NULL. */
static const char *find_series(const char *text, const char *name)
{
    size_t len = strlen(name);
    while ((text = strstr(text, name)) != NULL && (text[-1] != '\n' || text[len] != '{'))
        text += len;
    return text;
}

static int series_of(const char *text, const char *name)
{
    int n = 0;
    while ((text = find_series(text, name)) != NULL) {
        text += strlen(name);
        n++;
    }
    return n;
}

/* Returns the value of the series of `name` that has `labels`. It must exist. */
static long long value_of(const char *text, const char *name, const char *labels)
{
    while ((text = find_series(text, name)) != NULL) {
        const char *end = strchr(text, '\n'), *found = strstr(text, labels);
        if (found != NULL && found < end)
            return strtoll(strstr(text, "} ") + 2, NULL, 10);
        text = end;
    }
    fprintf(stderr, "no %s with %s\n", name, labels);
    exit(1);
}

static cleave_engine_load_t load_of(cleave_engine_t *engine)
{
    cleave_error_t err;
    cleave_engine_load_t load = ZERO;
    load.struct_size = sizeof load;
    CHECK_ERR(cleave_engine_load(engine, &load, &err), CLEAVE_OK);
    CHECK_INT(load.running, load.prefilling + load.decoding);
    return load;
}

/* `one` has computed 20 prompt tokens and generated 5, and `two` nothing. */
static void check_loads(cleave_engine_t *one, cleave_engine_t *two)
{
    cleave_engine_load_t load = load_of(one);
    while (load.running != 0 || load.decode_tokens_per_second == 0) /* the last step has not ended yet */
        load = load_of(one);
    CHECK(load.flags == 0 && load.role == CLEAVE_ROLE_MIXED && load.role_requested == CLEAVE_ROLE_MIXED);
    CHECK(load.waiting == 0 && load.importing == 0 && load.role_since_step == 0);
    CHECK(load.blocks_free == load.blocks_total && load.blocks_cached == 1 && load.block_tokens == 16);
    CHECK(load.max_sequences == 8 && load.max_waiting == 1024 && load.max_batch_tokens == 64);
    CHECK(load.prefill_tokens_per_second > load.decode_tokens_per_second);
    CHECK(load.role_since_ns > 0 && load.role_since_ns <= load.timestamp_ns);
    load = load_of(two);
    CHECK(load.steps == 0 && load.prefill_tokens_per_second == 0 && load.decode_tokens_per_second == 0);
    CHECK_OK(cleave_engine_set_role(two, CLEAVE_ROLE_PREFILL, NULL));
    CHECK_INT(load_of(two).role_requested, CLEAVE_ROLE_PREFILL);
    while ((load = load_of(two)).role != CLEAVE_ROLE_PREFILL)
        ;
    CHECK(load.prefilling_at_switch + load.decoding_at_switch + load.waiting_at_switch + load.importing_at_switch == 0);
    CHECK_OK(cleave_engine_set_role(two, CLEAVE_ROLE_DECODE, NULL));
    while ((load = load_of(two)).role != CLEAVE_ROLE_DECODE)
        ;
    CHECK_OK(cleave_engine_drain(two, 0, NULL));
    CHECK_INT(load_of(two).flags, CLEAVE_LOAD_DRAINING);
}

int main(void)
{
    size_t len, got;
    char small[4];
    char *text = metrics_text(&len);
    CHECK(strstr(text, "# TYPE cleave_generation_tokens counter\n") != NULL);
    CHECK(text[len - 1] == '\n' && strstr(text, "# EOF") == NULL); /* the text is a fragment */
    CHECK(strstr(text, "engine=") == NULL);
    free(text);
    CHECK_STATUS(cleave_metrics_text(small, sizeof small, &got, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(got > sizeof small);
    CHECK_STATUS(cleave_metrics_text(NULL, 5, &got, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_metrics_text(small, 4, NULL, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    {
        cleave_model_t *model = load_model();
        cleave_cache_t *cache = make_cache(model);
        cleave_queue_t *queue = make_queue(0);
        cleave_engine_t *one = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
        cleave_engine_t *two = make_engine(cache, queue, CLEAVE_ROLE_DECODE);
        cleave_request_desc_t desc = greedy(20, 5);
        cleave_metrics_t metrics = ZERO;
        int32_t tokens[20], new_tokens[5];
        fill_prompt(tokens, 20, vocab_size(model), 2);
        run_to_end(queue, submit_one(one, &desc, tokens, 20), new_tokens, 5, &got);
        metrics.struct_size = sizeof metrics;
        CHECK_OK(cleave_engine_metrics(one, &metrics, NULL));
        CHECK_INT(metrics.prompt_tokens, 20);
        CHECK_INT(metrics.generated_tokens, 5);
        CHECK(metrics.blocks_total > 0 && metrics.blocks_free <= metrics.blocks_total);
        CHECK(metrics.steps >= 4); /* the last step may not have ended yet */
        text = metrics_text(&len);
        CHECK_INT(value_of(text, "cleave_generation_tokens_total", "engine=\"0\",role=\"mixed\""), 5);
        CHECK_INT(value_of(text, "cleave_generation_tokens_total", "engine=\"1\",role=\"decode\""), 0);
        /* One request with five tokens gives one wait in the queue, one first token, four intervals and one end. */
        CHECK_INT(value_of(text, "cleave_request_queue_time_seconds_count", "engine=\"0\""), 1);
        CHECK_INT(value_of(text, "cleave_time_to_first_token_seconds_count", "engine=\"0\""), 1);
        CHECK_INT(value_of(text, "cleave_inter_token_latency_seconds_count", "engine=\"0\""), 4);
        CHECK_INT(value_of(text, "cleave_e2e_request_latency_seconds_count", "engine=\"0\""), 1);
        CHECK_INT(value_of(text, "cleave_handoff_seconds_count", "engine=\"0\""), 0);
        CHECK(value_of(text, "cleave_step_batch_size_count", "engine=\"0\"") >= 4);
        /* Two engines share one cache, whose blocks are counted once. */
        CHECK_INT(series_of(text, "cleave_kv_blocks"), 1);
        CHECK_INT(value_of(text, "cleave_kv_blocks", "cache="), (long long)metrics.blocks_total);
        /* Nothing is measured on the CPU; a decode engine takes few prompt tokens. */
        CHECK_INT(metrics.prefill_step_tokens, 64);
        CHECK(metrics.prefill_tokens_per_second == 0 && metrics.multiprocessors == 0);
        CHECK_INT(value_of(text, "cleave_prefill_step_tokens", "engine=\"1\""), 64);
        free(text);
        check_loads(one, two);
        check_nothing_leaked(cache);
        cleave_engine_destroy(one);
        text = metrics_text(&len);
        CHECK(strstr(text, "engine=\"0\"") == NULL && strstr(text, "engine=\"1\"") != NULL);
        free(text);
        cleave_engine_destroy(two);
        cleave_cache_destroy(cache);
        cleave_queue_destroy(queue);
        cleave_model_release(model);
    }
    return 0;
}
