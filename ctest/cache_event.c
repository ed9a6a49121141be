/* Cache events: what a router learns about the prefix index. */
#include "support.h"

enum { BLOCK = 8, KEPT = 16 };

static cleave_model_t *model;
static cleave_queue_t *queue;
static cleave_cache_event_t events[64];
static int32_t tokens[64 * BLOCK];

static cleave_cache_t *make_recording_cache(uint32_t events_kept)
{
    cleave_error_t err;
    cleave_cache_t *cache = NULL;
    cleave_cache_config_t config = ZERO;
    config.struct_size = sizeof config;
    config.block_tokens = BLOCK;
    config.bytes_per_device = 1u << 20;
    config.events_kept = events_kept;
    CHECK_ERR(cleave_cache_create(model, NULL, 0, &config, &cache, &err), CLEAVE_OK);
    return cache;
}

static cleave_cache_event_range_t read_events(cleave_cache_t *cache, uint64_t next, size_t capacity)
{
    cleave_error_t err;
    cleave_cache_event_range_t range = ZERO;
    range.struct_size = sizeof range;
    CHECK_ERR(cleave_cache_events(cache, next, events, sizeof *events, capacity, tokens, 64 * BLOCK, 0, &range, &err), CLEAVE_OK);
    CHECK_INT(range.next, next + range.n_events);
    return range;
}

static void run(cleave_engine_t *engine, const int32_t *prompt, uint32_t n, uint64_t salt)
{
    cleave_request_desc_t desc = greedy(n, 1);
    int32_t out[1];
    size_t got;
    desc.cache_salt = salt;
    run_to_end(queue, submit_one(engine, &desc, prompt, n), out, 1, &got);
}

/* The first three blocks of a prompt, with or without a salt. */
static void check_stored(const cleave_cache_event_t *event, size_t n, const int32_t *prompt, uint64_t salt)
{
    size_t i;
    for (i = 0; i < n; i++, event++) {
        CHECK_INT(event->type, CLEAVE_CACHE_EVENT_STORED);
        CHECK_INT(event->medium, CLEAVE_MEDIUM_CPU);
        CHECK_INT(event->position, i);
        CHECK_INT(event->group, 0);
        CHECK_INT(event->cache_salt, salt);
        CHECK_INT(event->n_tokens, BLOCK);
        CHECK(event->block_hash != 0 && event->parent_hash == (i == 0 ? 0 : event[-1].block_hash));
        CHECK(memcmp(tokens + event->tokens_begin, prompt + i * BLOCK, BLOCK * sizeof *tokens) == 0);
    }
}

static void stored_blocks_are_told(void)
{
    cleave_cache_t *cache = make_recording_cache(KEPT);
    cleave_engine_t *engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    cleave_cache_event_range_t range;
    cleave_cache_event_t plain[3];
    int32_t prompt[3 * BLOCK + 1];
    fill_prompt(prompt, 3 * BLOCK + 1, vocab_size(model), 1);
    range = read_events(cache, 1, 64);
    CHECK(range.n_events == 0 && range.n_tokens == 0 && range.oldest == 1 && range.end == 1);
    run(engine, prompt, 3 * BLOCK + 1, 0);
    range = read_events(cache, 1, 64);
    CHECK(range.n_events == 3 && range.n_tokens == 3 * BLOCK && range.end == 4);
    check_stored(events, 3, prompt, 0);
    CHECK(events[0].sequence == 1 && events[2].sequence == 3);
    memcpy(plain, events, sizeof plain);
    /* The same prompt again is found and stores nothing; with a salt its blocks are others. */
    run(engine, prompt, 3 * BLOCK + 1, 0);
    run(engine, prompt, 3 * BLOCK + 1, 0x5a17);
    range = read_events(cache, 4, 64);
    CHECK_INT(range.n_events, 3);
    check_stored(events, 3, prompt, 0x5a17);
    CHECK(events[0].block_hash != plain[0].block_hash && events[2].block_hash != plain[2].block_hash);
    /* Little room: as many events as fit, and the number of the next one. */
    range = read_events(cache, 1, 2);
    CHECK(range.n_events == 2 && range.next == 3 && range.end == 7);
    {
        cleave_error_t err;
        CHECK_ERR(cleave_cache_events(cache, 1, events, sizeof *events, 64, tokens, 2 * BLOCK - 1, 0, &range, &err), CLEAVE_OK);
        CHECK(range.n_events == 1 && range.n_tokens == BLOCK && range.next == 2);
        CHECK_ERR(cleave_cache_events(cache, 1, events, sizeof *events, 64, tokens, BLOCK - 1, 0, &range, &err),
                  CLEAVE_ERR_INVALID_ARGUMENT);
        CHECK(has_text(&err, "tokens has room for 7, a block has 8"));
        CHECK_ERR(cleave_cache_events(cache, 8, events, sizeof *events, 64, tokens, 0, 0, &range, &err), CLEAVE_ERR_INVALID_ARGUMENT);
        CHECK(has_text(&err, "event 8 was asked for"));
        CHECK_ERR(cleave_cache_events(cache, 1, events, 56, 64, tokens, 0, 0, &range, &err), CLEAVE_ERR_INVALID_ARGUMENT);
        CHECK_ERR(cleave_cache_events(cache, 1, NULL, 64, 64, tokens, 0, 0, &range, &err), CLEAVE_ERR_INVALID_ARGUMENT);
        /* A timeout without events is no error. */
        CHECK_ERR(cleave_cache_events(cache, 7, events, 64, 64, tokens, 8, 1, &range, &err), CLEAVE_OK);
        CHECK_INT(range.n_events, 0);
    }
    cleave_engine_destroy(engine);
    cleave_cache_destroy(cache);
}

/* Small cache, many prompts: blocks are removed, and a reader that waited too long continues from a snapshot. */
static void a_gap_is_told_and_a_snapshot_helps(void)
{
    cleave_error_t err;
    cleave_cache_t *cache = make_recording_cache(KEPT);
    cleave_engine_t *engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    cleave_cache_event_range_t range = ZERO, read = ZERO;
    cleave_cache_event_t *blocks;
    int32_t *block_tokens, prompt[4 * BLOCK];
    uint32_t i;
    range.struct_size = read.struct_size = sizeof range;
    for (i = 0; i < 12; i++) {
        fill_prompt(prompt, 4 * BLOCK, vocab_size(model), i);
        run(engine, prompt, 4 * BLOCK, i);
    }
    CHECK_ERR(cleave_cache_events(cache, 1, events, sizeof *events, 64, tokens, 64 * BLOCK, 0, &range, &err), CLEAVE_ERR_EXPIRED);
    CHECK(has_text(&err, "cache event 1 is no longer kept"));
    CHECK(range.n_events == 0 && range.oldest == range.end - KEPT && range.oldest > 1);
    CHECK_ERR(cleave_cache_event_snapshot(cache, NULL, sizeof *events, 0, NULL, 0, &range, &err), CLEAVE_OK);
    CHECK(range.n_events > 0 && range.n_tokens == range.n_events * BLOCK);
    blocks = (cleave_cache_event_t *)calloc((size_t)range.n_events, sizeof *blocks);
    block_tokens = (int32_t *)calloc((size_t)range.n_tokens, sizeof *block_tokens);
    CHECK(blocks != NULL && block_tokens != NULL);
    CHECK_ERR(cleave_cache_event_snapshot(cache, blocks, sizeof *blocks, (size_t)range.n_events - 1, block_tokens,
                                          (size_t)range.n_tokens, &read, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_INT(read.n_events, range.n_events);
    CHECK_INT(blocks[0].type, 0);
    CHECK_ERR(cleave_cache_event_snapshot(cache, blocks, sizeof *blocks, (size_t)range.n_events, block_tokens,
                                          (size_t)range.n_tokens, &read, &err), CLEAVE_OK);
    CHECK(read.n_events == range.n_events && read.next == range.next && read.next == range.end);
    for (i = 0; i < read.n_events; i++) {
        CHECK(blocks[i].type == CLEAVE_CACHE_EVENT_STORED && blocks[i].sequence == read.next);
        CHECK(blocks[i].tokens_begin == i * BLOCK && blocks[i].n_tokens == BLOCK);
        /* Chains stand together, and every parent is there: nothing was evicted yet. */
        CHECK(blocks[i].position == 0 ? blocks[i].parent_hash == 0 : blocks[i].parent_hash == blocks[i - 1].block_hash);
    }
    CHECK_INT(read_events(cache, read.next, 64).n_events, 0);
    fill_prompt(prompt, 4 * BLOCK, vocab_size(model), 99);
    run(engine, prompt, BLOCK + 1, 99);
    CHECK(read_events(cache, read.next, 64).n_events > 0);
    free(blocks);
    free(block_tokens);
    cleave_engine_destroy(engine);
    cleave_cache_destroy(cache);
}

static void a_cache_records_only_if_asked(void)
{
    cleave_error_t err;
    cleave_cache_t *cache = make_cache(model);
    cleave_cache_config_t config = ZERO;
    cleave_cache_event_range_t range = ZERO;
    range.struct_size = sizeof range;
    CHECK_ERR(cleave_cache_events(cache, 1, events, sizeof *events, 1, tokens, 64, 0, &range, &err), CLEAVE_ERR_UNSUPPORTED);
    CHECK(has_text(&err, "events_kept"));
    CHECK_ERR(cleave_cache_event_snapshot(cache, NULL, sizeof *events, 0, NULL, 0, &range, &err), CLEAVE_ERR_UNSUPPORTED);
    cleave_cache_destroy(cache);
    cache = NULL;
    config.struct_size = sizeof config;
    config.events_kept = (1u << 24) + 1;
    CHECK_ERR(cleave_cache_create(model, NULL, 0, &config, &cache, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(cache == NULL && has_text(&err, "events_kept"));
}

int main(void)
{
    model = load_model();
    queue = make_queue(0);
    stored_blocks_are_told();
    a_gap_is_told_and_a_snapshot_helps();
    a_cache_records_only_if_asked();
    cleave_queue_destroy(queue);
    cleave_model_release(model);
    return 0;
}
