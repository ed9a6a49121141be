/*
 * The functions of cleave.h with two changes for Go. Objects are uintptr in Go: they are names, not addresses, and
 * the garbage collector must not take them for pointers. Byte buffers have a type of their own: it tells cgo that they
 * contain no pointers, whatever they are a part of.
 */
#ifndef CLEAVE_GO_BRIDGE_H
#define CLEAVE_GO_BRIDGE_H

#include <cleave/cleave.h>
#include <stddef.h>

/* capi.Event has the layout of cleave_event_t, field by field. */
_Static_assert(sizeof(cleave_event_t) >= 64 && offsetof(cleave_event_t, type) == 0 &&
                   offsetof(cleave_event_t, finish_reason) == 4 && offsetof(cleave_event_t, status) == 8 &&
                   offsetof(cleave_event_t, token) == 12 && offsetof(cleave_event_t, user_tag) == 16 &&
                   offsetof(cleave_event_t, request) == 24 && offsetof(cleave_event_t, kv) == 32 &&
                   offsetof(cleave_event_t, timestamp_ns) == 40 && offsetof(cleave_event_t, index) == 48 &&
                   offsetof(cleave_event_t, logprob) == 52 && offsetof(cleave_event_t, cached_tokens) == 56 &&
                   offsetof(cleave_event_t, flags) == 60,
               "capi.Event is another struct than cleave_event_t");

/* capi.CacheEvent has the layout of cleave_cache_event_t, field by field. */
_Static_assert(sizeof(cleave_cache_event_t) >= 64 && offsetof(cleave_cache_event_t, sequence) == 0 &&
                   offsetof(cleave_cache_event_t, type) == 8 && offsetof(cleave_cache_event_t, medium) == 12 &&
                   offsetof(cleave_cache_event_t, block_hash) == 16 && offsetof(cleave_cache_event_t, parent_hash) == 24 &&
                   offsetof(cleave_cache_event_t, cache_salt) == 32 && offsetof(cleave_cache_event_t, position) == 40 &&
                   offsetof(cleave_cache_event_t, group) == 44 && offsetof(cleave_cache_event_t, tokens_begin) == 48 &&
                   offsetof(cleave_cache_event_t, n_tokens) == 52,
               "capi.CacheEvent is another struct than cleave_cache_event_t");

typedef uintptr_t name_t;

static inline cleave_status_t bridge_model_load(const char *path, name_t *out, cleave_error_t *err)
{
    cleave_model_t *model;
    cleave_status_t status = cleave_model_load(path, &model, err);
    if (status == CLEAVE_OK)
        *out = (name_t)model;
    return status;
}

static inline void bridge_model_release(name_t model)
{
    cleave_model_release((cleave_model_t *)model);
}

static inline cleave_status_t bridge_model_info(name_t model, cleave_model_info_t *out, cleave_error_t *err)
{
    return cleave_model_info((const cleave_model_t *)model, out, err);
}

static inline cleave_status_t bridge_tokenize(name_t model, const char *text, size_t len, uint32_t flags, int32_t *tokens,
                                              size_t cap, size_t *n, cleave_error_t *err)
{
    return cleave_tokenize((const cleave_model_t *)model, text, len, flags, tokens, cap, n, err);
}

static inline cleave_status_t bridge_token_bytes(name_t model, int32_t token, uint8_t *buf, size_t cap, size_t *n,
                                                 cleave_error_t *err)
{
    return cleave_token_bytes((const cleave_model_t *)model, token, buf, cap, n, err);
}

static inline cleave_status_t bridge_chat_prompt(name_t model, const char *messages, size_t messages_len, const char *tools,
                                                 size_t tools_len, const char *arguments, size_t arguments_len,
                                                 uint32_t flags, char *text, size_t cap, size_t *n, cleave_error_t *err)
{
    return cleave_chat_prompt((const cleave_model_t *)model, messages, messages_len, tools, tools_len, arguments,
                              arguments_len, flags, text, cap, n, err);
}

static inline cleave_status_t bridge_detokenizer_create(name_t model, name_t *out, cleave_error_t *err)
{
    cleave_detokenizer_t *d;
    cleave_status_t status = cleave_detokenizer_create((const cleave_model_t *)model, &d, err);
    if (status == CLEAVE_OK)
        *out = (name_t)d;
    return status;
}

static inline cleave_status_t bridge_detokenizer_push(name_t d, int32_t token, char *text, size_t cap, size_t *n, cleave_error_t *err)
{
    return cleave_detokenizer_push((cleave_detokenizer_t *)d, token, text, cap, n, err);
}

static inline cleave_status_t bridge_detokenizer_flush(name_t d, char *text, size_t cap, size_t *n, cleave_error_t *err)
{
    return cleave_detokenizer_flush((cleave_detokenizer_t *)d, text, cap, n, err);
}

static inline void bridge_detokenizer_destroy(name_t d)
{
    cleave_detokenizer_destroy((cleave_detokenizer_t *)d);
}

static inline cleave_status_t bridge_cache_create(name_t model, const int32_t *devices, size_t n_devices,
                                                  const cleave_cache_config_t *config, name_t *out, cleave_error_t *err)
{
    cleave_cache_t *cache;
    cleave_status_t status = cleave_cache_create((cleave_model_t *)model, devices, n_devices, config, &cache, err);
    if (status == CLEAVE_OK)
        *out = (name_t)cache;
    return status;
}

static inline cleave_status_t bridge_cache_create_with_progress(name_t model, const int32_t *devices, size_t n_devices,
                                                                const cleave_cache_config_t *config,
                                                                cleave_progress_fn progress, uintptr_t user_data,
                                                                name_t *out, cleave_error_t *err)
{
    cleave_cache_t *cache;
    cleave_status_t status = cleave_cache_create_with_progress((cleave_model_t *)model, devices, n_devices, config, progress,
                                                               user_data, &cache, err);
    if (status == CLEAVE_OK)
        *out = (name_t)cache;
    return status;
}

static inline void bridge_cache_destroy(name_t cache)
{
    cleave_cache_destroy((cleave_cache_t *)cache);
}

static inline cleave_status_t bridge_cache_listen(name_t cache, const char *address, const char *advertise, uint32_t flags,
                                                  uint16_t *port, cleave_error_t *err)
{
    return cleave_cache_listen((cleave_cache_t *)cache, address, advertise, flags, port, err);
}

static inline cleave_status_t bridge_cache_address(name_t cache, uint8_t *buf, size_t cap, size_t *len, cleave_error_t *err)
{
    return cleave_cache_address((cleave_cache_t *)cache, buf, cap, len, err);
}

static inline cleave_status_t bridge_cache_pair(name_t cache, const uint8_t *address, size_t len, uint32_t transport,
                                                cleave_pair_report_t *out, cleave_error_t *err)
{
    return cleave_cache_pair((cleave_cache_t *)cache, address, len, transport, out, err);
}

static inline cleave_status_t bridge_cache_events(name_t cache, uint64_t next, cleave_cache_event_t *events, size_t event_size,
                                                  size_t capacity, int32_t *tokens, size_t tokens_cap, uint32_t timeout_ms,
                                                  cleave_cache_event_range_t *out, cleave_error_t *err)
{
    return cleave_cache_events((cleave_cache_t *)cache, next, events, event_size, capacity, tokens, tokens_cap, timeout_ms, out,
                               err);
}

static inline cleave_status_t bridge_cache_event_snapshot(name_t cache, cleave_cache_event_t *events, size_t event_size,
                                                          size_t capacity, int32_t *tokens, size_t tokens_cap,
                                                          cleave_cache_event_range_t *out, cleave_error_t *err)
{
    return cleave_cache_event_snapshot((cleave_cache_t *)cache, events, event_size, capacity, tokens, tokens_cap, out, err);
}

static inline cleave_status_t bridge_cache_audit(name_t cache, cleave_audit_t *out, cleave_error_t *err)
{
    return cleave_cache_audit((cleave_cache_t *)cache, out, err);
}

static inline cleave_status_t bridge_queue_create(uint32_t capacity, name_t *out, cleave_error_t *err)
{
    cleave_queue_t *queue;
    cleave_status_t status = cleave_queue_create(capacity, &queue, err);
    if (status == CLEAVE_OK)
        *out = (name_t)queue;
    return status;
}

static inline void bridge_queue_destroy(name_t queue)
{
    cleave_queue_destroy((cleave_queue_t *)queue);
}

static inline int bridge_queue_fd(name_t queue)
{
    return cleave_queue_fd((const cleave_queue_t *)queue);
}

static inline cleave_status_t bridge_queue_poll(name_t queue, cleave_event_t *events, size_t event_size, size_t capacity, size_t *n)
{
    return cleave_queue_poll((cleave_queue_t *)queue, events, event_size, capacity, 0, n);
}

static inline cleave_status_t bridge_engine_create(name_t cache, name_t queue, const cleave_engine_config_t *config,
                                                   name_t *out, cleave_error_t *err)
{
    cleave_engine_t *engine;
    cleave_status_t status = cleave_engine_create((cleave_cache_t *)cache, (cleave_queue_t *)queue, config, &engine, err);
    if (status == CLEAVE_OK)
        *out = (name_t)engine;
    return status;
}

static inline cleave_status_t bridge_engine_set_role(name_t engine, uint32_t role, cleave_error_t *err)
{
    return cleave_engine_set_role((cleave_engine_t *)engine, role, err);
}

static inline cleave_status_t bridge_engine_set_sm_percent(name_t engine, uint32_t percent, cleave_error_t *err)
{
    return cleave_engine_set_sm_percent((cleave_engine_t *)engine, percent, err);
}

static inline cleave_status_t bridge_engine_drain(name_t engine, uint32_t timeout_ms, cleave_error_t *err)
{
    return cleave_engine_drain((cleave_engine_t *)engine, timeout_ms, err);
}

static inline void bridge_engine_destroy(name_t engine)
{
    cleave_engine_destroy((cleave_engine_t *)engine);
}

static inline cleave_status_t bridge_engine_metrics(name_t engine, cleave_metrics_t *out, cleave_error_t *err)
{
    return cleave_engine_metrics((cleave_engine_t *)engine, out, err);
}

static inline cleave_status_t bridge_engine_load(name_t engine, cleave_engine_load_t *out, cleave_error_t *err)
{
    return cleave_engine_load((cleave_engine_t *)engine, out, err);
}

static inline cleave_status_t bridge_engine_submit(name_t engine, const cleave_request_desc_t *requests, size_t n_requests,
                                            const int32_t *tokens, size_t n_tokens, uint64_t *ids, size_t *n_accepted,
                                            cleave_error_t *err)
{
    return cleave_engine_submit((cleave_engine_t *)engine, requests, n_requests, tokens, n_tokens, ids, n_accepted, err);
}

static inline cleave_status_t bridge_engine_cancel(name_t engine, uint64_t id, cleave_error_t *err)
{
    return cleave_engine_cancel((cleave_engine_t *)engine, id, err);
}

static inline cleave_status_t bridge_engine_export(name_t engine, uint64_t id, cleave_error_t *err)
{
    return cleave_engine_export((cleave_engine_t *)engine, id, err);
}

static inline cleave_status_t bridge_kv_info(name_t cache, uint64_t kv, cleave_kv_info_t *out, cleave_error_t *err)
{
    return cleave_kv_info((cleave_cache_t *)cache, kv, out, err);
}

static inline cleave_status_t bridge_kv_tokens(name_t cache, uint64_t kv, int32_t *tokens, size_t cap, size_t *n,
                                               cleave_error_t *err)
{
    return cleave_kv_tokens((cleave_cache_t *)cache, kv, tokens, cap, n, err);
}

static inline cleave_status_t bridge_kv_set_host_data(name_t cache, uint64_t kv, const uint8_t *data, size_t len,
                                                      cleave_error_t *err)
{
    return cleave_kv_set_host_data((cleave_cache_t *)cache, kv, data, len, err);
}

static inline cleave_status_t bridge_kv_host_data(name_t cache, uint64_t kv, uint8_t *buf, size_t cap, size_t *len,
                                                  cleave_error_t *err)
{
    return cleave_kv_host_data((cleave_cache_t *)cache, kv, buf, cap, len, err);
}

static inline cleave_status_t bridge_kv_ticket(name_t cache, uint64_t kv, uint8_t *buf, size_t cap, size_t *len,
                                               cleave_error_t *err)
{
    return cleave_kv_ticket((cleave_cache_t *)cache, kv, buf, cap, len, err);
}

static inline cleave_status_t bridge_kv_read_image(name_t cache, uint64_t kv, uint64_t offset, uint8_t *buf, size_t cap,
                                                   size_t *len, cleave_error_t *err)
{
    return cleave_kv_read_image((cleave_cache_t *)cache, kv, offset, buf, cap, len, err);
}

static inline cleave_status_t bridge_kv_import(name_t cache, name_t queue, const uint8_t *data, size_t len, uint64_t user_tag,
                                               uint64_t *kv, cleave_error_t *err)
{
    return cleave_kv_import((cleave_cache_t *)cache, (cleave_queue_t *)queue, data, len, user_tag, kv, err);
}

static inline cleave_status_t bridge_kv_save(name_t cache, uint64_t kv, const char *path, cleave_error_t *err)
{
    return cleave_kv_save((cleave_cache_t *)cache, kv, path, err);
}

static inline cleave_status_t bridge_kv_load(name_t cache, const char *path, uint64_t *kv, cleave_error_t *err)
{
    return cleave_kv_load((cleave_cache_t *)cache, path, kv, err);
}

static inline cleave_status_t bridge_kv_duplicate(name_t cache, uint64_t kv, uint64_t *out, cleave_error_t *err)
{
    return cleave_kv_duplicate((cleave_cache_t *)cache, kv, out, err);
}

static inline cleave_status_t bridge_kv_renew(name_t cache, uint64_t kv, uint32_t lease_ms, cleave_error_t *err)
{
    return cleave_kv_renew((cleave_cache_t *)cache, kv, lease_ms, err);
}

static inline cleave_status_t bridge_kv_release(name_t cache, uint64_t kv, cleave_error_t *err)
{
    return cleave_kv_release((cleave_cache_t *)cache, kv, err);
}

#endif
