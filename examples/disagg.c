/* Disaggregated inference in one process: one engine prefills a prompt, and another one takes the KV cache over by a
 * handle and decodes. The text is printed as it is generated, and the times are measured. At the end a third engine does
 * both, which shows that the tokens are the same.
 *
 *     disagg [MODEL_DIRECTORY] [--prompt TEXT] [--max N]
 */
#define _POSIX_C_SOURCE 200809L
#include <cleave/cleave.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_MODEL "models/tiny"
#define DEFAULT_PROMPT                                                                                             \
    "the red box holds a key. anna lives in paris. the old farmer walks to the river. he sees a small boat and "   \
    "smiles. the blue jar holds a coin. tom likes the colour green. it rains all day. the green bag holds a "      \
    "shell. he goes to the market and laughs. the red bag holds a feather. then he goes home. what does the red "  \
    "box hold?"

static cleave_error_t err;

static void check(cleave_status_t status, const char *doing)
{
    if (status == CLEAVE_OK)
        return;
    fprintf(stderr, "disagg: %s: %s (%s)\n", doing, err.message[0] ? err.message : "failed", cleave_status_string(status));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The result of one sequence. */
struct output {
    int32_t *tokens;
    uint64_t *times;
    size_t n, cap;
};

static struct output make_output(size_t cap)
{
    struct output out = {malloc(cap * sizeof(int32_t)), malloc(cap * sizeof(uint64_t)), 0, cap};
    if (out.tokens == NULL || out.times == NULL) {
        fprintf(stderr, "disagg: out of memory\n");
        exit(1);
    }
    return out;
}

static void print_token(cleave_detokenizer_t *text, int32_t token)
{
    char piece[1024];
    size_t n;
    if (cleave_detokenizer_push(text, token, piece, sizeof piece, &n, NULL) == CLEAVE_OK)
        fwrite(piece, 1, n, stdout);
    fflush(stdout);
}

/* Polls until the running request has finished. Prints its text unless `text` is NULL. */
static cleave_event_t collect(cleave_queue_t *queue, struct output *out, cleave_detokenizer_t *text)
{
    for (;;) {
        cleave_event_t event;
        size_t n;
        check(cleave_queue_poll(queue, &event, sizeof event, 1, UINT32_MAX, &n), "poll");
        if (n == 1 && event.type == CLEAVE_EVENT_TOKEN && out->n < out->cap) {
            out->tokens[out->n] = event.token;
            out->times[out->n++] = event.timestamp_ns;
            if (text != NULL)
                print_token(text, event.token);
        } else if (n == 1 && event.type == CLEAVE_EVENT_FINISHED) {
            if (event.finish_reason == CLEAVE_FINISH_ERROR) {
                printf("\n");
                fprintf(stderr, "disagg: the request failed: %s\n", cleave_status_string(event.status));
                exit(1);
            }
            return event;
        }
    }
}

static cleave_engine_t *engine(cleave_cache_t *cache, cleave_queue_t *queue, uint32_t role)
{
    cleave_engine_config_t config = {.struct_size = sizeof config, .role = role};
    cleave_engine_t *made;
    check(cleave_engine_create(cache, queue, &config, &made, &err), "create an engine");
    return made;
}

static cleave_metrics_t metrics_of(cleave_engine_t *of)
{
    cleave_metrics_t metrics = {.struct_size = sizeof metrics};
    check(cleave_engine_metrics(of, &metrics, &err), "read metrics");
    return metrics;
}

static void submit(cleave_engine_t *to, const cleave_request_desc_t *desc, const int32_t *tokens, size_t n)
{
    cleave_request_t id;
    size_t accepted;
    check(cleave_engine_submit(to, desc, 1, tokens, n, &id, &accepted, &err), "submit");
}

int main(int argc, char **argv)
{
    const char *path = DEFAULT_MODEL, *prompt = DEFAULT_PROMPT;
    long max = 64;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--prompt") == 0 && i + 1 < argc)
            prompt = argv[++i];
        else if (strcmp(argv[i], "--max") == 0 && i + 1 < argc)
            max = strtol(argv[++i], NULL, 10);
        else if (argv[i][0] != '-')
            path = argv[i];
        else
            max = 0;
    }
    if (max < 1 || max > 1000000) {
        fprintf(stderr, "usage: %s [MODEL_DIRECTORY] [--prompt TEXT] [--max N]\n", argv[0]);
        return 2;
    }

    cleave_model_t *model;
    cleave_cache_t *cache;
    cleave_queue_t *queue;
    cleave_detokenizer_t *text;
    cleave_model_info_t info = {.struct_size = sizeof info};
    uint64_t start = now_ns();
    check(cleave_model_load(path, &model, &err), "load the model");
    check(cleave_model_info(model, &info, &err), "describe the model");
    check(cleave_cache_create(model, NULL, 0, NULL, &cache, &err), "create the cache");
    check(cleave_queue_create(0, &queue, &err), "create the queue");
    cleave_engine_t *prefill = engine(cache, queue, CLEAVE_ROLE_PREFILL);
    cleave_engine_t *decode = engine(cache, queue, CLEAVE_ROLE_DECODE);
    printf("model    %s: %s, %u layers, %.1f MB of weights; loaded, with two engines, in %.0f ms\n", path,
           info.architecture, info.n_layers, (double)info.weight_bytes / 1e6, (double)(now_ns() - start) / 1e6);

    size_t n_prompt = 0;
    check(cleave_detokenizer_create(model, &text, &err), "make a detokenizer");
    check(cleave_tokenize(model, prompt, strlen(prompt), 0, NULL, 0, &n_prompt, &err), "tokenise the prompt");
    int32_t *tokens = malloc((n_prompt + 1) * sizeof *tokens);
    if (tokens == NULL)
        check(CLEAVE_ERR_OUT_OF_MEMORY, "tokenise the prompt");
    check(cleave_tokenize(model, prompt, strlen(prompt), 0, tokens, n_prompt, &n_prompt, &err), "tokenise the prompt");
    printf("prompt   %zu tokens: %s\n", n_prompt, prompt);

    /* Prefill: the first token and a handle. */
    struct output split = make_output((size_t)max);
    cleave_request_desc_t ask = {.struct_size = sizeof ask, .prompt_len = (uint32_t)n_prompt, .max_new_tokens = (uint32_t)max};
    printf("answer  ");
    start = now_ns();
    submit(prefill, &ask, tokens, n_prompt);
    cleave_event_t end = collect(queue, &split, text);
    uint64_t handoff_start = now_ns(), handoff_bytes = 0, handoff_ns = 0;
    cleave_kv_info_t kv = {.struct_size = sizeof kv};
    int handed_over = end.finish_reason == CLEAVE_FINISH_PREFILLED;
    if (handed_over) {
        /* Decode: another engine continues from the handle. */
        check(cleave_kv_info(cache, end.kv, &kv, &err), "look at the KV handle");
        cleave_metrics_t in = metrics_of(decode), out = metrics_of(prefill);
        cleave_request_desc_t go_on = {.struct_size = sizeof go_on, .kv = end.kv};
        handoff_start = now_ns();
        submit(decode, &go_on, NULL, 0);
        end = collect(queue, &split, text);
        handoff_ns = metrics_of(decode).handoff_ns_last;
        handoff_bytes = metrics_of(decode).kv_bytes_in - in.kv_bytes_in + metrics_of(prefill).kv_bytes_out - out.kv_bytes_out;
    }
    char rest[64];
    size_t n_rest;
    if (cleave_detokenizer_flush(text, rest, sizeof rest, &n_rest, NULL) == CLEAVE_OK)
        fwrite(rest, 1, n_rest, stdout);
    printf("\n\n");

    printf("time to first token   %8.3f ms\n", (double)(split.times[0] - start) / 1e6);
    if (handed_over) {
        printf("handoff               %8.3f ms until the decode engine had the KV of %u tokens\n", (double)handoff_ns / 1e6,
               kv.n_computed);
        printf("bytes moved           %8llu of %llu (as an image it would have been %llu)\n", (unsigned long long)handoff_bytes,
               (unsigned long long)(info.kv_bytes_per_token * kv.n_computed), (unsigned long long)kv.image_bytes);
        if (split.n > 1)
            printf("next token after      %8.3f ms from handing over\n", (double)(split.times[1] - handoff_start) / 1e6);
    } else {
        printf("handoff                    none: the first token was the last\n");
    }
    if (split.n > 2)
        printf("inter-token latency   %8.3f ms, mean of %zu\n",
               (double)(split.times[split.n - 1] - split.times[1]) / 1e6 / (double)(split.n - 2), split.n - 2);
    printf("tokens                %8zu, ended by %s\n", split.n, end.finish_reason == CLEAVE_FINISH_LENGTH ? "length" : "stop");

    /* Comparison: one engine does both, without the prefix cache (it has another salt). */
    struct output mixed = make_output((size_t)max);
    cleave_engine_t *both = engine(cache, queue, CLEAVE_ROLE_MIXED);
    ask.cache_salt = 1;
    submit(both, &ask, tokens, n_prompt);
    collect(queue, &mixed, NULL);
    int equal = mixed.n == split.n && memcmp(mixed.tokens, split.tokens, split.n * sizeof *split.tokens) == 0;
    printf("against a mixed engine         %s\n", equal ? "the tokens are equal" : "THE TOKENS DIFFER");

    cleave_engine_destroy(both);
    cleave_engine_destroy(prefill);
    cleave_engine_destroy(decode);
    cleave_detokenizer_destroy(text);
    cleave_queue_destroy(queue);
    cleave_cache_destroy(cache);
    cleave_model_release(model);
    free(tokens);
    free(split.tokens);
    free(split.times);
    free(mixed.tokens);
    free(mixed.times);
    return equal ? 0 : 1;
}
