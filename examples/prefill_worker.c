/* The first of two processes that share the work of one model: this one computes prompts. Decode workers send it token
 * ids over a small protocol (rpc.h). They get a ticket back as soon as the computation of their prompt begins. With the
 * ticket they pull the KV over shared memory or TCP, while the rest of the prompt is computed.
 *
 *     prefill_worker MODEL_DIRECTORY [options]      see usage() for the options
 *
 * SIGTERM stops new requests. The process ends once the computed KV has been fetched.
 */
#define _POSIX_C_SOURCE 200809L
#include "rpc.h"
#include "worker.h"
#include <poll.h>
#include <signal.h>

#define MOST_PEERS 64
#define MOST_JOBS 256

/* A request of a decode worker. Its index in the array is its user_tag. */
struct job {
    int used, peer; /* -1: the decode worker is gone */
    uint64_t id;    /* number that the decode worker gave the request */
    cleave_request_t request;
    int ticket_sent;
    uint32_t n_tokens;
    uint64_t start;
};

static cleave_cache_t *cache;
static cleave_queue_t *queue;
static cleave_engine_t *engine;
static struct rpc peers[MOST_PEERS];
static struct job jobs[MOST_JOBS];
static long n_accepted, n_open;
static volatile sig_atomic_t told_to_end;

static void on_signal(int signal)
{
    (void)signal;
    told_to_end = 1;
}

/* Cancels the requests of a decode worker that is gone. Handles that it did not fetch end with their lease. */
static void forget_peer(int peer)
{
    printf("decode worker %d is gone\n", peer);
    rpc_close(&peers[peer]);
    for (int i = 0; i < MOST_JOBS; i++)
        if (jobs[i].used && jobs[i].peer == peer) {
            jobs[i].peer = -1;
            cleave_engine_cancel(engine, jobs[i].request, NULL);
        }
}

static void refuse(int peer, uint64_t id, cleave_status_t status, const char *text)
{
    int32_t code = status;
    if (rpc_send(&peers[peer], RPC_FAILED, id, &code, sizeof code, text, strlen(text)) != 0)
        forget_peer(peer);
}

static void take_prompt(int peer, uint64_t id, const unsigned char *body, size_t len)
{
    struct rpc_prompt prompt = {0};
    size_t accepted = 0, i = 0;
    int32_t *tokens;
    cleave_status_t status;
    if (len >= sizeof prompt)
        memcpy(&prompt, body, sizeof prompt);
    if (prompt.n_tokens == 0 || len != sizeof prompt + (size_t)prompt.n_tokens * sizeof *tokens) {
        refuse(peer, id, CLEAVE_ERR_INVALID_ARGUMENT, "not a prompt");
        return;
    }
    while (i < MOST_JOBS && jobs[i].used)
        i++;
    if (i == MOST_JOBS || told_to_end) { /* the decode worker computes the prompt itself, or asks another prefill worker */
        refuse(peer, id, CLEAVE_ERR_WOULD_BLOCK, told_to_end ? "the prefill worker is ending" : "the prefill worker is busy");
        return;
    }
    tokens = malloc(prompt.n_tokens * sizeof *tokens);
    if (tokens == NULL)
        check(CLEAVE_ERR_OUT_OF_MEMORY, "take a prompt");
    memcpy(tokens, body + sizeof prompt, prompt.n_tokens * sizeof *tokens);
    jobs[i] = (struct job){.used = 1, .peer = peer, .id = id, .n_tokens = prompt.n_tokens, .start = now_ns()};
    /* The ticket carries sampling parameters: the decode worker continues with these. */
    cleave_request_desc_t desc = {.struct_size = sizeof desc, .flags = CLEAVE_REQUEST_STREAM_KV, .user_tag = i,
                                  .prompt_len = prompt.n_tokens, .max_new_tokens = prompt.max_new_tokens,
                                  .temperature = prompt.temperature, .seed = prompt.seed};
    status = cleave_engine_submit(engine, &desc, 1, tokens, prompt.n_tokens, &jobs[i].request, &accepted, &err);
    free(tokens);
    if (status == CLEAVE_OK) {
        n_accepted++;
        n_open++;
    } else {
        jobs[i].used = 0;
        refuse(peer, id, status, err.message);
    }
}

/* Reads the messages of a decode worker. */
static void serve(int peer)
{
    struct rpc_header header;
    const unsigned char *body;
    int gone = rpc_receive(&peers[peer]) != 0 || rpc_flush(&peers[peer]) != 0, found;
    while (peers[peer].fd >= 0 && (found = rpc_next(&peers[peer], &header, &body)) != 0) {
        if (found < 0) {
            gone = 1;
            break;
        }
        if (header.kind == RPC_PROMPT)
            take_prompt(peer, header.id, body, header.len);
    }
    if (gone && peers[peer].fd >= 0)
        forget_peer(peer);
}

static void greet(int listening)
{
    unsigned char address[4096];
    size_t len;
    int fd = accept(listening, NULL, NULL), peer = 0;
    if (fd < 0)
        return;
    while (peer < MOST_PEERS && peers[peer].fd >= 0)
        peer++;
    if (peer == MOST_PEERS) {
        close(fd);
        return;
    }
    peers[peer].fd = fd;
    printf("decode worker %d is here\n", peer);
    check(cleave_cache_address(cache, address, sizeof address, &len, &err), "write the address");
    if (rpc_send(&peers[peer], RPC_ADDRESS, 0, address, len, NULL, 0) != 0)
        forget_peer(peer);
}

/* Sends a handle's ticket to the decode worker that waits for it. */
static void send_ticket(struct job *job, cleave_kv_t kv)
{
    cleave_kv_info_t info = {.struct_size = sizeof info};
    size_t len = 0;
    unsigned char *ticket = NULL;
    cleave_status_t status = cleave_kv_info(cache, kv, &info, NULL);
    snprintf(err.message, sizeof err.message, "the handle is gone");
    if (status == CLEAVE_OK)
        ticket = malloc((size_t)info.ticket_bytes);
    if (ticket != NULL)
        status = cleave_kv_ticket(cache, kv, ticket, (size_t)info.ticket_bytes, &len, &err);
    job->ticket_sent = 1;
    if (status != CLEAVE_OK || ticket == NULL)
        refuse(job->peer, job->id, status, err.message);
    else if (rpc_send(&peers[job->peer], RPC_TICKET, job->id, ticket, len, NULL, 0) != 0)
        forget_peer(job->peer);
    free(ticket);
}

static void handle_event(const cleave_event_t *event)
{
    struct job *job;
    if (event->type == CLEAVE_EVENT_ENGINE_FAILED) {
        fprintf(stderr, "%s: the engine has failed: %s\n", program, cleave_status_string(event->status));
        exit(1);
    }
    job = &jobs[event->user_tag];
    if (event->type == CLEAVE_EVENT_KV_STREAM_STARTED && job->peer >= 0)
        send_ticket(job, event->kv);
    if (event->type != CLEAVE_EVENT_FINISHED)
        return; /* the first token is in the KV handle: the decode worker repeats it (CLEAVE_REQUEST_EMIT_PENDING) */
    if (job->peer < 0) {
        if (event->kv != 0)
            cleave_kv_release(cache, event->kv, NULL);
    } else if (event->kv == 0) {
        refuse(job->peer, job->id, event->status, "the prompt was not computed");
    } else {
        if (!job->ticket_sent)
            send_ticket(job, event->kv);
        printf("%u tokens for decode worker %d in %.2f ms\n", job->n_tokens, job->peer, (double)(now_ns() - job->start) / 1e6);
    }
    /* The handle lives until it is fetched or its lease ends. */
    job->used = 0;
    n_open--;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: %s MODEL_DIRECTORY [options]\n"
            "  --rpc PATH|HOST:PORT     where decode workers send prompts (default: a socket in XDG_RUNTIME_DIR or /tmp)\n"
            "  --kv-listen HOST:PORT    lets decode workers on other machines fetch KV by TCP; port 0 takes a free one\n"
            "  --advertise HOST:PORT    how they reach that, if it is another address\n"
            "  --secret-file PATH       32 bytes; made if there is none (default: a file in XDG_RUNTIME_DIR or /tmp)\n"
            "  --step-tokens N          prompt tokens in a step: KV can be fetched after each (default: the library's)\n"
            "  --cache-mib N            memory for KV (default 128)\n"
            "  --device N               the GPU of that number (default: the CPU)\n"
            "  --count N                ends after so many prompts\n",
            program);
    return 2;
}

int main(int argc, char **argv)
{
    char default_rpc[200], default_secret[200];
    const char *path = NULL, *rpc = meeting_place("sock", default_rpc, sizeof default_rpc), *why;
    const char *secret = NULL, *kv_listen = NULL, *advertise = NULL;
    long step_tokens = 0, mib = 128, count = 0, device = CLEAVE_DEVICE_CPU;
    program = argv[0];
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (option[0] != '-' && path == NULL) {
            path = option;
            continue;
        }
        i++;
        if (strcmp(option, "--rpc") == 0)
            rpc = value;
        else if (strcmp(option, "--kv-listen") == 0)
            kv_listen = value;
        else if (strcmp(option, "--advertise") == 0)
            advertise = value;
        else if (strcmp(option, "--secret-file") == 0)
            secret = value;
        else if (strcmp(option, "--step-tokens") == 0)
            step_tokens = number(value);
        else if (strcmp(option, "--cache-mib") == 0)
            mib = number(value);
        else if (strcmp(option, "--device") == 0) {
            if ((device = number(value)) < 0)
                return usage();
        } else if (strcmp(option, "--count") == 0)
            count = number(value);
        else
            return usage();
    }
    if (path == NULL || step_tokens < 0 || mib < 1 || count < 0)
        return usage();
    if (secret == NULL)
        secret = meeting_place("secret", default_secret, sizeof default_secret);
    setvbuf(stdout, NULL, _IOLBF, 0);
    create_secret(secret);

    cleave_model_t *model;
    cleave_engine_config_t config = {.struct_size = sizeof config, .role = CLEAVE_ROLE_PREFILL,
                                     .max_batch_tokens = (uint32_t)step_tokens};
    check(cleave_model_load(path, &model, &err), "load the model");
    cache = open_cache(model, secret, mib, (int32_t)device);
    check(cleave_queue_create(0, &queue, &err), "create the queue");
    check(cleave_engine_create(cache, queue, &config, &engine, &err), "create the engine");
    if (kv_listen != NULL) {
        uint16_t port;
        check(cleave_cache_listen(cache, kv_listen, advertise, 0, &port, &err), "listen for KV");
        printf("KV by TCP at %s, port %u\n", kv_listen, port);
    }

    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    int listening = rpc_open(rpc, 1, &why);
    if (listening < 0) {
        fprintf(stderr, "%s: listen at %s: %s\n", program, rpc, why);
        return 1;
    }
    for (int i = 0; i < MOST_PEERS; i++)
        peers[i].fd = -1;
    printf("waiting for decode workers at %s\n", rpc);
    for (;;) {
        struct pollfd fds[2 + MOST_PEERS] = {{.fd = cleave_queue_fd(queue), .events = POLLIN}, {.fd = listening, .events = POLLIN}};
        cleave_metrics_t metrics = {.struct_size = sizeof metrics};
        cleave_event_t events[64];
        size_t n;
        if (count > 0 && n_accepted >= count)
            told_to_end = 1;
        check(cleave_engine_metrics(engine, &metrics, &err), "read metrics");
        if (told_to_end && n_open == 0 && metrics.exports_open == 0)
            break; /* every handle was fetched, or its lease has ended */
        for (int i = 0; i < MOST_PEERS; i++) {
            fds[2 + i].fd = peers[i].fd;
            fds[2 + i].events = peers[i].out.begin < peers[i].out.end ? POLLIN | POLLOUT : POLLIN;
        }
        if (poll(fds, 2 + MOST_PEERS, told_to_end ? 20 : 1000) < 0)
            continue; /* a signal interrupted the wait */
        if (fds[0].revents) {
            check(cleave_queue_poll(queue, events, sizeof *events, 64, 0, &n), "poll");
            for (size_t i = 0; i < n; i++)
                handle_event(&events[i]);
        }
        if (fds[1].revents)
            greet(listening);
        for (int i = 0; i < MOST_PEERS; i++)
            if (fds[2 + i].revents && fds[2 + i].fd == peers[i].fd && peers[i].fd >= 0)
                serve(i);
    }
    printf("%ld prompts were computed and fetched\n", n_accepted);
    close(listening);
    if (strchr(rpc, '/') != NULL)
        unlink(rpc);
    for (int i = 0; i < MOST_PEERS; i++)
        rpc_close(&peers[i]);
    cleave_engine_destroy(engine);
    cleave_queue_destroy(queue);
    cleave_cache_destroy(cache);
    cleave_model_release(model);
    return 0;
}
