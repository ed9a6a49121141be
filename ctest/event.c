#include "support.h"
#include <poll.h>
#include <time.h>

int main(void)
{
    cleave_model_t *model = load_model();
    cleave_cache_t *cache = make_cache(model);
    cleave_queue_t *queue = make_queue(8);
    cleave_engine_t *engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    cleave_request_desc_t desc = greedy(8, 40);
    struct pollfd p = ZERO;
    int32_t prompt[8];
    uint32_t index = 0;
    uint64_t last_ns = 0;
    size_t n, i;
    int done = 0;
    char wide[4][96], narrow[4][48];
    const size_t head = 48;
    fill_prompt(prompt, 8, vocab_size(model), 1);
    CHECK(sizeof(cleave_event_t) == 64);

    /* Forty tokens pass through a queue of eight places: the engine waits, and no token is lost. */
    desc.user_tag = 77;
    submit_one(engine, &desc, prompt, 8);
    p.fd = cleave_queue_fd(queue);
    p.events = POLLIN;
    while (!done) {
        CHECK_INT(poll(&p, 1, 60000), 1);
        memset(wide, 0x55, sizeof wide);
        CHECK_OK(cleave_queue_poll(queue, (cleave_event_t *)(void *)wide, 96, 4, 0, &n));
        CHECK(n <= 4);
        for (i = 0; i < n; i++) {
            cleave_event_t event;
            size_t k;
            memcpy(&event, wide[i], sizeof event);
            for (k = sizeof event; k < 96; k++)
                CHECK_INT(wide[i][k], 0);
            CHECK_INT(event.user_tag, 77);
            CHECK_INT(event.cached_tokens, 0);
            CHECK_INT(event.flags, 0);
            CHECK(event.timestamp_ns >= last_ns);
            last_ns = event.timestamp_ns;
            if (event.type == CLEAVE_EVENT_TOKEN)
                CHECK_INT(event.index, index++);
            else
                done = event.type == CLEAVE_EVENT_FINISHED && event.index == 40;
        }
        for (; n > 0 && i < 4; i++)
            CHECK_INT(wide[i][0], 0x55);
    }
    CHECK_INT(index, 40);
    CHECK_INT(poll(&p, 1, 0), 0);
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        CHECK(last_ns <= (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec);
    }

    /* A program with a shorter event struct gets the fields that it knows. */
    desc.max_new_tokens = 1;
    submit_one(engine, &desc, prompt, 8);
    CHECK_INT(poll(&p, 1, 60000), 1);
    memset(narrow, 0x55, sizeof narrow);
    CHECK_OK(cleave_queue_poll(queue, (cleave_event_t *)(void *)narrow, head, 1, 60000, &n));
    CHECK_INT(n, 1);
    {
        uint32_t type;
        memcpy(&type, narrow[0], sizeof type);
        CHECK_INT(type, CLEAVE_EVENT_TOKEN);
        CHECK_INT(narrow[1][0], 0x55);
    }
    cleave_engine_destroy(engine);
    cleave_queue_destroy(queue);
    cleave_cache_destroy(cache);
    cleave_model_release(model);
    return 0;
}
