#include "support.h"

static cleave_engine_t *engine;
static cleave_queue_t *queue;
static int32_t tokens[64];

static void refused(cleave_request_desc_t desc, cleave_status_t status, const char *named)
{
    cleave_error_t err;
    cleave_request_t id = 0;
    size_t n = 9;
    CHECK_ERR(cleave_engine_submit(engine, &desc, 1, tokens, 64, &id, &n, &err), status);
    CHECK_INT(n, 0);
    CHECK_INT(id, 0);
    CHECK(has_text(&err, named));
}

#define REFUSED(field, value, status)                 \
    do {                                              \
        cleave_request_desc_t desc_ = greedy(8, 4);   \
        desc_.field = (value);                        \
        refused(desc_, status, #field);               \
    } while (0)

static void malformed_requests(void)
{
    cleave_request_desc_t desc = greedy(8, 4);
    const float not_a_number = (float)strtod("nan", NULL);
    REFUSED(flags, 1u << 31, CLEAVE_ERR_UNSUPPORTED);
    REFUSED(reserved, 1, CLEAVE_ERR_UNSUPPORTED);
    REFUSED(temperature, -1.0f, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(temperature, not_a_number, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(top_p, 1.5f, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(min_p, -0.5f, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(repetition_penalty, -1.0f, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(presence_penalty, not_a_number, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(logprobs, -1, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(logprobs, 129, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(prompt_len, 0, CLEAVE_ERR_INVALID_ARGUMENT);
    REFUSED(prompt_len, UINT32_MAX, CLEAVE_ERR_INVALID_ARGUMENT);
    desc.prompt_begin = UINT32_MAX;
    refused(desc, CLEAVE_ERR_INVALID_ARGUMENT, "prompt_begin");
    desc = greedy(8, 4);
    desc.stop_begin = 63;
    desc.stop_len = 2;
    refused(desc, CLEAVE_ERR_INVALID_ARGUMENT, "n_tokens is 64");
    desc = greedy(8, 4);
    desc.logit_bias_len = 3;
    refused(desc, CLEAVE_ERR_INVALID_ARGUMENT, "logit_bias");
    tokens[10] = -3;
    desc = greedy(11, 4);
    refused(desc, CLEAVE_ERR_INVALID_ARGUMENT, "tokens[10]");
    tokens[10] = 5; /* sequence of five tokens, of which two remain in the array */
    desc = greedy(8, 4);
    desc.stop_sequences_begin = 10;
    desc.stop_sequences_len = 3;
    refused(desc, CLEAVE_ERR_INVALID_ARGUMENT, "tokens[10]");
    desc = greedy(1, 4);
    tokens[0] = INT32_MAX;
    refused(desc, CLEAVE_ERR_INVALID_ARGUMENT, "2147483647");
    desc = greedy(8, 4);
    desc.kv = 0x1234567890u;
    tokens[0] = 1;
    refused(desc, CLEAVE_ERR_NOT_FOUND, "0x1234567890");
}

/* Requests before the first refused one are accepted. */
static void a_batch_with_a_bad_one(void)
{
    cleave_error_t err;
    cleave_request_desc_t batch[4];
    cleave_request_t ids[4] = ZERO;
    size_t n = 0, finished = 0;
    int i;
    for (i = 0; i < 4; i++) {
        batch[i] = greedy(8, 3);
        batch[i].user_tag = 100u + (unsigned)i;
    }
    batch[2].top_p = 2;
    CHECK_ERR(cleave_engine_submit(engine, batch, 4, tokens, 64, ids, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_INT(n, 2);
    CHECK(has_text(&err, "requests[2]"));
    CHECK(ids[0] != 0 && ids[1] != 0 && ids[0] != ids[1] && ids[2] == 0);
    while (finished < 2) {
        cleave_event_t event = next_event(queue);
        CHECK(event.user_tag == 100 || event.user_tag == 101);
        finished += event.type == CLEAVE_EVENT_FINISHED;
    }
    batch[1].struct_size = 104;
    batch[2].top_p = 0;
    CHECK_ERR(cleave_engine_submit(engine, batch, 4, tokens, 64, ids, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_INT(n, 1);
    CHECK(has_text(&err, "requests[1]"));
    do {
    } while (next_event(queue).type != CLEAVE_EVENT_FINISHED);
    CHECK_ERR(cleave_engine_submit(engine, NULL, 0, NULL, 0, NULL, &n, &err), CLEAVE_OK);
    CHECK_INT(n, 0);
    CHECK_ERR(cleave_engine_submit(engine, NULL, 1, tokens, 64, ids, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_engine_submit(engine, batch, 1, NULL, 64, ids, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_engine_submit(engine, batch, 1, tokens, 64, NULL, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_engine_submit(engine, batch, 1, tokens, 64, ids, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_engine_submit(engine, batch, SIZE_MAX, tokens, 64, ids, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_engine_submit(engine, batch, 1, tokens, SIZE_MAX, ids, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
}

static void stops(void)
{
    cleave_request_desc_t desc = greedy(8, 16);
    int32_t all[16], some[16];
    size_t n, k;
    cleave_event_t end = run_to_end(queue, submit_one(engine, &desc, tokens, 64), all, 16, &n);
    CHECK_INT(n, 16);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_LENGTH);

    /* The same request stops at the first occurrence of a token. */
    k = n / 2;
    tokens[40] = all[k];
    desc.stop_begin = 40;
    desc.stop_len = 1;
    end = run_to_end(queue, submit_one(engine, &desc, tokens, 64), some, 16, &n);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_STOP);
    CHECK(n <= k + 1);
    CHECK(memcmp(all, some, n * sizeof *all) == 0);

    /* A large enough bias determines the token. */
    desc = greedy(8, 3);
    tokens[42] = 17;
    {
        float bias = 1e6f;
        memcpy(&tokens[43], &bias, sizeof bias);
    }
    desc.logit_bias_begin = 42;
    desc.logit_bias_len = 2;
    end = run_to_end(queue, submit_one(engine, &desc, tokens, 64), some, 16, &n);
    CHECK_INT(n, 3);
    CHECK(some[0] == 17 && some[1] == 17 && some[2] == 17);
}

static void logprobs(void)
{
    cleave_request_desc_t desc = greedy(8, 4);
    cleave_request_t id;
    cleave_event_t event;
    int32_t token = -1;
    int tops = 0, n_tokens = 0;
    float before = 0;
    desc.flags |= CLEAVE_REQUEST_LOGPROBS;
    desc.logprobs = 3;
    id = submit_one(engine, &desc, tokens, 64);
    for (;;) {
        event = next_event(queue);
        CHECK_INT(event.request, id);
        if (event.type == CLEAVE_EVENT_FINISHED)
            break;
        if (event.type == CLEAVE_EVENT_TOKEN) {
            CHECK_INT(tops, 3 * n_tokens);
            CHECK_INT(event.index, n_tokens);
            CHECK(event.logprob <= 0);
            token = event.token;
            n_tokens++;
        } else {
            CHECK_INT(event.type, CLEAVE_EVENT_TOP_LOGPROB);
            if (tops % 3 == 0)
                CHECK_INT(event.token, token); /* greedy: the most likely token is chosen */
            else
                CHECK(event.logprob <= before);
            before = event.logprob;
            tops++;
        }
    }
    CHECK_INT(n_tokens, 4);
    CHECK_INT(tops, 12);
}

static void endings(cleave_cache_t *cache)
{
    cleave_request_desc_t desc = greedy(8, 100000);
    cleave_request_t id;
    cleave_event_t event;
    size_t n;
    {
        /* Without room for its tokens the request does not end before it is cancelled. */
        cleave_queue_t *small = make_queue(8);
        cleave_engine_t *stalled = make_engine(cache, small, CLEAVE_ROLE_MIXED);
        cleave_status_t again;
        id = submit_one(stalled, &desc, tokens, 64);
        CHECK_OK(cleave_engine_cancel(stalled, id, NULL));
        do {
            event = next_event(small);
        } while (event.type != CLEAVE_EVENT_FINISHED);
        CHECK_INT(event.finish_reason, CLEAVE_FINISH_ERROR);
        CHECK_INT(event.status, CLEAVE_ERR_CANCELLED);
        again = cleave_engine_cancel(stalled, id, NULL);
        CHECK(again == CLEAVE_OK || again == CLEAVE_ERR_NOT_FOUND);
        cleave_engine_destroy(stalled);
        cleave_queue_destroy(small);
    }
    CHECK_STATUS(cleave_engine_cancel(engine, 0, NULL), CLEAVE_ERR_NOT_FOUND);
    CHECK_STATUS(cleave_engine_export(engine, 0xdeadbeefcafeu, NULL), CLEAVE_ERR_NOT_FOUND);

    desc.deadline_us = 1;
    id = submit_one(engine, &desc, tokens, 64);
    do {
        event = next_event(queue);
    } while (event.type != CLEAVE_EVENT_FINISHED);
    CHECK_INT(event.status, CLEAVE_ERR_TIMEOUT);
    CHECK_OK(cleave_queue_poll(queue, &event, sizeof event, 1, 0, &n));
    CHECK_INT(n, 0);
}

/* Equal seeds give equal samples; different seeds give different samples. */
static void seeds(void)
{
    cleave_request_desc_t desc = greedy(8, 16);
    int32_t a[16], b[16], c[16];
    size_t n;
    desc.temperature = 5.0f;
    desc.seed = 11;
    run_to_end(queue, submit_one(engine, &desc, tokens, 64), a, 16, &n);
    run_to_end(queue, submit_one(engine, &desc, tokens, 64), b, 16, &n);
    desc.seed = 12;
    run_to_end(queue, submit_one(engine, &desc, tokens, 64), c, 16, &n);
    CHECK(memcmp(a, b, sizeof a) == 0);
    CHECK(memcmp(a, c, sizeof a) != 0);
}

int main(void)
{
    cleave_model_t *model = load_model();
    cleave_cache_t *cache = make_cache(model);
    queue = make_queue(0);
    engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    fill_prompt(tokens, 64, vocab_size(model), 1);
    malformed_requests();
    fill_prompt(tokens, 64, vocab_size(model), 1);
    a_batch_with_a_bad_one();
    stops();
    fill_prompt(tokens, 64, vocab_size(model), 1);
    logprobs();
    endings(cache);
    seeds();
    check_nothing_leaked(cache);
    cleave_engine_destroy(engine);
    cleave_cache_destroy(cache);
    cleave_queue_destroy(queue);
    cleave_model_release(model);
    return 0;
}
