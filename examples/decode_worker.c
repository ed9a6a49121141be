/* The second of two processes that share the work of one model: this one generates. It computes short prompts itself.
 * It sends long ones to a prefill_worker over a small protocol (rpc.h) and imports the ticket that comes back. Then it
 * continues from the KV, which it pulls over shared memory or TCP. If the KV does not arrive, or if there is no prefill
 * worker, it computes the prompt itself: the answers are the same, later.
 *
 *     decode_worker MODEL_DIRECTORY [options] [PROMPT]     see usage() for the options
 *
 * Without PROMPT every line of stdin is a prompt. Answers go to stdout in the order of the prompts, each as it is
 * generated. A report of what happened goes to stderr.
 */
#define _POSIX_C_SOURCE 200809L
#include "rpc.h"
#include "worker.h"
#include <poll.h>

#define RETRY_NS 200000000u     /* between attempts to connect */
#define PATIENCE_NS 5000000000u /* a prefill worker that is silent for longer is stuck */

/* A request. Its index in the array is its user_tag and its number in the protocol. */
struct request {
    enum { WAITING, ASKED, RUNNING, DONE } state; /* ASKED: the prefill worker has the request, and has not sent a ticket */
    const char *how;
    int32_t *tokens;
    size_t n_tokens;
    cleave_detokenizer_t *detokenizer;
    char *text; /* not printed yet: earlier requests come first */
    size_t n_text;
    uint64_t start, asked, first;
    uint32_t n_new;
};

static const char *const here = "prefilled here, as it was short or cached";
static const char *const there = "prefilled by the prefill worker";
static const char *const alone = "prefilled here, as there was no prefill worker";
static const char *const refused = "prefilled here, as the prefill worker did not";
static const char *const recomputed = "recomputed here, as its KV did not come";

static cleave_model_t *model;
static cleave_cache_t *cache;
static cleave_queue_t *queue;
static cleave_engine_t *engine;
static struct request *requests;
static size_t n_requests, n_begun, n_done;
static long max_tokens = 64, count = 1;

static const char *where;
static uint32_t transport = CLEAVE_TRANSPORT_ANY;
static struct rpc prefiller = {.fd = -1};
static int paired; /* KV can be imported from the prefill worker */
static uint64_t next_try; /* 0: no attempt has failed yet */
static uint64_t connected_at;
static cleave_pair_report_t pairing;

/* ---- requests ---- */

static void add_prompt(const char *text, size_t len)
{
    struct request *r;
    for (long i = 0; i < count; i++) {
        requests = realloc(requests, (n_requests + 1) * sizeof *requests);
        if (requests == NULL)
            check(CLEAVE_ERR_OUT_OF_MEMORY, "take a prompt");
        r = &requests[n_requests++];
        memset(r, 0, sizeof *r);
        check(cleave_tokenize(model, text, len, 0, NULL, 0, &r->n_tokens, &err), "tokenise the prompt");
        r->tokens = malloc((r->n_tokens + 1) * sizeof *r->tokens);
        if (r->tokens == NULL)
            check(CLEAVE_ERR_OUT_OF_MEMORY, "take a prompt");
        check(cleave_tokenize(model, text, len, 0, r->tokens, r->n_tokens, &r->n_tokens, &err), "tokenise the prompt");
        check(cleave_detokenizer_create(model, &r->detokenizer, &err), "make a detokenizer");
    }
}

static cleave_status_t submit(size_t i, const cleave_request_desc_t *desc, const char *how)
{
    cleave_request_t id;
    size_t accepted;
    cleave_status_t status = cleave_engine_submit(engine, desc, 1, requests[i].tokens, requests[i].n_tokens, &id, &accepted, &err);
    if (status == CLEAVE_OK) {
        requests[i].state = RUNNING;
        requests[i].how = how;
    }
    return status;
}

static cleave_status_t submit_prompt(size_t i, const char *how)
{
    cleave_request_desc_t desc = {.struct_size = sizeof desc, .user_tag = i, .prompt_len = (uint32_t)requests[i].n_tokens,
                                  .max_new_tokens = (uint32_t)max_tokens};
    return submit(i, &desc, how);
}

/* A mixed engine prefills every prompt; a decode engine refuses prompts longer than local_prefill_tokens. */
static void set_role(uint32_t role)
{
    check(cleave_engine_set_role(engine, role, &err), "change the engine's role");
}

/* Computes a prompt here if the prefill worker cannot. */
static void compute_here(size_t i, const char *how)
{
    cleave_status_t status;
    set_role(CLEAVE_ROLE_MIXED); /* lifts the limit during the submission */
    status = submit_prompt(i, how);
    set_role(paired ? CLEAVE_ROLE_DECODE : CLEAVE_ROLE_MIXED);
    if (status == CLEAVE_ERR_WOULD_BLOCK)
        requests[i].state = WAITING; /* begin_requests tries again */
    else
        check(status, "submit");
}

static void lose_prefiller(const char *why)
{
    if (paired || next_try == 0) /* logged once */
        fprintf(stderr, "the prefill worker at %s %s: prompts are computed here until it is back\n", where, why);
    rpc_close(&prefiller);
    paired = 0;
    set_role(CLEAVE_ROLE_MIXED);
    next_try = now_ns() + RETRY_NS;
    /* Requests with a ticket need no action: their KV arrives, or they recompute it. */
    for (size_t i = 0; i < n_begun; i++)
        if (requests[i].state == ASKED)
            compute_here(i, alone);
}

/* Submits waiting requests while engine and queue have room. */
static void begin_requests(void)
{
    for (size_t i = 0; i < n_requests; i++) {
        struct request *r = &requests[i];
        cleave_status_t status;
        if (r->state != WAITING)
            continue;
        if (i >= n_begun) {
            n_begun = i + 1;
            r->start = now_ns();
        }
        /* The engine decides, because it knows which part of the prompt is cached. */
        status = submit_prompt(i, paired ? here : alone);
        if (status == CLEAVE_ERR_WOULD_BLOCK)
            return;
        if (status != CLEAVE_ERR_PREFILL_ELSEWHERE) {
            check(status, "submit");
            continue;
        }
        struct rpc_prompt ask = {.n_tokens = (uint32_t)r->n_tokens, .max_new_tokens = (uint32_t)max_tokens};
        r->state = ASKED;
        r->asked = now_ns();
        if (rpc_send(&prefiller, RPC_PROMPT, i, &ask, sizeof ask, r->tokens, r->n_tokens * sizeof *r->tokens) != 0)
            lose_prefiller("is gone");
    }
}

/* ---- the prefill worker ---- */

static void connect_prefiller(void)
{
    const char *why;
    prefiller.fd = rpc_open(where, 0, &why);
    connected_at = now_ns();
    if (prefiller.fd < 0)
        lose_prefiller(why);
    /* The next message is its address, or an error if nobody listens. */
}

/* [BLOCKING] for a moment. A server does this on a separate thread, once for each prefill worker. */
static void pair(const unsigned char *address, size_t len)
{
    pairing = (cleave_pair_report_t){.struct_size = sizeof pairing};
    cleave_status_t status = cleave_cache_pair(cache, address, len, transport, &pairing, &err);
    if (status != CLEAVE_OK) {
        fprintf(stderr, "cannot import from the prefill worker at %s: %s (%s, reason %u)\n", where, err.message,
                cleave_status_string(status), pairing.reason);
        if (next_try == 0 && pairing.reason != CLEAVE_PAIR_UNREACHABLE)
            exit(1); /* the configuration is wrong: trying again would not help */
        lose_prefiller("cannot be used");
        next_try = now_ns() + PATIENCE_NS;
        return;
    }
    fprintf(stderr, "paired with the prefill worker at %s: %s; %.2f GB/s, round trip %.1f us\n", where, pairing.detail,
            (double)pairing.bytes_per_second / 1e9, (double)pairing.rtt_ns / 1e3);
    paired = 1;
    set_role(CLEAVE_ROLE_DECODE);
}

/* A ticket is imported and submitted at once. Only the engine waits for the KV. */
static void take_ticket(size_t i, const unsigned char *ticket, size_t len)
{
    cleave_request_desc_t desc = {.struct_size = sizeof desc, .user_tag = i};
    cleave_status_t status = cleave_kv_import(cache, queue, ticket, len, i, &desc.kv, &err);
    if (status == CLEAVE_OK) {
        /* The first token came with the KV and is repeated here. If the KV does not arrive, the token is computed here. */
        desc.flags = CLEAVE_REQUEST_RECOMPUTE | CLEAVE_REQUEST_EMIT_PENDING;
        status = submit(i, &desc, there);
        if (status != CLEAVE_OK)
            cleave_kv_release(cache, desc.kv, NULL);
    }
    if (status != CLEAVE_OK) {
        fprintf(stderr, "%zu: cannot use the ticket: %s (%s)\n", i + 1, err.message, cleave_status_string(status));
        compute_here(i, refused);
    }
}

static void hear_prefiller(void)
{
    struct rpc_header header;
    const unsigned char *body;
    int gone = rpc_receive(&prefiller) != 0 || rpc_flush(&prefiller) != 0, found;
    while (prefiller.fd >= 0 && (found = rpc_next(&prefiller, &header, &body)) != 0) {
        int asked = found > 0 && header.id < n_begun && requests[header.id].state == ASKED;
        int32_t status;
        if (found < 0)
            break;
        if (header.kind == RPC_ADDRESS) {
            pair(body, header.len);
        } else if (header.kind == RPC_TICKET && asked) {
            take_ticket((size_t)header.id, body, header.len);
        } else if (header.kind == RPC_FAILED && asked && header.len >= sizeof status) {
            memcpy(&status, body, sizeof status);
            fprintf(stderr, "%u: the prefill worker: %.*s (%s)\n", (unsigned)header.id + 1, (int)(header.len - sizeof status),
                    (const char *)body + sizeof status, cleave_status_string(status));
            compute_here((size_t)header.id, refused);
        }
    }
    if (gone && prefiller.fd >= 0)
        lose_prefiller(paired ? "is gone" : "cannot be reached");
}

/* A prefill worker that accepts connections but does not answer is treated as absent. */
static void watch_prefiller(void)
{
    uint64_t now = now_ns();
    int silent = prefiller.fd >= 0 && !paired && now - connected_at > PATIENCE_NS;
    for (size_t i = 0; i < n_begun; i++)
        silent |= requests[i].state == ASKED && now - requests[i].asked > PATIENCE_NS;
    if (silent)
        lose_prefiller("says nothing");
    if (prefiller.fd < 0 && now >= next_try)
        connect_prefiller();
}

/* ---- answers ---- */

static void append(struct request *r, const char *piece, size_t n)
{
    r->text = realloc(r->text, r->n_text + n + 1);
    if (r->text == NULL)
        check(CLEAVE_ERR_OUT_OF_MEMORY, "keep a text");
    memcpy(r->text + r->n_text, piece, n);
    r->n_text += n;
}

/* Prints the text of the first unfinished request, and of the finished ones after it. */
static void print_text(void)
{
    static size_t next;
    for (; next < n_requests; next++) {
        fwrite(requests[next].text, 1, requests[next].n_text, stdout);
        requests[next].n_text = 0;
        if (requests[next].state != DONE)
            break;
        putchar('\n');
        free(requests[next].text);
        requests[next].text = NULL;
    }
    fflush(stdout);
}

static void handle_event(const cleave_event_t *event)
{
    struct request *r;
    char piece[1024];
    size_t n;
    if (event->type == CLEAVE_EVENT_ENGINE_FAILED) {
        fprintf(stderr, "%s: the engine has failed: %s\n", program, cleave_status_string(event->status));
        exit(1);
    }
    r = &requests[event->user_tag];
    if (event->type == CLEAVE_EVENT_KV_READY && event->status != CLEAVE_OK) {
        r->how = recomputed;
    } else if (event->type == CLEAVE_EVENT_TOKEN) {
        if (event->index == 0)
            r->first = event->timestamp_ns;
        if (cleave_detokenizer_push(r->detokenizer, event->token, piece, sizeof piece, &n, NULL) == CLEAVE_OK)
            append(r, piece, n);
    } else if (event->type == CLEAVE_EVENT_FINISHED) {
        if (cleave_detokenizer_flush(r->detokenizer, piece, sizeof piece, &n, NULL) == CLEAVE_OK)
            append(r, piece, n);
        if (event->finish_reason == CLEAVE_FINISH_ERROR)
            fprintf(stderr, "%u: failed: %s\n", (unsigned)event->user_tag + 1, cleave_status_string(event->status));
        else
            fprintf(stderr, "%u: %zu prompt tokens, %s; first token after %.2f ms, %u tokens\n", (unsigned)event->user_tag + 1,
                    r->n_tokens, r->how, (double)(r->first - r->start) / 1e6, event->index);
        r->state = DONE;
        n_done++;
        cleave_detokenizer_destroy(r->detokenizer);
        free(r->tokens);
        r->tokens = NULL;
    }
}

static void report(void)
{
    cleave_metrics_t m = {.struct_size = sizeof m};
    check(cleave_engine_metrics(engine, &m, &err), "read metrics");
    fprintf(stderr, "transport             %s\n", pairing.transport == CLEAVE_TRANSPORT_ANY ? "none" : pairing.detail);
    fprintf(stderr, "handed over           %llu, %llu did not come; %llu requests were recomputed here\n", (unsigned long long)m.imports,
            (unsigned long long)m.imports_failed, (unsigned long long)m.recomputed);
    fprintf(stderr, "bytes moved           %llu\n", (unsigned long long)m.kv_bytes_in);
    fprintf(stderr, "hidden                %llu bytes, pulled while their prompts were computed\n", (unsigned long long)m.kv_bytes_hidden);
    fprintf(stderr, "exposed               %llu bytes, and %.3f ms from the prompts' ends to their KV being here\n",
            (unsigned long long)m.kv_bytes_exposed, (double)m.kv_exposed_ns_total / 1e6);
}

/* Reads the lines that have arrived. Returns 0 at the end of stdin. */
static int read_prompts(void)
{
    static char line[1u << 16];
    static size_t n;
    char *end;
    ssize_t more = read(0, line + n, sizeof line - n);
    n += more > 0 ? (size_t)more : 0;
    while ((end = memchr(line, '\n', n)) != NULL || ((more <= 0 || n == sizeof line) && (end = line + n) != line)) {
        size_t used = (size_t)(end - line) + (end < line + n);
        if (end > line)
            add_prompt(line, (size_t)(end - line));
        n -= used;
        memmove(line, line + used, n);
    }
    return more > 0;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: %s MODEL_DIRECTORY [options] [PROMPT]     without PROMPT: each line of stdin is one\n"
            "  --rpc PATH|HOST:PORT          where the prefill worker waits (default: a socket in XDG_RUNTIME_DIR or /tmp)\n"
            "  --secret-file PATH            the prefill worker's (default: where that makes it)\n"
            "  --transport any|shm|tcp|nixl|cuda  how the KV has to come (default: any)\n"
            "  --local-tokens N              prompts of up to N tokens that are not cached are computed here (default 32)\n"
            "  --cache-mib N                 memory for KV (default 128)\n"
            "  --device N                    the GPU of that number (default: the CPU)\n"
            "  --max N                       tokens of an answer (default 64)\n"
            "  --count N                     asks each prompt N times, at once\n",
            program);
    return 2;
}

int main(int argc, char **argv)
{
    static const char *const transports[] = {"any", "process", "shm", "tcp", "nixl", "cuda"};
    char default_rpc[200], default_secret[200];
    const char *path = NULL, *prompt = NULL, *secret = NULL;
    long local_tokens = 32, mib = 128, device = CLEAVE_DEVICE_CPU;
    int reading, good = 1;
    program = argv[0];
    where = meeting_place("sock", default_rpc, sizeof default_rpc);
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (option[0] != '-' && (path == NULL || prompt == NULL)) {
            *(path == NULL ? &path : &prompt) = option;
            continue;
        }
        i++;
        if (strcmp(option, "--rpc") == 0)
            where = value;
        else if (strcmp(option, "--secret-file") == 0)
            secret = value;
        else if (strcmp(option, "--transport") == 0)
            for (transport = 0; transport < 6 && strcmp(value, transports[transport]) != 0;)
                transport++;
        else if (strcmp(option, "--local-tokens") == 0)
            local_tokens = number(value);
        else if (strcmp(option, "--cache-mib") == 0)
            mib = number(value);
        else if (strcmp(option, "--device") == 0)
            good &= (device = number(value)) >= 0;
        else if (strcmp(option, "--max") == 0)
            max_tokens = number(value);
        else if (strcmp(option, "--count") == 0)
            count = number(value);
        else
            good = 0;
    }
    if (!good || path == NULL || transport > 5 || local_tokens < 1 || mib < 1 || max_tokens < 1 || count < 1)
        return usage();
    cleave_engine_config_t config = {.struct_size = sizeof config, .role = CLEAVE_ROLE_MIXED,
                                     .local_prefill_tokens = (uint32_t)local_tokens};
    check(cleave_model_load(path, &model, &err), "load the model");
    cache = open_cache(model, secret ? secret : meeting_place("secret", default_secret, sizeof default_secret), mib,
                       (int32_t)device);
    check(cleave_queue_create(0, &queue, &err), "create the queue");
    check(cleave_engine_create(cache, queue, &config, &engine, &err), "create the engine");
    reading = prompt == NULL;
    if (!reading)
        add_prompt(prompt, strlen(prompt));

    while (reading || n_done < n_requests) {
        struct pollfd fds[3] = {{.fd = cleave_queue_fd(queue), .events = POLLIN}, {.fd = reading ? 0 : -1, .events = POLLIN}};
        cleave_event_t events[64];
        size_t n;
        watch_prefiller();
        if (paired || next_try != 0) /* otherwise a first prefill worker's address is about to arrive */
            begin_requests();
        fds[2].fd = prefiller.fd;
        fds[2].events = prefiller.out.begin < prefiller.out.end ? POLLIN | POLLOUT : POLLIN;
        if (poll(fds, 3, prefiller.fd < 0 || !paired ? 100 : 1000) < 0)
            continue;
        if (fds[0].revents) {
            check(cleave_queue_poll(queue, events, sizeof *events, 64, 0, &n), "poll");
            for (size_t i = 0; i < n; i++)
                handle_event(&events[i]);
            print_text();
        }
        if (fds[1].revents)
            reading = read_prompts();
        if (fds[2].revents && prefiller.fd >= 0)
            hear_prefiller();
    }
    report();
    rpc_close(&prefiller);
    free(requests);
    cleave_engine_destroy(engine);
    cleave_queue_destroy(queue);
    cleave_cache_destroy(cache);
    cleave_model_release(model);
    return 0;
}
