/* The shortest program that uses cleave: prefills in one engine, decodes in another, and prints the text as it is
 * generated.
 *
 *     hello MODEL_DIRECTORY PROMPT
 */
#include <cleave/cleave.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static cleave_error_t err;

static void check(cleave_status_t status)
{
    if (status != CLEAVE_OK) {
        fprintf(stderr, "%s: %s\n", cleave_status_string(status), err.message);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL_DIRECTORY PROMPT\n", argv[0]);
        return 2;
    }
    cleave_model_t *model;
    cleave_cache_t *cache;
    cleave_queue_t *queue;
    cleave_engine_t *prefill, *decode;
    cleave_detokenizer_t *text;
    cleave_engine_config_t config = {.struct_size = sizeof config, .role = CLEAVE_ROLE_PREFILL};
    check(cleave_model_load(argv[1], &model, &err));
    check(cleave_cache_create(model, NULL, 0, NULL, &cache, &err)); /* on the CPU, defaults for the rest */
    check(cleave_queue_create(0, &queue, &err));
    check(cleave_engine_create(cache, queue, &config, &prefill, &err));
    config.role = CLEAVE_ROLE_DECODE;
    check(cleave_engine_create(cache, queue, &config, &decode, &err));
    check(cleave_detokenizer_create(model, &text, &err));

    int32_t tokens[4096];
    size_t n_tokens, n;
    cleave_request_t id;
    check(cleave_tokenize(model, argv[2], strlen(argv[2]), 0, tokens, 4096, &n_tokens, &err));
    cleave_request_desc_t ask = {.struct_size = sizeof ask, .prompt_len = (uint32_t)n_tokens, .max_new_tokens = 64};
    check(cleave_engine_submit(prefill, &ask, 1, tokens, n_tokens, &id, &n, &err));

    for (int done = 0; !done;) {
        cleave_event_t event;
        char piece[256];
        check(cleave_queue_poll(queue, &event, sizeof event, 1, UINT32_MAX, &n));
        if (event.type == CLEAVE_EVENT_TOKEN && cleave_detokenizer_push(text, event.token, piece, sizeof piece, &n, NULL) == CLEAVE_OK) {
            fwrite(piece, 1, n, stdout);
            fflush(stdout);
        } else if (event.type == CLEAVE_EVENT_FINISHED && event.finish_reason == CLEAVE_FINISH_PREFILLED) {
            cleave_request_desc_t go_on = {.struct_size = sizeof go_on, .kv = event.kv}; /* the handoff */
            check(cleave_engine_submit(decode, &go_on, 1, NULL, 0, &id, &n, &err));
        } else if (event.type == CLEAVE_EVENT_FINISHED) {
            done = 1;
        }
    }
    printf("\n");

    cleave_detokenizer_destroy(text);
    cleave_engine_destroy(prefill);
    cleave_engine_destroy(decode);
    cleave_queue_destroy(queue);
    cleave_cache_destroy(cache);
    cleave_model_release(model);
    return 0;
}
