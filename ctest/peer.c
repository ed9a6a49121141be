/* Addresses, pairing and listening within one process: as on one machine, over loopback, and every refusal. */
#define _GNU_SOURCE
#include "support.h"
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROMPT 37
#define NEW 12

static cleave_model_t *model;
static cleave_queue_t *queue;
static int32_t prompt[PROMPT], wanted[NEW];
static const char none[32];

static cleave_cache_config_t config_of(const void *secret)
{
    cleave_cache_config_t config = ZERO;
    config.struct_size = sizeof config;
    config.bytes_per_device = 8u << 20;
    config.peer_timeout_ms = 1000;
    memcpy(config.secret, secret, sizeof config.secret);
    return config;
}

static cleave_cache_t *cache_with(cleave_model_t *of, const cleave_cache_config_t *config)
{
    cleave_error_t err;
    cleave_cache_t *cache = NULL;
    CHECK_ERR(cleave_cache_create(of, NULL, 0, config, &cache, &err), CLEAVE_OK);
    return cache;
}

static cleave_cache_t *cache_of(cleave_model_t *of, char secret)
{
    char bytes[32];
    cleave_cache_config_t config;
    memset(bytes, secret, sizeof bytes);
    config = config_of(bytes);
    return cache_with(of, &config);
}

struct address {
    char bytes[2048];
    size_t len;
};

static struct address address_of(cleave_cache_t *cache)
{
    cleave_error_t err;
    struct address address = ZERO;
    CHECK_ERR(cleave_cache_address(cache, NULL, 0, &address.len, &err), CLEAVE_OK);
    CHECK(address.len > 64 && address.len <= sizeof address.bytes);
    CHECK_ERR(cleave_cache_address(cache, address.bytes, 7, &address.len, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_cache_address(cache, address.bytes, sizeof address.bytes, &address.len, &err), CLEAVE_OK);
    return address;
}

static cleave_pair_report_t blank_report(void)
{
    cleave_pair_report_t report;
    memset(&report, 0xa5, sizeof report);
    report.struct_size = sizeof report;
    return report;
}

static cleave_pair_report_t pairs(cleave_cache_t *importer, cleave_cache_t *exporter, uint32_t required, uint32_t found)
{
    cleave_error_t err;
    struct address address = address_of(exporter);
    cleave_pair_report_t report = blank_report();
    CHECK_ERR(cleave_cache_pair(importer, address.bytes, address.len, required, &report, &err), CLEAVE_OK);
    CHECK_INT(report.status, CLEAVE_OK);
    CHECK_INT(report.reason, CLEAVE_PAIR_NONE);
    CHECK_INT(report.transport, found);
    CHECK(report.bytes_per_second > 0 && report.rtt_ns > 0 && report.rtt_ns < 10000000000u);
    CHECK(strlen(report.detail) > 0);
    return report;
}

/* Expects a refusal with this status and reason, and a text with all `words` (separated by |). err and the report must
 * agree. */
static void refuses_data(int line, cleave_cache_t *importer, const void *data, size_t len, uint32_t required,
                         cleave_status_t status, uint32_t reason, const char *words)
{
    cleave_error_t err;
    cleave_pair_report_t report = blank_report();
    char each[256], *word;
    cleave_status_t found = cleave_cache_pair(importer, data, len, required, &report, &err);
    if (found != status || report.status != status || report.reason != reason) {
        fprintf(stderr, "line %d: %s, reported %s, reason %u: %.160s\n", line, cleave_status_string(found),
                cleave_status_string(report.status), report.reason, report.detail);
        exit(1);
    }
    CHECK_INT(report.transport, CLEAVE_TRANSPORT_ANY);
    CHECK(report.bytes_per_second == 0 && report.rtt_ns == 0);
    CHECK(memchr(report.detail, 0, sizeof report.detail) != NULL && report.detail[0] != 0);
    CHECK(strncmp(report.detail, err.message, strlen(report.detail)) == 0);
    snprintf(each, sizeof each, "%s", words);
    for (word = strtok(each, "|"); word != NULL; word = strtok(NULL, "|"))
        if (!has_text(&err, word)) {
            fprintf(stderr, "line %d\n", line);
            exit(1);
        }
    /* Without err, and with a report of size 0, the refusal is the same. */
    CHECK_STATUS(cleave_cache_pair(importer, data, len, required, &report, NULL), status);
}

static void refuses_(int line, cleave_cache_t *importer, cleave_cache_t *exporter, uint32_t required, cleave_status_t status,
                     uint32_t reason, const char *words)
{
    struct address address = address_of(exporter);
    refuses_data(line, importer, address.bytes, address.len, required, status, reason, words);
}
#define REFUSES(...) refuses_(__LINE__, __VA_ARGS__)
#define REFUSES_DATA(...) refuses_data(__LINE__, __VA_ARGS__)

static cleave_kv_t prefill(cleave_cache_t *cache)
{
    cleave_engine_t *engine = make_engine(cache, queue, CLEAVE_ROLE_PREFILL);
    cleave_request_desc_t desc = greedy(PROMPT, NEW);
    int32_t first[2];
    size_t n;
    cleave_event_t end = run_to_end(queue, submit_one(engine, &desc, prompt, PROMPT), first, 2, &n);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_PREFILLED);
    cleave_engine_destroy(engine);
    return end.kv;
}

/* Imports a ticket of `exporter` into `importer` and continues there. Checks the tokens and the number of bytes moved. */
static void hands_over(cleave_cache_t *exporter, cleave_cache_t *importer)
{
    cleave_error_t err;
    cleave_engine_t *engine = make_engine(importer, queue, CLEAVE_ROLE_DECODE);
    cleave_request_desc_t desc = greedy(0, 0);
    cleave_metrics_t before = ZERO, after = ZERO;
    cleave_kv_t kv = prefill(exporter);
    char ticket[2048];
    int32_t got[NEW];
    size_t len, n;
    before.struct_size = after.struct_size = sizeof before;
    CHECK_OK(cleave_engine_metrics(engine, &before, NULL));
    CHECK_ERR(cleave_kv_ticket(exporter, kv, ticket, sizeof ticket, &len, &err), CLEAVE_OK);
    CHECK_ERR(cleave_kv_import(importer, NULL, ticket, len, 0, &desc.kv, &err), CLEAVE_OK);
    desc.flags = CLEAVE_REQUEST_EMIT_PENDING;
    CHECK_INT(run_to_end(queue, submit_one(engine, &desc, NULL, 0), got, NEW, &n).status, CLEAVE_OK);
    CHECK_INT(n, NEW);
    CHECK(memcmp(got, wanted, sizeof got) == 0);
    CHECK_OK(cleave_engine_metrics(engine, &after, NULL));
    CHECK_INT(after.imports, before.imports + 1);
    CHECK_INT(after.imports_failed, before.imports_failed);
    CHECK(after.kv_bytes_in > before.kv_bytes_in);
    CHECK_STATUS(cleave_kv_renew(exporter, kv, 1000, NULL), CLEAVE_ERR_EXPIRED); /* the handle was consumed */
    cleave_engine_destroy(engine);
    check_nothing_leaked(exporter);
    check_nothing_leaked(importer);
}

static void every_transport(void)
{
    cleave_error_t err;
    cleave_cache_t *from = cache_of(model, 1), *to[4];
    cleave_pair_report_t report;
    uint16_t port = 0;
    int i;
    for (i = 0; i < 4; i++)
        to[i] = cache_of(model, 1);
    report = pairs(to[0], from, CLEAVE_TRANSPORT_ANY, CLEAVE_TRANSPORT_PROCESS);
    CHECK(strstr(report.detail, "as they are") != NULL);
    hands_over(from, to[0]);
    pairs(to[0], from, CLEAVE_TRANSPORT_PROCESS, CLEAVE_TRANSPORT_PROCESS);
    report = pairs(to[1], from, CLEAVE_TRANSPORT_SHARED_MEMORY, CLEAVE_TRANSPORT_SHARED_MEMORY);
    CHECK(strstr(report.detail, "shared memory at @cleave-") != NULL);
    hands_over(from, to[1]);

    /* A refusal names the transport that is missing on one side, and those that exist. */
    REFUSES(to[2], from, CLEAVE_TRANSPORT_TCP, CLEAVE_ERR_UNSUPPORTED, CLEAVE_PAIR_TRANSPORT, "TCP|process|@cleave-");
    CHECK_ERR(cleave_cache_listen(from, "127.0.0.1:0", NULL, 0, &port, &err), CLEAVE_OK);
    CHECK(port != 0);
    report = pairs(to[2], from, CLEAVE_TRANSPORT_TCP, CLEAVE_TRANSPORT_TCP);
    {
        char at[32];
        snprintf(at, sizeof at, "TCP at 127.0.0.1:%u", port);
        CHECK(strstr(report.detail, at) != NULL && strstr(report.detail, "encrypted") == NULL);
    }
    hands_over(from, to[2]);

    /* A listener encrypts if asked to, even on the same cache. The cache's address also contains the newest listener. */
    cleave_cache_destroy(from);
    from = cache_of(model, 1);
    CHECK_ERR(cleave_cache_listen(from, "127.0.0.1:0", NULL, CLEAVE_LISTEN_ENCRYPT, &port, &err), CLEAVE_OK);
    report = pairs(to[3], from, CLEAVE_TRANSPORT_TCP, CLEAVE_TRANSPORT_TCP);
    CHECK(strstr(report.detail, "encrypted") != NULL);
    hands_over(from, to[3]);
    hands_over(from, to[0]); /* unpaired: both caches are in this process */
    cleave_cache_destroy(from);
    for (i = 0; i < 4; i++)
        cleave_cache_destroy(to[i]);
}

/* The report names conversions. Layouts that must not be converted are refused. */
static void layouts(void)
{
    char secret[32];
    cleave_cache_config_t config, other;
    cleave_cache_t *plain, *strict, *exporter;
    memset(secret, 2, sizeof secret);
    config = other = config_of(secret);
    config.flags = CLEAVE_CACHE_NO_CONVERT;
    plain = cache_of(model, 2);
    strict = cache_with(model, &config);
    pairs(strict, plain, CLEAVE_TRANSPORT_ANY, CLEAVE_TRANSPORT_PROCESS);

    other.block_tokens = 8;
    exporter = cache_with(model, &other);
    REFUSES(strict, exporter, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_INCOMPATIBLE, CLEAVE_PAIR_BLOCK_SIZE,
            "block tokens|expected 16|found 8");
    CHECK(strstr(pairs(plain, exporter, CLEAVE_TRANSPORT_ANY, CLEAVE_TRANSPORT_PROCESS).detail, "8 tokens") != NULL);
    hands_over(exporter, plain);
    cleave_cache_destroy(exporter);

    other.block_tokens = 0;
    other.dtype = CLEAVE_DTYPE_I8;
    exporter = cache_with(model, &other);
    REFUSES(strict, exporter, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_INCOMPATIBLE, CLEAVE_PAIR_DTYPE, "dtype|expected|found int8");
    CHECK(strstr(pairs(plain, exporter, CLEAVE_TRANSPORT_SHARED_MEMORY, CLEAVE_TRANSPORT_SHARED_MEMORY).detail, "converted") != NULL);
    cleave_cache_destroy(exporter);
    cleave_cache_destroy(plain);
    cleave_cache_destroy(strict);
}

static void bad_addresses(void)
{
    cleave_error_t err;
    cleave_cache_t *from = cache_of(model, 3), *to = cache_of(model, 3), *other = cache_of(model, 4);
    struct address address = address_of(from);
    cleave_pair_report_t report = blank_report();
    cleave_kv_t kv = prefill(from);
    char ticket[2048];
    size_t i, len;

    REFUSES(other, from, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_PERMISSION, CLEAVE_PAIR_SECRET, "secret");
    REFUSES_DATA(to, "x", 1, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_CORRUPT, CLEAVE_PAIR_ADDRESS, "8 bytes|1 are left");
    for (i = 0; i < address.len; i += address.len / 9)
        REFUSES_DATA(to, address.bytes, i, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_CORRUPT, CLEAVE_PAIR_ADDRESS,
                     i < 64 ? "" : "address|truncated|expected|found");
    REFUSES_DATA(to, address.bytes, address.len + 1, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_CORRUPT, CLEAVE_PAIR_ADDRESS, "expected|found");
    for (i = 0; i < address.len; i += 5) {
        address.bytes[i] ^= 0x10;
        report = blank_report();
        CHECK(cleave_cache_pair(to, address.bytes, address.len, 0, &report, &err) < 0);
        if (report.reason != CLEAVE_PAIR_ADDRESS && report.reason != CLEAVE_PAIR_VERSION) {
            fprintf(stderr, "byte %zu changed: reason %u, %.252s\n", i, report.reason, err.message);
            exit(1);
        }
        CHECK_INT(report.status, report.reason == CLEAVE_PAIR_VERSION ? CLEAVE_ERR_INCOMPATIBLE : CLEAVE_ERR_CORRUPT);
        address.bytes[i] ^= 0x10;
    }
    CHECK_ERR(cleave_kv_ticket(from, kv, ticket, sizeof ticket, &len, &err), CLEAVE_OK);
    REFUSES_DATA(to, ticket, len, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_INVALID_ARGUMENT, CLEAVE_PAIR_ADDRESS,
                 "address: expected one|found another kind of thing|ticket");
    CHECK_ERR(cleave_kv_import(to, NULL, address.bytes, address.len, 0, &kv, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "ticket: expected one"));

    /* NIXL is never chosen automatically, and is reported missing if it cannot be loaded. */
    report = blank_report();
    if (cleave_cache_pair(to, address.bytes, address.len, CLEAVE_TRANSPORT_NIXL, &report, &err) != CLEAVE_OK) {
        CHECK_INT(err.code, CLEAVE_ERR_UNSUPPORTED);
        CHECK_INT(report.reason, CLEAVE_PAIR_TRANSPORT);
        CHECK(has_text(&err, "NIXL"));
    }

    /* Invalid arguments leave the report unchanged. */
    report = blank_report();
    CHECK_ERR(cleave_cache_pair(to, address.bytes, address.len, CLEAVE_TRANSPORT_CUDA + 1, &report, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "required_transport: 6"));
    CHECK_ERR(cleave_cache_pair(to, address.bytes, address.len, UINT32_MAX, &report, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_cache_pair(to, NULL, 0, 0, &report, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_cache_pair(to, "x", SIZE_MAX, 0, &report, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_cache_pair(to, "x", 1, 0, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_INT(report.status, (int32_t)0xa5a5a5a5);
    CHECK_ERR(cleave_cache_address(to, ticket, sizeof ticket, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    cleave_cache_destroy(from);
    cleave_cache_destroy(to);
    cleave_cache_destroy(other);
}

/* Pairing with a cache that is gone, and imports from it: by a peer that never reached it, and by one that has
 * connections to it and its memory mapped. */
static void dead_peers(void)
{
    cleave_error_t err;
    cleave_cache_t *from = cache_of(model, 5), *to = cache_of(model, 5);
    struct address address;
    cleave_kv_t kv;
    char ticket[2048];
    size_t len;
    cleave_event_t event;
    CHECK_ERR(cleave_cache_listen(from, "127.0.0.1:0", NULL, 0, NULL, &err), CLEAVE_OK);
    pairs(to, from, CLEAVE_TRANSPORT_SHARED_MEMORY, CLEAVE_TRANSPORT_SHARED_MEMORY);
    hands_over(from, to);
    kv = prefill(from);
    CHECK_ERR(cleave_kv_ticket(from, kv, ticket, sizeof ticket, &len, &err), CLEAVE_OK);
    address = address_of(from);
    cleave_cache_destroy(from);
    REFUSES_DATA(to, address.bytes, address.len, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_PEER, CLEAVE_PAIR_UNREACHABLE, "cache");
    REFUSES_DATA(to, address.bytes, address.len, CLEAVE_TRANSPORT_SHARED_MEMORY, CLEAVE_ERR_PEER, CLEAVE_PAIR_UNREACHABLE, "@cleave-");
    REFUSES_DATA(to, address.bytes, address.len, CLEAVE_TRANSPORT_TCP, CLEAVE_ERR_PEER, CLEAVE_PAIR_UNREACHABLE, "127.0.0.1:");
    CHECK_ERR(cleave_kv_import(to, queue, ticket, len, 77, &kv, &err), CLEAVE_OK);
    event = next_event(queue);
    CHECK_INT(event.type, CLEAVE_EVENT_KV_READY);
    CHECK_INT(event.user_tag, 77);
    CHECK_INT(event.status, CLEAVE_ERR_PEER);
    CHECK_OK(cleave_kv_release(to, kv, NULL));
    check_nothing_leaked(to);
    cleave_cache_destroy(to);
    CHECK_ERR(cleave_cache_pair(to, address.bytes, address.len, 0, &(cleave_pair_report_t){.struct_size = 192}, &err),
              CLEAVE_ERR_NOT_FOUND);
}

static void copy_file(const char *from, const char *to, const char *name, int change_last_byte)
{
    char path[4096], byte;
    FILE *in, *out;
    int next;
    snprintf(path, sizeof path, "%s/%s", from, name);
    in = fopen(path, "rb");
    if (in == NULL)
        return;
    snprintf(path, sizeof path, "%s/%s", to, name);
    out = fopen(path, "wb");
    CHECK(out != NULL);
    for (next = fgetc(in); next != EOF;) {
        byte = (char)next;
        next = fgetc(in);
        if (next == EOF && change_last_byte)
            byte ^= 1;
        CHECK(fputc(byte, out) != EOF);
    }
    CHECK_INT(fclose(out), 0);
    fclose(in);
}

/* The model differs in one bit of its weights. */
static void other_weights(void)
{
    static const char *const files[] = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                        "model.safetensors"};
    cleave_error_t err;
    char directory[] = "cleave-peer-test.XXXXXX", path[4096];
    cleave_model_t *changed = NULL;
    cleave_cache_t *from, *to;
    struct stat weights;
    size_t i;
    snprintf(path, sizeof path, "%s/model.safetensors", model_path());
    if (stat(path, &weights) != 0)
        return; /* the model is in shards, unlike models/tiny */
    CHECK(mkdtemp(directory) != NULL);
    for (i = 0; i < sizeof files / sizeof *files; i++)
        copy_file(model_path(), directory, files[i], i == 4);
    CHECK_ERR(cleave_model_load(directory, &changed, &err), CLEAVE_OK);
    from = cache_of(changed, 6);
    to = cache_of(model, 6);
    REFUSES(to, from, CLEAVE_TRANSPORT_ANY, CLEAVE_ERR_INCOMPATIBLE, CLEAVE_PAIR_WEIGHTS, "fingerprint|expected|found|Llama");
    cleave_cache_destroy(from);
    cleave_cache_destroy(to);
    cleave_model_release(changed);
    for (i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, files[i]);
        remove(path);
    }
    CHECK_INT(rmdir(directory), 0);
}

static void listening(void)
{
    cleave_error_t err;
    cleave_cache_config_t config = config_of(none);
    cleave_cache_t *cache = cache_of(model, 7), *lonely = cache_with(model, &config), *to = cache_of(model, 7);
    static const char *const bad[] = {"", "127.0.0.1", "127.0.0.1:", ":", "127.0.0.1:70000", "127.0.0.1:x", "no.such.host.invalid:1",
                                      "/tmp/socket", "[::1:0", "192.0.2.77:0"};
    struct sockaddr_in taken = ZERO;
    socklen_t size = sizeof taken;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    uint16_t port = 9, second = 9;
    char address[64];
    size_t i, before = address_of(cache).len;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_ERR(cleave_cache_listen(cache, bad[i], NULL, 0, &port, &err), CLEAVE_ERR_INVALID_ARGUMENT);
        CHECK(has_text(&err, bad[i]));
        CHECK_INT(port, 9);
    }
    CHECK_ERR(cleave_cache_listen(cache, NULL, NULL, 0, &port, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_cache_listen(cache, "127.0.0.1:0", "nonsense", 0, &port, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "nonsense"));
    CHECK_ERR(cleave_cache_listen(cache, "127.0.0.1:0", "0.0.0.0:1", 0, &port, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "advertise"));
    CHECK_ERR(cleave_cache_listen(cache, "127.0.0.1:0", NULL, CLEAVE_LISTEN_ENCRYPT | CLEAVE_LISTEN_PLAINTEXT, &port, &err),
              CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "ENCRYPT"));
    CHECK_ERR(cleave_cache_listen(cache, "127.0.0.1:0", NULL, 4, &port, &err), CLEAVE_ERR_UNSUPPORTED);
    CHECK_ERR(cleave_cache_listen(lonely, "127.0.0.1:0", NULL, 0, &port, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "secret"));
    CHECK_INT(port, 9);
    CHECK_INT(address_of(cache).len, before);

    /* Another socket holds the port. */
    taken.sin_family = AF_INET;
    taken.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_INT(bind(fd, (struct sockaddr *)&taken, sizeof taken), 0);
    CHECK_INT(listen(fd, 1), 0);
    CHECK_INT(getsockname(fd, (struct sockaddr *)&taken, &size), 0);
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(taken.sin_port));
    CHECK_ERR(cleave_cache_listen(cache, address, NULL, 0, &port, &err), CLEAVE_ERR_IO);
    CHECK(has_text(&err, address));
    close(fd);

    /* A cache listens twice, once by name. Its address contains both listeners, and the advertised address of a third. */
    CHECK_ERR(cleave_cache_listen(cache, "127.0.0.1:0", NULL, 0, &port, &err), CLEAVE_OK);
    CHECK_ERR(cleave_cache_listen(cache, "localhost:0", NULL, CLEAVE_LISTEN_PLAINTEXT, &second, &err), CLEAVE_OK);
    CHECK(port != 0 && second != 0 && port != second && port != 9);
    CHECK(address_of(cache).len > before);
    CHECK_ERR(cleave_cache_listen(cache, "127.0.0.1:0", "192.0.2.1:7000", 0, NULL, &err), CLEAVE_OK);
    pairs(to, cache, CLEAVE_TRANSPORT_TCP, CLEAVE_TRANSPORT_TCP);
    /* The cache itself already holds this port. */
    snprintf(address, sizeof address, "127.0.0.1:%u", port);
    CHECK_ERR(cleave_cache_listen(cache, address, NULL, 0, &port, &err), CLEAVE_ERR_IO);
    /* The port is closed with the cache, and free for the next cache at once. */
    cleave_cache_destroy(cache);
    CHECK_ERR(cleave_cache_listen(cache, "127.0.0.1:0", NULL, 0, NULL, &err), CLEAVE_ERR_NOT_FOUND);
    CHECK_ERR(cleave_cache_listen(to, address, NULL, 0, &second, &err), CLEAVE_OK);
    CHECK_INT(second, port);
    cleave_cache_destroy(lonely);
    cleave_cache_destroy(to);
}

int main(void)
{
    cleave_cache_t *cache;
    cleave_engine_t *engine;
    cleave_request_desc_t desc = greedy(PROMPT, NEW);
    size_t n;
    model = load_model();
    queue = make_queue(0);
    cache = make_cache(model);
    engine = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    fill_prompt(prompt, PROMPT, vocab_size(model), 5);
    run_to_end(queue, submit_one(engine, &desc, prompt, PROMPT), wanted, NEW, &n);
    CHECK_INT(n, NEW);
    cleave_engine_destroy(engine);
    cleave_cache_destroy(cache);
    every_transport();
    layouts();
    bad_addresses();
    dead_peers();
    other_weights();
    listening();
    cleave_queue_destroy(queue);
    cleave_model_release(model);
    return 0;
}
