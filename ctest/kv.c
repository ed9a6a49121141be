#define _GNU_SOURCE
#include "support.h"
#include <sys/stat.h>
#include <unistd.h>

#define PROMPT 37
#define NEW 24

static cleave_model_t *model;
static int32_t prompt[PROMPT];
static int32_t wanted[NEW];

static cleave_cache_t *cache_with_secret(uint8_t byte)
{
    cleave_error_t err;
    cleave_cache_t *cache = NULL;
    cleave_cache_config_t config = ZERO;
    config.struct_size = sizeof config;
    config.bytes_per_device = 16u << 20;
    memset(config.secret, byte, sizeof config.secret);
    CHECK_ERR(cleave_cache_create(model, NULL, 0, &config, &cache, &err), CLEAVE_OK);
    return cache;
}

/* Prefills in one engine. Returns the handle and checks the first token. */
static cleave_kv_t prefill(cleave_engine_t *engine, cleave_queue_t *queue)
{
    cleave_request_desc_t desc = greedy(PROMPT, NEW);
    int32_t first[2];
    size_t n;
    cleave_event_t end = run_to_end(queue, submit_one(engine, &desc, prompt, PROMPT), first, 2, &n);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_PREFILLED);
    CHECK_INT(n, 1);
    CHECK_INT(first[0], wanted[0]);
    return end.kv;
}

/* Continues a handle to its end and compares the tokens with a mixed engine's. */
static void continues(cleave_engine_t *engine, cleave_queue_t *queue, cleave_kv_t kv, uint32_t flags)
{
    cleave_request_desc_t desc = greedy(0, 0);
    int32_t got[NEW];
    size_t n, skipped = flags & CLEAVE_REQUEST_EMIT_PENDING ? 0 : 1;
    cleave_event_t end;
    desc.flags = flags;
    desc.kv = kv;
    end = run_to_end(queue, submit_one(engine, &desc, NULL, 0), got, NEW, &n);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_LENGTH);
    CHECK_INT(n, NEW - skipped);
    CHECK(memcmp(got, wanted + skipped, n * sizeof *got) == 0);
}

static unsigned char *read_image(cleave_cache_t *cache, cleave_kv_t kv, size_t *len)
{
    cleave_error_t err;
    cleave_kv_info_t info = ZERO;
    unsigned char *image;
    size_t got = 1, at = 0;
    info.struct_size = sizeof info;
    CHECK_OK(cleave_kv_info(cache, kv, &info, NULL));
    *len = (size_t)info.image_bytes;
    CHECK(*len > 0);
    image = (unsigned char *)malloc(*len);
    CHECK(image != NULL);
    while (at < *len) { /* reads pieces of an odd size */
        size_t piece = *len - at < 1000 ? *len - at : 1000;
        CHECK_ERR(cleave_kv_read_image(cache, kv, at, image + at, piece, &got, &err), CLEAVE_OK);
        CHECK(got > 0 && got <= piece);
        at += got;
    }
    CHECK_ERR(cleave_kv_read_image(cache, kv, at, image, 10, &got, &err), CLEAVE_OK);
    CHECK_INT(got, 0);
    CHECK_ERR(cleave_kv_read_image(cache, kv, UINT64_MAX, image, 10, &got, &err), CLEAVE_OK);
    CHECK_INT(got, 0);
    return image;
}

static void refuses_bad_images(cleave_cache_t *cache, unsigned char *image, size_t len)
{
    cleave_error_t err;
    cleave_kv_t kv = 0;
    cleave_cache_t *other = cache_with_secret(9);
    const size_t cuts[] = {0, 1, 7, len / 2, len - 1};
    size_t i;
    CHECK_ERR(cleave_kv_import(other, NULL, image, len, 0, &kv, &err), CLEAVE_ERR_PERMISSION);
    for (i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        cleave_status_t status = cleave_kv_import(cache, NULL, image, cuts[i], 0, &kv, &err);
        CHECK(status == CLEAVE_ERR_CORRUPT || (cuts[i] == 0 && status == CLEAVE_ERR_INVALID_ARGUMENT));
    }
    for (i = 0; i < 32; i++) {
        size_t at = i * (len - 1) / 31;
        image[at] ^= 4;
        CHECK(cleave_kv_import(cache, NULL, image, len, 0, &kv, &err) < 0);
        CHECK(err.code != CLEAVE_ERR_INTERNAL);
        image[at] ^= 4;
    }
    CHECK_INT(kv, 0);
    cleave_cache_destroy(other);
}

/* The handle's sequence is the prompt and the first token. */
static void has_tokens(cleave_cache_t *cache, cleave_kv_t kv)
{
    cleave_error_t err;
    int32_t tokens[PROMPT + 1];
    size_t n = 0;
    CHECK_ERR(cleave_kv_tokens(cache, kv, NULL, 0, &n, &err), CLEAVE_OK);
    CHECK_INT(n, PROMPT + 1);
    CHECK_ERR(cleave_kv_tokens(cache, kv, tokens, PROMPT, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_kv_tokens(cache, kv, tokens, PROMPT + 1, &n, &err), CLEAVE_OK);
    CHECK(memcmp(tokens, prompt, sizeof prompt) == 0);
    CHECK_INT(tokens[PROMPT], wanted[0]);
}

static void has_host_data(cleave_cache_t *cache, cleave_kv_t kv, const void *data, size_t len)
{
    cleave_error_t err;
    unsigned char got[CLEAVE_KV_HOST_DATA_MAX];
    size_t n = 1;
    CHECK_ERR(cleave_kv_host_data(cache, kv, got, sizeof got, &n, &err), CLEAVE_OK);
    CHECK_INT(n, len);
    CHECK(memcmp(got, data, len) == 0);
    if (len > 0)
        CHECK_ERR(cleave_kv_host_data(cache, kv, got, len - 1, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
}

/* Host data stays with handle, duplicate, image and ticket, and with a request that hands over again. */
static void carries_host_data(cleave_cache_t *cache, cleave_cache_t *second, cleave_engine_t *prefiller, cleave_queue_t *queue)
{
    cleave_error_t err;
    cleave_kv_t kv = prefill(prefiller, queue), copy = 0, there = 0;
    cleave_request_desc_t desc = greedy(1, NEW);
    cleave_event_t end;
    unsigned char most[CLEAVE_KV_HOST_DATA_MAX + 1], *image;
    char ticket[8192];
    int32_t got[2];
    size_t len, n;
    memset(most, 0xc3, sizeof most);
    has_host_data(cache, kv, "", 0);
    CHECK_ERR(cleave_kv_set_host_data(cache, kv, most, sizeof most, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_kv_set_host_data(cache, kv, NULL, 1, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_kv_set_host_data(cache, kv, most, sizeof most - 1, &err), CLEAVE_OK);
    CHECK_ERR(cleave_kv_duplicate(cache, kv, &copy, &err), CLEAVE_OK);
    has_host_data(cache, copy, most, sizeof most - 1);
    CHECK_ERR(cleave_kv_set_host_data(cache, kv, "trace 7", 7, &err), CLEAVE_OK);
    has_host_data(cache, copy, most, sizeof most - 1);

    image = read_image(cache, copy, &len);
    CHECK_ERR(cleave_kv_set_host_data(cache, copy, "x", 1, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "duplicate"));
    CHECK_ERR(cleave_kv_import(second, NULL, image, len, 0, &there, &err), CLEAVE_OK);
    has_host_data(second, there, most, sizeof most - 1);
    CHECK_OK(cleave_kv_release(second, there, NULL));
    CHECK_OK(cleave_kv_release(cache, copy, NULL));
    free(image);

    CHECK_ERR(cleave_kv_ticket(cache, kv, ticket, sizeof ticket, &len, &err), CLEAVE_OK);
    CHECK_ERR(cleave_kv_import(second, queue, ticket, len, 0, &there, &err), CLEAVE_OK);
    has_host_data(second, there, "trace 7", 7); /* available at once */
    has_tokens(second, there);
    CHECK_INT(next_event(queue).status, CLEAVE_OK);
    has_host_data(second, there, "trace 7", 7);
    CHECK_ERR(cleave_kv_set_host_data(second, there, NULL, 0, &err), CLEAVE_OK);
    has_host_data(second, there, "", 0);
    CHECK_OK(cleave_kv_release(second, there, NULL));

    kv = prefill(prefiller, queue);
    CHECK_ERR(cleave_kv_set_host_data(cache, kv, "turn 1", 6, &err), CLEAVE_OK);
    desc.kv = kv;
    end = run_to_end(queue, submit_one(prefiller, &desc, prompt, 1), got, 2, &n);
    CHECK_INT(end.finish_reason, CLEAVE_FINISH_PREFILLED);
    has_host_data(cache, end.kv, "turn 1", 6);
    CHECK_OK(cleave_kv_release(cache, end.kv, NULL));
    CHECK_ERR(cleave_kv_host_data(cache, end.kv, NULL, 0, &n, &err), CLEAVE_ERR_NOT_FOUND);
}

/* Load and save refuse a path that is not a regular file. They do not block, as a plain open of a FIFO without a writer
 * would. */
static void refuses_what_is_no_file(cleave_cache_t *cache, cleave_kv_t kv)
{
    cleave_error_t err;
    cleave_kv_t loaded = 0;
    char path[64];
    snprintf(path, sizeof path, "cleave-kv-fifo.%ld", (long)getpid());
    CHECK_INT(mkfifo(path, 0600), 0);
    CHECK_ERR(cleave_kv_load(cache, path, &loaded, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, path) && has_text(&err, "regular file"));
    CHECK_ERR(cleave_kv_save(cache, kv, path, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_INT(remove(path), 0);
    CHECK_ERR(cleave_kv_load(cache, "/dev/zero", &loaded, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_INT(loaded, 0);
}

int main(void)
{
    cleave_error_t err;
    cleave_cache_t *cache, *second;
    cleave_queue_t *queue = make_queue(0);
    cleave_engine_t *mixed, *prefiller, *decoder, *elsewhere;
    cleave_kv_t kv, copy = 0;
    cleave_kv_info_t info = ZERO;
    cleave_event_t event;
    unsigned char *image;
    char path[64];
    char ticket[4096];
    size_t len, n;
    model = load_model();
    cache = cache_with_secret(5);
    second = cache_with_secret(5);
    mixed = make_engine(cache, queue, CLEAVE_ROLE_MIXED);
    prefiller = make_engine(cache, queue, CLEAVE_ROLE_PREFILL);
    decoder = make_engine(cache, queue, CLEAVE_ROLE_DECODE);
    elsewhere = make_engine(second, queue, CLEAVE_ROLE_DECODE);
    info.struct_size = sizeof info;
    fill_prompt(prompt, PROMPT, vocab_size(model), 3);
    {
        cleave_request_desc_t desc = greedy(PROMPT, NEW);
        run_to_end(queue, submit_one(mixed, &desc, prompt, PROMPT), wanted, NEW, &n);
        CHECK_INT(n, NEW);
    }

    /* In one cache, the handle is consumed by the request and is then gone. */
    kv = prefill(prefiller, queue);
    CHECK_OK(cleave_kv_info(cache, kv, &info, NULL));
    CHECK_INT(info.n_tokens, PROMPT + 1);
    CHECK_INT(info.n_computed, PROMPT);
    has_tokens(cache, kv);
    CHECK(info.n_blocks > 0 && info.image_bytes > info.ticket_bytes && info.lease_left_ms > 0);
    continues(decoder, queue, kv, 0);
    CHECK(cleave_kv_info(cache, kv, &info, NULL) < 0);
    {
        cleave_request_desc_t desc = greedy(0, 0);
        cleave_request_t id;
        desc.kv = kv;
        CHECK(cleave_engine_submit(decoder, &desc, 1, NULL, 0, &id, &n, &err) < 0);
        CHECK(err.code == CLEAVE_ERR_NOT_FOUND || err.code == CLEAVE_ERR_EXPIRED);
    }

    /* A duplicate can be continued independently. */
    kv = prefill(prefiller, queue);
    CHECK_ERR(cleave_kv_duplicate(cache, kv, &copy, &err), CLEAVE_OK);
    CHECK(copy != 0 && copy != kv);
    continues(decoder, queue, copy, CLEAVE_REQUEST_EMIT_PENDING);

    /* An image goes into another cache, and KV_READY reports its arrival. */
    image = read_image(cache, kv, &len);
    CHECK_ERR(cleave_kv_import(second, queue, image, len, 4711, &copy, &err), CLEAVE_OK);
    event = next_event(queue);
    CHECK_INT(event.type, CLEAVE_EVENT_KV_READY);
    CHECK_INT(event.status, CLEAVE_OK);
    CHECK_INT(event.user_tag, 4711);
    CHECK_INT(event.kv, copy);
    continues(elsewhere, queue, copy, 0);
    refuses_bad_images(second, image, len);
    free(image);

    /* A ticket goes to another cache of this process. */
    CHECK_ERR(cleave_kv_ticket(cache, kv, NULL, 0, &len, &err), CLEAVE_OK);
    CHECK(len > 0 && len <= sizeof ticket);
    CHECK_ERR(cleave_kv_ticket(cache, kv, ticket, 1, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_kv_ticket(cache, kv, ticket, sizeof ticket, &len, &err), CLEAVE_OK);
    CHECK_ERR(cleave_kv_import(second, NULL, ticket, len, 0, &copy, &err), CLEAVE_OK);
    continues(elsewhere, queue, copy, 0);

    /* A file holds the image. */
    snprintf(path, sizeof path, "cleave-kv-test.%ld", (long)getpid());
    CHECK_STATUS(cleave_kv_renew(cache, kv, 60000, NULL), CLEAVE_ERR_EXPIRED); /* consumed by the ticket's import */
    kv = prefill(prefiller, queue);
    CHECK_OK(cleave_kv_renew(cache, kv, 60000, NULL));
    CHECK_ERR(cleave_kv_save(cache, kv, path, &err), CLEAVE_OK);
    CHECK_ERR(cleave_kv_save(cache, kv, "/no/such/directory/file", &err), CLEAVE_ERR_NOT_FOUND);
    refuses_what_is_no_file(cache, kv);
    CHECK_ERR(cleave_kv_load(second, path, &copy, &err), CLEAVE_OK);
    continues(elsewhere, queue, copy, 0);
    CHECK_INT(remove(path), 0);
    CHECK_ERR(cleave_kv_load(second, path, &copy, &err), CLEAVE_ERR_NOT_FOUND);
    CHECK(has_text(&err, path));

    carries_host_data(cache, second, prefiller, queue);

    /* Releasing twice is harmless; unknown ids are not found. */
    CHECK_STATUS(cleave_kv_renew(cache, kv, 0, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_OK(cleave_kv_release(cache, kv, NULL));
    CHECK_OK(cleave_kv_release(cache, kv, NULL));
    CHECK(cleave_kv_renew(cache, kv, 1000, NULL) < 0);
    CHECK_STATUS(cleave_kv_info(cache, 0, &info, NULL), CLEAVE_ERR_NOT_FOUND);
    CHECK_ERR(cleave_kv_save(cache, 0x7777777777u, path, &err), CLEAVE_ERR_NOT_FOUND);

    /* A running generation is exported and continues in another engine. */
    {
        cleave_request_desc_t desc = greedy(PROMPT, NEW);
        cleave_request_t id = submit_one(mixed, &desc, prompt, PROMPT);
        int32_t got[2 * NEW];
        size_t more = 0;
        cleave_status_t exported = cleave_engine_export(mixed, id, NULL);
        CHECK(exported == CLEAVE_OK || exported == CLEAVE_ERR_NOT_FOUND); /* the generation may have ended first */
        event = run_to_end(queue, id, got, NEW, &n);
        if (event.finish_reason == CLEAVE_FINISH_EXPORTED) {
            desc = greedy(0, 0);
            desc.flags = 0;
            desc.kv = event.kv;
            run_to_end(queue, submit_one(decoder, &desc, NULL, 0), got + n, NEW, &more);
        }
        CHECK_INT(n + more, NEW);
        CHECK(memcmp(got, wanted, sizeof wanted) == 0);
    }
    cleave_engine_destroy(mixed);
    cleave_engine_destroy(prefiller);
    cleave_engine_destroy(decoder);
    cleave_engine_destroy(elsewhere);
    check_nothing_leaked(cache);
    check_nothing_leaked(second);
    cleave_cache_destroy(cache);
    cleave_cache_destroy(second);
    cleave_queue_destroy(queue);
    cleave_model_release(model);
    return 0;
}
