/* Parks a running generation in a file and continues it in another process.
 *
 *     park MODEL_DIRECTORY save FILE     starts, stops after a few tokens, saves
 *     park MODEL_DIRECTORY load FILE     loads, goes on to the end
 *     park MODEL_DIRECTORY whole FILE    does not stop: what save and load together should say
 */
#include <cleave/cleave.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *prompt = "the red box holds a key. anna lives in paris. the old farmer walks to the river.";

static cleave_error_t err;
static cleave_model_t *model;
static cleave_cache_t *cache;
static cleave_queue_t *queue;
static cleave_engine_t *engine;
static cleave_detokenizer_t *text;

static void check(cleave_status_t status, const char *doing)
{
    if (status != CLEAVE_OK) {
        fprintf(stderr, "park: %s: %s (%s)\n", doing, err.message, cleave_status_string(status));
        exit(1);
    }
}

static void start(const char *path)
{
    cleave_cache_config_t config = {.struct_size = sizeof config};
    cleave_engine_config_t engine_config = {.struct_size = sizeof engine_config};
    /* A file can only be loaded by a cache with the secret of the cache that saved it: a server keeps its secret. */
    memcpy(config.secret, "an example's secret is none.....", sizeof config.secret);
    check(cleave_model_load(path, &model, &err), "load the model");
    check(cleave_cache_create(model, NULL, 0, &config, &cache, &err), "create the cache");
    /* A short queue keeps the engine at most a few tokens ahead of the poller. */
    check(cleave_queue_create(4, &queue, &err), "create the queue");
    check(cleave_engine_create(cache, queue, &engine_config, &engine, &err), "create the engine");
    check(cleave_detokenizer_create(model, &text, &err), "make a detokenizer");
}

static cleave_request_t submit_prompt(void)
{
    int32_t tokens[256];
    size_t n_tokens, n;
    cleave_request_t id;
    cleave_request_desc_t desc = {.struct_size = sizeof desc, .max_new_tokens = 60, .flags = CLEAVE_REQUEST_IGNORE_EOS};
    check(cleave_tokenize(model, prompt, strlen(prompt), 0, tokens, 256, &n_tokens, &err), "tokenise");
    desc.prompt_len = (uint32_t)n_tokens;
    desc.temperature = 0.8f; /* the handle carries the seed, so sampling continues as without an interruption */
    desc.seed = 42;
    check(cleave_engine_submit(engine, &desc, 1, tokens, n_tokens, &id, &n, &err), "submit");
    return id;
}

/* Prints the text on one line. After `stop_after` tokens it asks for the handle. */
static cleave_event_t stream(cleave_request_t id, int stop_after)
{
    int n_tokens = 0;
    printf("text: ");
    for (;;) {
        cleave_event_t event;
        char piece[256];
        size_t n, i;
        check(cleave_queue_poll(queue, &event, sizeof event, 1, UINT32_MAX, &n), "poll");
        if (event.type == CLEAVE_EVENT_FINISHED) {
            printf("\n");
            return event;
        }
        if (event.type != CLEAVE_EVENT_TOKEN)
            continue;
        if (cleave_detokenizer_push(text, event.token, piece, sizeof piece, &n, NULL) == CLEAVE_OK)
            for (i = 0; i < n; i++)
                putchar(piece[i] == '\n' ? ' ' : piece[i]);
        if (++n_tokens == stop_after)
            check(cleave_engine_export(engine, id, &err), "export");
    }
}

int main(int argc, char **argv)
{
    if (argc != 4 || (strcmp(argv[2], "save") && strcmp(argv[2], "load") && strcmp(argv[2], "whole"))) {
        fprintf(stderr, "usage: %s MODEL_DIRECTORY save|load|whole FILE\n", argv[0]);
        return 2;
    }
    start(argv[1]);
    if (strcmp(argv[2], "whole") == 0) {
        stream(submit_prompt(), 0);
    } else if (strcmp(argv[2], "save") == 0) {
        cleave_event_t end = stream(submit_prompt(), 20);
        if (end.finish_reason != CLEAVE_FINISH_EXPORTED) {
            fprintf(stderr, "park: it was over before it could be parked\n");
            return 1;
        }
        check(cleave_kv_save(cache, end.kv, argv[3], &err), "save");
        check(cleave_kv_release(cache, end.kv, &err), "release");
        printf("parked after %u tokens\n", end.index);
    } else {
        cleave_request_desc_t desc = {.struct_size = sizeof desc};
        cleave_request_t id;
        size_t n;
        check(cleave_kv_load(cache, argv[3], &desc.kv, &err), "load");
        check(cleave_engine_submit(engine, &desc, 1, NULL, 0, &id, &n, &err), "submit");
        printf("%u tokens in all\n", stream(id, 0).index);
    }
    cleave_detokenizer_destroy(text);
    cleave_engine_destroy(engine);
    cleave_queue_destroy(queue);
    cleave_cache_destroy(cache);
    cleave_model_release(model);
    return 0;
}
