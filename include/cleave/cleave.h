/*
 * cleave.h: disaggregated LLM inference as a library.
 *
 * Generated from src/ffi by tests/sources: do not edit, run `make header`.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A model is loaded once. A cache holds KV blocks for it on a device. Engines run over a cache, each with a role: prefill,
 * decode or both. They report to a completion queue. A sequence leaves an engine as a KV handle, and continues in any
 * engine, process or host that can reach the handle.
 *
 *
 * API CONVENTIONS
 *
 * Errors. A function that can fail returns CLEAVE_OK (0) or a negative CLEAVE_ERR_*, and takes `cleave_error_t *err` as its
 * last parameter. `err` may be NULL. It is written on failure only, with the status and a text that names what is at fault.
 * There is no other record of the last error. The exceptions are cleave_queue_poll and cleave_queue_fd, which are called
 * in a loop and return a status alone. Results are written on success only, except counts (`*n`, `*len`, `*n_accepted`),
 * which are set as soon as the arguments that they depend on have been checked.
 *
 * Threads. Every function may be called from any thread at any time, also by two threads at once on one object. That
 * includes *_destroy and *_release: a call that another thread has begun ends normally or with SHUTDOWN, and a later call
 * returns NOT_FOUND. The library keeps nothing in thread-local storage that the next call relies on. After fork() the
 * child may call nothing but exec.
 *
 * Blocking. Functions marked [BLOCKING] may wait for a device, a disk, a peer or a timeout. All others return in
 * microseconds, unless another thread holds a lock for longer.
 *
 * Ownership. Arguments are borrowed for the call, and copied if the library needs them longer. The result in `**out` belongs
 * to the caller, who gives it to the matching *_destroy or *_release. Objects may be destroyed in any order, because each
 * keeps what it needs. Nothing has to be called at start or exit, and nothing is printed.
 *
 * Structs. Zero-initialise a struct and set struct_size to sizeof, whether the library reads or writes it. Zero means the
 * default. Fields are only ever appended, and structs contain no pointers. A library that is newer than the program takes
 * missing fields as zero and does not write them. A library that is older accepts a longer struct if everything that it
 * does not know is zero, and returns UNSUPPORTED otherwise; in structs that it writes, it zeroes the rest. A struct_size of
 * 0, not a multiple of 4 or above 65536 is INVALID_ARGUMENT. In an array, the struct_size of the first element is the
 * distance between elements.
 *
 * Buffers. A result of variable length goes to (buffer, cap, *n). *n receives the full length, in elements. If that is more
 * than cap, nothing is written and the status is INVALID_ARGUMENT. NULL with cap 0 asks for the length and is CLEAVE_OK.
 * Text is UTF-8, and *n does not count a NUL; one is written after the text if cap leaves room.
 *
 * Strings that are passed in are UTF-8. They are NUL-terminated if there is no length; otherwise they are `len` bytes, none
 * of which is special. Arrays of length 0 may be NULL.
 *
 * Units. Sizes and lengths are in bytes unless the name says tokens or blocks. Times are in the unit that the name ends with
 * (_us, _ms, _ns). A timeout_ms of UINT32_MAX means for ever, and 0 means do not wait.
 */
#ifndef CLEAVE_H
#define CLEAVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif


/* ---- version ----
 * A program built against major 0 runs with every later library of major 0. Additions go to the end of structs or
 * are new functions, and raise the minor number. */
/** Major number of this header, which names the ABI: libcleave.so.MAJOR. */
#define CLEAVE_API_MAJOR 0

/** Minor number of this header. Every addition raises it. */
#define CLEAVE_API_MINOR 1

/**
 * Returns the API version of the loaded library: (major << 16) | minor. Compare it with CLEAVE_API_MAJOR and
 * CLEAVE_API_MINOR to find out whether the library is older than the header that the program was built with.
 */
uint32_t cleave_api_version(void);

/** Returns the release as text, such as "0.1.0". The string is static and never freed. */
const char *cleave_version_string(void);


/* ---- errors ---- */
/**
 * Result of a function: CLEAVE_OK or one of CLEAVE_ERR_*. Later versions may add codes, so treat an unknown negative
 * code as a failure.
 */
typedef int32_t cleave_status_t;

/** Description of a failure: 256 bytes that the caller owns and need not initialise. Written on failure only. */
typedef struct cleave_error_t {
    /** The status that the function returned. */
    cleave_status_t code;
    /**
     * Text that names the argument, file, tensor or id at fault: UTF-8, NUL-terminated, cut at a character boundary
     * if it is too long.
     */
    char message[252];
} cleave_error_t;

/** The function succeeded. */
#define CLEAVE_OK 0

/** An argument is NULL, out of range, not UTF-8 or a handle of another type, or its struct_size is impossible. */
#define CLEAVE_ERR_INVALID_ARGUMENT (-1)

/** A handle, an id or a file does not exist, or no longer exists. */
#define CLEAVE_ERR_NOT_FOUND (-2)

/** The request is well-formed, but this build, model or device cannot do it. */
#define CLEAVE_ERR_UNSUPPORTED (-3)

/** A queue or an engine is full. Try again after a FINISHED event. */
#define CLEAVE_ERR_WOULD_BLOCK (-4)

/** Host memory, device memory or KV blocks ran out. */
#define CLEAVE_ERR_OUT_OF_MEMORY (-5)

/** The operating system reported an error on a file or a socket. */
#define CLEAVE_ERR_IO (-6)

/** The data belongs to another model, dtype, layout or version of the format. */
#define CLEAVE_ERR_INCOMPATIBLE (-7)

/** The data is not signed with the secret of this cache, or the system denied access. */
#define CLEAVE_ERR_PERMISSION (-8)

/** The lease of a KV handle is over, the handle was consumed, or its exporter was restarted. */
#define CLEAVE_ERR_EXPIRED (-9)

/** A file or a message is malformed, truncated or fails its checksum. */
#define CLEAVE_ERR_CORRUPT (-10)

/** The request was ended by cleave_engine_cancel, or a callback of the host asked to stop. */
#define CLEAVE_ERR_CANCELLED (-11)

/** A deadline or a timeout has passed. */
#define CLEAVE_ERR_TIMEOUT (-12)

/** The device or its driver failed. */
#define CLEAVE_ERR_DEVICE (-13)

/** The other side of a transfer is gone or does not answer. */
#define CLEAVE_ERR_PEER (-14)

/** The object is being destroyed, or was destroyed while the call waited. */
#define CLEAVE_ERR_SHUTDOWN (-15)

/** The library has a bug: a panic was caught. The text says where. */
#define CLEAVE_ERR_INTERNAL (-16)

/**
 * The prompt has more tokens to compute than local_prefill_tokens of the engine allows. Prefill it on another engine
 * and submit the KV handle.
 */
#define CLEAVE_ERR_PREFILL_ELSEWHERE (-17)

/**
 * Returns the name of a status without its prefix, such as "NOT_FOUND", or "UNKNOWN" for a code that this version
 * does not have. The string is static and never freed.
 */
const char *cleave_status_string(cleave_status_t status);


/* ---- log ----
 * The library writes nothing to stdout or stderr. Its messages go to the host's sink, if there is one. */
/** No messages. */
#define CLEAVE_LOG_OFF 0

/** An engine or a transfer has failed, or a panic was caught. */
#define CLEAVE_LOG_ERROR 1

/** A function works, but slower or with less than was asked for. */
#define CLEAVE_LOG_WARN 2

/** Once per object: models loaded, engines created and destroyed. */
#define CLEAVE_LOG_INFO 3

/** Once per request or failed call. */
#define CLEAVE_LOG_DEBUG 4

/** Once per step. */
#define CLEAVE_LOG_TRACE 5

/**
 * A log sink. `target` names a part of the library and `message` is one line without a newline. Both are UTF-8,
 * NUL-terminated and valid only during the call. The function must return, and must not throw or longjmp.
 */
typedef void (*cleave_log_fn)(uintptr_t user_data, int32_t level, const char *target, const char *message);

/**
 * Sends messages of `max_level` and below to `fn`. A process has one sink, which this call replaces. The previous
 * sink receives every message that was queued for it before this call returns, and is never called afterwards.
 *
 * `fn` NULL or `max_level` CLEAVE_LOG_OFF turns the log off. Do that before the object behind `user_data` goes away.
 *
 * One thread of the library, named "cleave-log", calls the sink. The thread exists only while there is a sink, and
 * never calls it twice at once. The sink may call every function of this API except this one (INVALID_ARGUMENT). A
 * sink that is too slow loses messages and is told how many; it slows nothing down.
 *
 * Callable from any thread except the sink's. Waits for the previous sink to handle its queued messages, at most
 * 1024. Errors: INVALID_ARGUMENT (level outside 0..=5), OUT_OF_MEMORY (no thread could be started).
 */
cleave_status_t cleave_log_set(int32_t max_level, cleave_log_fn fn, uintptr_t user_data, cleave_error_t *err);


/* ---- devices ---- */
/** The CPU as a device. CUDA devices are their ordinals 0, 1, ... */
#define CLEAVE_DEVICE_CPU (-1)

/** Description of a device. Set struct_size before the call. */
typedef struct cleave_device_info_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** The ordinal that was asked for. */
    int32_t ordinal;
    /** major * 10 + minor; 0 for the CPU. */
    uint32_t compute_capability;
    /** The nearest NUMA node; 0 for the CPU. */
    uint32_t numa_node;
    /** Memory in bytes. For the CPU, what the control group of this process allows. */
    uint64_t total_bytes;
    /** Memory that is not in use, in bytes. */
    uint64_t free_bytes;
    /** NUL-terminated; "CPU" for the CPU. */
    char uuid[48];
    /** Name of the product, NUL-terminated. */
    char name[64];
} cleave_device_info_t;

/**
 * Returns the number of CUDA devices of this process: 0 without devices, or without a driver for CUDA 12 or newer.
 * The call cannot fail; cleave_device_info of device 0 says why there is none. The CPU is always there and does not
 * count. Callable from any thread.
 */
int32_t cleave_device_count(void);

/**
 * Describes CLEAVE_DEVICE_CPU or a CUDA device.
 *
 * Callable from any thread. [BLOCKING] Opens and closes a CUDA device that is not in use. Errors: NOT_FOUND (no such
 * device, no driver), UNSUPPORTED (the driver is too old), DEVICE, INVALID_ARGUMENT.
 */
cleave_status_t cleave_device_info(int32_t ordinal, struct cleave_device_info_t *out, cleave_error_t *err);


/* ---- objects and ids ----
 * Objects are pointers to incomplete types. The library looks them up and never follows them, so NULL, a destroyed
 * object, an object of another type or any other value is answered with CLEAVE_ERR_INVALID_ARGUMENT or
 * CLEAVE_ERR_NOT_FOUND. Requests and KV handles are 64-bit ids that belong to one engine and one cache. An id is
 * never given out twice, and 0 is no id. */
/** A pool of KV blocks on a device, with its prefix index and KV handles. */
typedef struct cleave_cache cleave_cache;

/** Turns the tokens of one sequence into text. */
typedef struct cleave_detokenizer cleave_detokenizer;

/** A step loop over a cache, with a role. */
typedef struct cleave_engine cleave_engine;

/** Config, tokenizer and mapped weights. */
typedef struct cleave_model cleave_model;

/** A completion queue. Several engines may report to one. */
typedef struct cleave_queue cleave_queue;

/** Opaque handle of a model. */
typedef struct cleave_model cleave_model_t;

/** Opaque handle of a cache. */
typedef struct cleave_cache cleave_cache_t;

/** Opaque handle of a queue. */
typedef struct cleave_queue cleave_queue_t;

/** Opaque handle of an engine. */
typedef struct cleave_engine cleave_engine_t;

/** Opaque handle of a detokenizer. */
typedef struct cleave_detokenizer cleave_detokenizer_t;

/** Id of an accepted request. It belongs to the engine that accepted the request. */
typedef uint64_t cleave_request_t;

/**
 * Id of a KV handle: a snapshot of a sequence with its tokens, KV blocks and sampling state. It belongs to the cache
 * that holds the blocks.
 */
typedef uint64_t cleave_kv_t;


/* ---- model: a Hugging Face directory (config.json, safetensors, tokenizer.json) ---- */
/** Figures of a model. Set struct_size before the call. */
typedef struct cleave_model_info_t {
    /** sizeof(cleave_model_info_t), set by the caller. */
    uint32_t struct_size;
    /** Decoder layers. */
    uint32_t n_layers;
    /** Query heads. */
    uint32_t n_heads;
    /** Key and value heads. */
    uint32_t n_kv_heads;
    /** Elements of a head. */
    uint32_t head_dim;
    /** Token ids are below this. */
    uint32_t vocab_size;
    /** Positions the model was made for; a sequence cannot be longer. */
    uint32_t max_context_tokens;
    /** No flags are defined yet: 0. */
    uint32_t flags;
    /** Bytes of the weights that the decoder uses, as stored. */
    uint64_t weight_bytes;
    /** Bytes of the keys and values of one token over all layers, in the model's default KV dtype. */
    uint64_t kv_bytes_per_token;
    /** Hash of the decoder's config and of every byte of its weights: equal for models that can exchange KV. */
    uint8_t fingerprint[32];
    /** NUL-terminated, as config.json names it: "LlamaForCausalLM". */
    char architecture[64];
} cleave_model_info_t;

/**
 * Opens the model in directory `path` (NUL-terminated UTF-8), checks config and headers in full and takes the
 * fingerprint. `*out` is the caller's, to be given back with cleave_model_release. Without tokenizer files everything
 * but the text functions works.
 *
 * The weights stay mapped files. While the model is loaded its files must not be truncated or overwritten in place:
 * truncation makes the process receive SIGBUS, overwriting changes what the model computes. Replace a model by
 * writing new files and renaming them over the old ones, which leaves loaded models as they are.
 *
 * The fingerprint covers every byte of the weights that the decoder uses. The first load of a directory reads them
 * all, on all CPUs. The result is kept in $XDG_CACHE_HOME/cleave, or else $HOME/.cache/cleave, for models of 64 MiB
 * or more; a later load uses it if size, inode, modification and change time of every file are the same and a sample
 * of each tensor is. A cache directory that is missing, read-only or writable by others is not used.
 *
 * Callable from any thread. [BLOCKING] Reads the headers of all files, and the weights if the fingerprint is not known.
 * Errors: NOT_FOUND (directory or file), CORRUPT (malformed or truncated file, missing tensor: the text names file,
 * tensor and reason), UNSUPPORTED (architecture, rope variant, quantisation), IO, OUT_OF_MEMORY.
 */
cleave_status_t cleave_model_load(const char *path, cleave_model_t **out, cleave_error_t *err);

/**
 * Gives the caller's hold on a model back. Caches and detokenizers made from it keep what they need, so this may be
 * called as soon as they exist; memory goes with the last of them. NULL and a model that was released before are
 * ignored.
 */
void cleave_model_release(cleave_model_t *model);

/** Describes a model. Callable from any thread. Errors: INVALID_ARGUMENT, NOT_FOUND (released). */
cleave_status_t cleave_model_info(const cleave_model_t *model, struct cleave_model_info_t *out, cleave_error_t *err);


/* ---- text, for hosts without a tokenizer of their own ----
 * All of these are UNSUPPORTED on a model that came without tokenizer files. */
/**
 * Adds no tokens around the text (BOS, EOS): for text that holds them already, such as a prompt from
 * cleave_chat_prompt.
 */
#define CLEAVE_TOKENIZE_NO_SPECIAL (1u << 0)

/**
 * Treats special tokens that are written out in the text as text, so that what a user typed cannot end a turn or begin
 * another. Added tokens that the tokenizer does not mark as special keep their ids.
 */
#define CLEAVE_TOKENIZE_PLAIN (1u << 1)

/** Ends the prompt after the last message, not where an answer of the assistant begins. */
#define CLEAVE_CHAT_NO_GENERATION_PROMPT (1u << 0)

/**
 * Leaves the last message open, so that generation continues its text: the prompt ends where that text ends. Implies
 * CLEAVE_CHAT_NO_GENERATION_PROMPT.
 */
#define CLEAVE_CHAT_CONTINUE_FINAL_MESSAGE (1u << 1)

/**
 * Turns `len` bytes of UTF-8, at most 8 MiB, into token ids. Special tokens that the model's tokenizer puts around a
 * text are added unless CLEAVE_TOKENIZE_NO_SPECIAL is among `flags`; special tokens written out in the text become
 * their ids unless CLEAVE_TOKENIZE_PLAIN is. `*n` is the number of tokens; (`tokens`, `cap`, `n`) follow the
 * conventions for buffers above.
 *
 * Callable from any thread. [BLOCKING] The first text function called on a model builds its tokenizer, which takes up
 * to seconds for large vocabularies; after that the time grows with the text. Errors: INVALID_ARGUMENT (not UTF-8, too
 * long, buffer too small), NOT_FOUND, UNSUPPORTED, CORRUPT (tokenizer.json).
 */
cleave_status_t cleave_tokenize(const cleave_model_t *model,
                                const char *text,
                                size_t len,
                                uint32_t flags,
                                int32_t *tokens,
                                size_t cap,
                                size_t *n,
                                cleave_error_t *err);

/**
 * Applies the model's chat template to `messages_json`, a JSON array of messages ([{"role": "user", "content": "..."},
 * ...]). The prompt ends where the assistant's answer begins unless `flags` say otherwise. Tokenise it with
 * CLEAVE_TOKENIZE_NO_SPECIAL. (`text`, `cap`, `n`) follow the conventions for buffers above.
 *
 * `tools_json` is a JSON array of tools in the form that OpenAI's API has, `arguments_json` a JSON object of further
 * variables for the template, such as {"enable_thinking": false} or {"documents": [...]}; NULL with length 0 for none.
 * Both mean what they mean to apply_chat_template of Hugging Face's transformers; a template ignores what it does not
 * know.
 *
 * A template is a program that comes with the model. It may take 30 seconds, 5,000,000 steps and 64 MiB of memory and
 * 64 bytes for each byte of the three texts; it reads nothing but these texts and the time, and writes nothing else.
 *
 * Callable from any thread. [BLOCKING] Runs the template on a thread of its own; mostly less than a millisecond.
 * Errors: INVALID_ARGUMENT (not JSON, what the template refuses or takes too much for, buffer too small), NOT_FOUND,
 * UNSUPPORTED (no chat template, one that is no valid program), CORRUPT (tokenizer_config.json), OUT_OF_MEMORY.
 */
cleave_status_t cleave_chat_prompt(const cleave_model_t *model,
                                   const char *messages_json,
                                   size_t messages_len,
                                   const char *tools_json,
                                   size_t tools_len,
                                   const char *arguments_json,
                                   size_t arguments_len,
                                   uint32_t flags,
                                   char *text,
                                   size_t cap,
                                   size_t *n,
                                   cleave_error_t *err);

/**
 * Writes the bytes that `token` stands for by itself, as logprobs report them. They need not be whole characters; a
 * special token gives its written form, an id that the tokenizer does not know nothing. For the text of a sequence use
 * a detokenizer.
 * (`buf`, `cap`, `n`) follow the conventions for buffers above.
 *
 * Callable from any thread. Errors: INVALID_ARGUMENT (no token of the model, buffer too small), NOT_FOUND, UNSUPPORTED.
 */
cleave_status_t cleave_token_bytes(const cleave_model_t *model,
                                   int32_t token,
                                   void *buf,
                                   size_t cap,
                                   size_t *n,
                                   cleave_error_t *err);

/**
 * Makes a detokenizer for one sequence. `*out` is the caller's, to be ended with cleave_detokenizer_destroy; it
 * outlives a release of the model. Callable from any thread. [BLOCKING] As cleave_tokenize, in the first text function
 * of a model. Errors: INVALID_ARGUMENT, NOT_FOUND, UNSUPPORTED, CORRUPT.
 */
cleave_status_t cleave_detokenizer_create(const cleave_model_t *model, cleave_detokenizer_t **out, cleave_error_t *err);

/**
 * Takes the next token of the sequence and gives the text that is complete with it: whole characters only, so often
 * nothing. (`text`, `cap`, `n`) follow the conventions for buffers above; a push that was refused for its buffer, or
 * that asked for the length, is repeated with the same token. 256 bytes are enough for most tokens, not for all.
 *
 * Callable from any thread; one sequence's tokens have to come in order. Errors: INVALID_ARGUMENT (no token of the
 * model, buffer too small), NOT_FOUND.
 */
cleave_status_t cleave_detokenizer_push(cleave_detokenizer_t *d,
                                        int32_t token,
                                        char *text,
                                        size_t cap,
                                        size_t *n,
                                        cleave_error_t *err);

/**
 * Gives what is left at the end of a sequence: an unfinished character as U+FFFD. Afterwards the detokenizer is as
 * new. (`text`, `cap`, `n`) follow the conventions for buffers above; a call that was refused for its buffer, or that
 * asked for the length, is repeated. Callable from any thread. Errors: INVALID_ARGUMENT, NOT_FOUND.
 */
cleave_status_t cleave_detokenizer_flush(cleave_detokenizer_t *d,
                                         char *text,
                                         size_t cap,
                                         size_t *n,
                                         cleave_error_t *err);

/** Ends a detokenizer. NULL and one that was destroyed before are ignored. */
void cleave_detokenizer_destroy(cleave_detokenizer_t *d);


/* ---- cache ---- */
/** The model's own dtype. */
#define CLEAVE_DTYPE_DEFAULT 0

/** 32-bit floats. */
#define CLEAVE_DTYPE_F32 1

/** IEEE half-precision floats. */
#define CLEAVE_DTYPE_F16 2

/** bfloat16. */
#define CLEAVE_DTYPE_BF16 3

/** int8 keys and values, a scale per token and head. */
#define CLEAVE_DTYPE_I8 4

/** Keeps no blocks for later requests with the same beginning. */
#define CLEAVE_CACHE_NO_PREFIX (1u << 0)

/** Imports only KV of its own layout: that of another block size or dtype is INCOMPATIBLE instead of converted. */
#define CLEAVE_CACHE_NO_CONVERT (1u << 1)

/**
 * One copy of the weights on a CUDA device for all processes of this user on this machine (in one network namespace) that
 * set this: the first of them loads the weights, later ones map them, and they stay as long as anyone has
 * them, whoever ends or is killed. For the first cache of a model on a device in this process: further ones use what is
 * there. UNSUPPORTED where devices cannot share memory. On the CPU weights are the mapped files, shared in any case.
 */
#define CLEAVE_CACHE_SHARE_WEIGHTS (1u << 2)

/** How a cache is made. Zero means default in every field. */
typedef struct cleave_cache_config_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** Tokens of a block, at most 256. Default: 16. */
    uint32_t block_tokens;
    /** CLEAVE_DTYPE_*. Default: the model's own. */
    uint32_t dtype;
    /** CLEAVE_CACHE_*. */
    uint32_t flags;
    /** Memory for KV blocks on each device. Default: 1 GiB. */
    uint64_t bytes_per_device;
    /** How long a KV handle lives that nobody renews, in milliseconds. Default: 30000. */
    uint32_t lease_ms;
    /**
     * Signs tickets and images: caches with the same secret can import from each other. All zero: random, so that
     * only this process can import what this cache exports. With one, the cache also lets processes of the same user
     * on this machine that know it import over shared memory (see cleave_cache_listen for other machines).
     */
    uint8_t secret[32];
    /**
     * A peer that says nothing for so long in the middle of a transfer is gone, in milliseconds; on the same machine
     * one that ends or is stopped is noticed within a second in any case. Default: 4000.
     */
    uint32_t peer_timeout_ms;
    /**
     * Number of events about the prefix index that are kept for cleave_cache_events, at most 16777216. Default: 0, none are
     * recorded. A reader falls behind if more events come between two of its calls: a block of a full cache
     * costs two events, so 65536 are enough for half a million tokens with blocks of 16. Each takes 16 bytes, and each block that is in the index or in a kept event takes about 150 bytes and 4
     * for each of its tokens.
     */
    uint32_t events_kept;
    /** 0. */
    uint32_t reserved;
} cleave_cache_config_t;

/**
 * Told of the weights while they are loaded: so many bytes are there, and so many will be. Returns 0, or anything else to
 * end it: the function that it was given to frees everything and returns CLEAVE_ERR_CANCELLED. It must return, and not
 * throw or longjmp.
 */
typedef int32_t (*cleave_progress_fn)(uintptr_t user_data, uint64_t bytes_done, uint64_t bytes_total);

/**
 * Makes a KV cache for `model` on `devices` (`n_devices` ordinals; none: the CPU). `config` may be NULL. `*out` is
 * the caller's, to be ended with cleave_cache_destroy; it keeps the model alive.
 *
 * Callable from any thread. [BLOCKING] Allocates the pool and puts the weights on the device, once per model and
 * device however many caches there are. Errors: INVALID_ARGUMENT, NOT_FOUND (model, device), UNSUPPORTED (dtype,
 * flags, more than one device, a device or shape that there are no kernels for), OUT_OF_MEMORY, DEVICE.
 * cleave_cache_create_with_progress tells how far it is.
 */
cleave_status_t cleave_cache_create(cleave_model_t *model,
                                    const int32_t *devices,
                                    size_t n_devices,
                                    const struct cleave_cache_config_t *config,
                                    cleave_cache_t **out,
                                    cleave_error_t *err);

/**
 * cleave_cache_create that tells `progress` of the loading of the weights, by the calling thread and within the call.
 * `progress` NULL: nobody is told.
 *
 * On a CUDA device it is told before the first byte, after every tensor and every 16 MiB, and once all are there, with the
 * same `bytes_total` each time (as they lie on the device) and `bytes_done` from 0 to `bytes_total`, never less than
 * before. Where there is nothing to load it is told once, with everything done: on the CPU, which uses the mapped files
 * and reads pages as it comes to them, and on a device that another cache has brought the weights to, or is bringing
 * them: then this call waits for that first. While another process loads weights that this one shares
 * (CLEAVE_CACHE_SHARE_WEIGHTS), it is told again and again that nothing is there, and can end the waiting.
 *
 * `progress` may call every function of this API but cleave_cache_create and this one (CLEAVE_ERR_INVALID_ARGUMENT), and
 * must not wait for a thread that is in one of them.
 *
 * Callable from any thread. [BLOCKING] As cleave_cache_create, and for as long as `progress` takes. Errors: those of
 * cleave_cache_create, and CANCELLED (by `progress`).
 */
cleave_status_t cleave_cache_create_with_progress(cleave_model_t *model,
                                                  const int32_t *devices,
                                                  size_t n_devices,
                                                  const struct cleave_cache_config_t *config,
                                                  cleave_progress_fn progress,
                                                  uintptr_t user_data,
                                                  cleave_cache_t **out,
                                                  cleave_error_t *err);

/**
 * Ends a cache and every KV handle in it. Engines that still run over it go on until they are destroyed, and the
 * memory is held until then. Transfers in and out are ended first. NULL and a cache that was destroyed before are
 * ignored. [BLOCKING] Until the threads of those transfers have noticed: some tens of milliseconds.
 */
void cleave_cache_destroy(cleave_cache_t *cache);


/* ---- completion queue ---- */
/**
 * Creates a queue for `capacity` events (4 to 16777216; 0 means 4096). Every accepted request reserves one place for
 * its FINISHED event, so the capacity limits how many requests the queue's engines accept at once (WOULD_BLOCK
 * beyond it). An engine whose tokens find no place pauses until there is one, and loses nothing. `*out` belongs to
 * the caller, who gives it to cleave_queue_destroy.
 *
 * Callable from any thread. Errors: INVALID_ARGUMENT, IO (no file descriptor), OUT_OF_MEMORY.
 */
cleave_status_t cleave_queue_create(uint32_t capacity, cleave_queue_t **out, cleave_error_t *err);

/**
 * Destroys a queue. Callers that wait in cleave_queue_poll get SHUTDOWN, queued and later events are dropped, and
 * its engines accept no more requests. The descriptor is closed when the last engine of the queue is destroyed. To
 * receive every FINISHED event, destroy the engines first. NULL and a queue that was destroyed before are ignored.
 */
void cleave_queue_destroy(cleave_queue_t *queue);

/**
 * Returns the queue's eventfd, which is readable while events are queued: for poll, epoll and Go's netpoller. It
 * belongs to the library. Watch it, but do not read, write or close it, and remove it from the loop before
 * cleave_queue_destroy. Level-triggered watching is simplest; with edge-triggered watching, call cleave_queue_poll
 * until it returns no event.
 *
 * Callable from any thread. Returns a negative status if `queue` is not a queue.
 */
int cleave_queue_fd(const cleave_queue_t *queue);


/* ---- engine ---- */
/** Prefills and decodes. */
#define CLEAVE_ROLE_MIXED 0

/** Requests end with FINISHED (PREFILLED) and a KV handle after their first token. */
#define CLEAVE_ROLE_PREFILL 1

/** Meant for requests that continue a KV handle. Computes short prompts too. */
#define CLEAVE_ROLE_DECODE 2

/** Configuration of an engine. Zero means the default in every field. */
typedef struct cleave_engine_config_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** CLEAVE_ROLE_*. */
    uint32_t role;
    /** Sequences that run at once. Default: 64. */
    uint32_t max_sequences;
    /**
     * Most tokens in a step, which bounds the duration of a step. Default: 512. On a CUDA device the default is the
     * number of prompt tokens that saturates the device. It is measured while the engine is idle, once for all
     * engines of the process with that model, device and block layout; until then it is 512. cleave_metrics_t shows
     * the choice.
     */
    uint32_t max_batch_tokens;
    /**
     * Threads that compute, including the step thread. Default: one for each CPU in cpu_mask or, without a mask, for
     * each CPU that the process may run on.
     */
    uint32_t threads;
    /** No flags exist yet: 0. */
    uint32_t flags;
    /**
     * Accepted requests that may wait in addition to those that run. Beyond that a request is WOULD_BLOCK. Default:
     * 1024.
     */
    uint32_t max_waiting;
    /**
     * Limit for prompts while the role is decode: a prompt without a KV handle that has more tokens to compute than
     * this is refused with PREFILL_ELSEWHERE. Cached tokens do not count. Default: no limit.
     */
    uint32_t local_prefill_tokens;
    /** CPUs that the engine's threads may run on: CPU i is bit i % 64 of cpu_mask[i / 64]. All zero: any CPU. */
    uint64_t cpu_mask[16];
    /**
     * Share of a CUDA device's multiprocessors (SMs) for the engine's kernels, in percent. The driver rounds it to
     * groups of SMs (8 on compute capability 9.0); cleave_metrics_t shows the number. Shares of the engines on a
     * device that sum to 100 do not overlap; engines with equal shares have the same SMs. 100: all. Default: all, unless
     * a prefill and a decode engine are on the device and the host gave no engine there a share. Then prefill gets 70
     * and decode 30, until one of them is destroyed; a change of role keeps the share. Other values than the default
     * and 100 are UNSUPPORTED on the CPU and with drivers for CUDA before 12.5.
     */
    uint32_t sm_percent;
    /** Must be 0. */
    uint32_t reserved;
} cleave_engine_config_t;

/**
 * Starts an engine over `cache` that reports to `queue`. `config` may be NULL. Engines on one cache share weights
 * and blocks, and hand KV over by moving a block table. `*out` belongs to the caller, who gives it to
 * cleave_engine_destroy. The engine keeps cache and queue alive in memory, even when their own handles are
 * destroyed.
 *
 * Callable from any thread. [BLOCKING] Starts threads and allocates memory for the largest step: milliseconds.
 * Errors: INVALID_ARGUMENT, NOT_FOUND, UNSUPPORTED (flags, sm_percent), OUT_OF_MEMORY, WOULD_BLOCK (the queue has no
 * place to reserve for ENGINE_FAILED), SHUTDOWN (cache or queue is being destroyed).
 */
cleave_status_t cleave_engine_create(cleave_cache_t *cache,
                                     cleave_queue_t *queue,
                                     const struct cleave_engine_config_t *config,
                                     cleave_engine_t **out,
                                     cleave_error_t *err);

/**
 * Changes the role of an engine from the next step on. Running requests continue; weights, cache and memory stay as
 * they are. cleave_engine_load says when the role is in effect.
 *
 * Callable from any thread. Errors: INVALID_ARGUMENT, NOT_FOUND, SHUTDOWN.
 */
cleave_status_t cleave_engine_set_role(cleave_engine_t *engine, uint32_t role, cleave_error_t *err);

/**
 * Changes the share of a CUDA device's multiprocessors for an engine's kernels (sm_percent of its config; 100: all, 0:
 * the default) from the next step on. Running requests continue; weights, cache and memory stay as they are. After an error
 * the engine keeps its share. To move a share between engines, shrink one before growing the other.
 *
 * Callable from any thread. [BLOCKING] Asks the driver for the multiprocessors; does not wait for a step. Errors:
 * INVALID_ARGUMENT (over 100), UNSUPPORTED (the CPU, or a driver or device that cannot be partitioned),
 * OUT_OF_MEMORY, DEVICE, NOT_FOUND, SHUTDOWN.
 */
cleave_status_t cleave_engine_set_sm_percent(cleave_engine_t *engine,
                                             uint32_t sm_percent,
                                             cleave_error_t *err);

/**
 * Refuses new requests with SHUTDOWN from now on, and waits at most `timeout_ms` (UINT32_MAX: for ever) until all
 * accepted requests have ended. After TIMEOUT the engine is still draining; call again to keep waiting. The host
 * must keep polling meanwhile, because an engine whose queue is full stands still.
 *
 * Callable from any thread. [BLOCKING] Errors: TIMEOUT, INVALID_ARGUMENT, NOT_FOUND, SHUTDOWN (destroyed meanwhile).
 */
cleave_status_t cleave_engine_drain(cleave_engine_t *engine, uint32_t timeout_ms, cleave_error_t *err);

/**
 * Destroys an engine. Every request that is still open gets its FINISHED event (ERROR with status SHUTDOWN), then
 * the threads end. When this returns, the engine's last event is in the queue. NULL and an engine that was destroyed
 * before are ignored. [BLOCKING] Waits for the running step.
 */
void cleave_engine_destroy(cleave_engine_t *engine);


/* ---- requests ---- */
/** FINISHED carries a KV handle. Implied on a prefill engine. */
#define CLEAVE_REQUEST_KEEP_KV (1u << 0)

/** TOKEN events carry the log-probability of their token, and `logprobs` TOP_LOGPROB events follow each of them. */
#define CLEAVE_REQUEST_LOGPROBS (1u << 1)

/** Reports the token that came with the handle once more, as a TOKEN event. */
#define CLEAVE_REQUEST_EMIT_PENDING (1u << 2)

/** Does not stop at the model's EOS ids. */
#define CLEAVE_REQUEST_IGNORE_EOS (1u << 3)

/** With a handle: takes every sampling and stop field from this request, and none from the handle. */
#define CLEAVE_REQUEST_OVERRIDE_SAMPLING (1u << 4)

/**
 * On a prefill engine: KV_STREAM_STARTED carries the handle as soon as the prompt begins to be computed. Its ticket
 * can be sent at once, and the importer pulls finished KV while the rest is computed. FINISHED carries the same
 * handle. No effect on engines of another role.
 */
#define CLEAVE_REQUEST_STREAM_KV (1u << 5)

/**
 * If the handle's KV does not arrive, for whatever reason, computes it here from the ticket's tokens instead of
 * ending with an error. The tokens are the same, later. If the handle was still streaming, its first token (index 0)
 * is then sampled and reported here, with or without EMIT_PENDING.
 */
#define CLEAVE_REQUEST_RECOMPUTE (1u << 6)

/**
 * One request. Zero means the default in every field: the value named here for a fresh request, and the value of the
 * handle for a request that continues one.
 */
typedef struct cleave_request_desc_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** CLEAVE_REQUEST_*. */
    uint32_t flags;
    /** Repeated in every event of the request. */
    uint64_t user_tag;
    /** The KV handle to continue from, which an accepted request consumes; 0 starts a fresh sequence. */
    cleave_kv_t kv;
    /** Prompt: index of its first token in `tokens`. With a handle: the tokens that follow the handle. */
    uint32_t prompt_begin;
    /** Prompt: number of tokens. May be 0 with a handle. */
    uint32_t prompt_len;
    /** Stop ids: index of the first one in `tokens`. They end the generation, in addition to the model's EOS ids. */
    uint32_t stop_begin;
    /** Stop ids: how many. */
    uint32_t stop_len;
    /** Tokens to generate after the last prompt token, counted over all engines. Default: until the context is full. */
    uint32_t max_new_tokens;
    /** Samples from the k likeliest tokens. Default: all. */
    uint32_t top_k;
    /** Requests with a higher priority run first. Default: 0. */
    uint32_t priority;
    /** Alternatives to report for each token, 0 to 128. More than 0 implies CLEAVE_REQUEST_LOGPROBS. */
    int32_t logprobs;
    /** Divides the logits. Default: 0, greedy. */
    float temperature;
    /** Samples from the likeliest tokens whose probabilities sum to this, in (0, 1]. Default: 1. */
    float top_p;
    /** Drops tokens less likely than this share of the likeliest, in [0, 1]. Default: 0. */
    float min_p;
    /** Penalty on tokens of the prompt and the generation. Default: 1, none. */
    float repetition_penalty;
    /** Penalty on generated tokens, once each. Default: 0, none. */
    float presence_penalty;
    /** Penalty on generated tokens, for each occurrence. Default: 0, none. */
    float frequency_penalty;
    /** Equal seeds give equal samples, whatever else runs. Default: a random seed. */
    uint64_t seed;
    /** Microseconds after submission at which the request ends with TIMEOUT. Default: never. */
    uint64_t deadline_us;
    /** Requests share cached prefixes only with requests of the same salt. */
    uint64_t cache_salt;
    /** Stop ids and stop sequences do not end the generation before this many tokens. Default: 0. */
    uint32_t min_new_tokens;
    /** Stop sequences: index in `tokens`. Each sequence is its length followed by its ids: 2, a, b, 3, c, d, e. */
    uint32_t stop_sequences_begin;
    /** Stop sequences: how many numbers, lengths included. */
    uint32_t stop_sequences_len;
    /** Logit bias: index in `tokens`. Each entry is a token id and the bits of the float that is added to its logit. */
    uint32_t logit_bias_begin;
    /** Logit bias: how many numbers, two for each entry. */
    uint32_t logit_bias_len;
    /** Must be 0. */
    uint32_t reserved;
} cleave_request_desc_t;

/**
 * Submits `n_requests` requests. The token ids of prompts, stops and biases are ranges of one array, `tokens`, with
 * `n_tokens` elements. Everything is copied before the call returns. The struct_size of the first request is the
 * distance between requests, and must be equal in all.
 *
 * Requests are accepted in order up to the first refused one. `*n_accepted` is the number of accepted requests,
 * `ids` (with room for n_requests) receives their ids, and the status is CLEAVE_OK or the reason of the first
 * refusal. Every accepted request ends with exactly one FINISHED event, its last. Events may be queued before this
 * call returns, so tell requests apart by user_tag.
 *
 * Callable from any thread; does not wait for a step. Errors: WOULD_BLOCK (too many requests wait, or the queue is
 * full: try again after a FINISHED event), INVALID_ARGUMENT (the text names request and field), NOT_FOUND and
 * EXPIRED (engine, KV handle), CORRUPT (a KV handle that this model cannot have produced), INCOMPATIBLE,
 * UNSUPPORTED (flags), OUT_OF_MEMORY (larger than the whole cache), SHUTDOWN (draining or destroyed), PREFILL_ELSEWHERE (see local_prefill_tokens).
 */
cleave_status_t cleave_engine_submit(cleave_engine_t *engine,
                                     const struct cleave_request_desc_t *requests,
                                     size_t n_requests,
                                     const int32_t *tokens,
                                     size_t n_tokens,
                                     cleave_request_t *ids,
                                     size_t *n_accepted,
                                     cleave_error_t *err);

/**
 * Asks an engine to end a request with FINISHED (ERROR, CANCELLED) at the next step boundary. The call does not wait
 * and may be repeated. For a request that has ended meanwhile it returns CLEAVE_OK or NOT_FOUND, and no second event
 * follows.
 *
 * Callable from any thread. Errors: NOT_FOUND (engine, id), INVALID_ARGUMENT.
 */
cleave_status_t cleave_engine_cancel(cleave_engine_t *engine, cleave_request_t id, cleave_error_t *err);

/**
 * Asks an engine to stop a running request at the next step boundary and to hand it over. Its FINISHED event
 * (EXPORTED) carries the KV handle, from which any engine continues with the next token. The call does not wait. A
 * request that ends before the step boundary ends as it would have.
 *
 * Callable from any thread. Errors: NOT_FOUND (engine, id), INVALID_ARGUMENT.
 */
cleave_status_t cleave_engine_export(cleave_engine_t *engine, cleave_request_t id, cleave_error_t *err);


/* ---- events ---- */
/** A token was generated. */
#define CLEAVE_EVENT_TOKEN 1

/** A request has ended. Every accepted request has exactly one, and it is its last event. */
#define CLEAVE_EVENT_FINISHED 2

/** An import has finished; `status` says whether it succeeded. */
#define CLEAVE_EVENT_KV_READY 3

/**
 * An engine has failed and accepts no more requests. The FINISHED events of its requests follow; their ids identify
 * the engine.
 */
#define CLEAVE_EVENT_ENGINE_FAILED 4

/**
 * One of the likeliest tokens at the position of the TOKEN event before it, best first; see CLEAVE_REQUEST_LOGPROBS.
 * These events directly follow their TOKEN event, although a cleave_queue_poll with little room may end between
 * them.
 */
#define CLEAVE_EVENT_TOP_LOGPROB 5

/**
 * A prompt has begun to be computed, and `kv` is its streaming handle; see CLEAVE_REQUEST_STREAM_KV. The handle
 * belongs to the request: FINISHED carries it when the request ends with its KV, otherwise it fails.
 */
#define CLEAVE_EVENT_KV_STREAM_STARTED 6

/** Flag of FINISHED: the handle's KV did not arrive and was computed here; see CLEAVE_REQUEST_RECOMPUTE. */
#define CLEAVE_EVENT_RECOMPUTED (1u << 0)

/** A stop id, a stop sequence or one of the model's EOS ids was generated. */
#define CLEAVE_FINISH_STOP 1

/** max_new_tokens were generated, or the model's context is full. */
#define CLEAVE_FINISH_LENGTH 2

/** A prefill engine has done its part: `kv` is the handle to continue from. */
#define CLEAVE_FINISH_PREFILLED 3

/** cleave_engine_export ended the request: `kv` is the handle to continue from. */
#define CLEAVE_FINISH_EXPORTED 4

/** The request failed; `status` says why: CANCELLED, TIMEOUT (deadline), SHUTDOWN, ... */
#define CLEAVE_FINISH_ERROR 5

/** An event: 64 bytes. Fields that do not apply to a type are zero, except `token`, which is -1. */
typedef struct cleave_event_t {
    /** CLEAVE_EVENT_*. Skip types that you do not know. */
    uint32_t type;
    /** FINISHED: CLEAVE_FINISH_*. */
    uint32_t finish_reason;
    /** CLEAVE_OK, or the reason of a failure. */
    cleave_status_t status;
    /** TOKEN, TOP_LOGPROB: the token. */
    int32_t token;
    /** The host's tag, as given with the request or the import. */
    uint64_t user_tag;
    /** The request; 0 in events that belong to none. */
    cleave_request_t request;
    /**
     * FINISHED: the handle that the request leaves, if any, which the host submits or releases. KV_READY: the
     * imported handle. KV_STREAM_STARTED: the streaming handle.
     */
    cleave_kv_t kv;
    /** CLOCK_MONOTONIC when the event was queued. */
    uint64_t timestamp_ns;
    /** TOKEN, TOP_LOGPROB: number of the token after the prompt, from 0. FINISHED: how many tokens there were. */
    uint32_t index;
    /** TOKEN with CLEAVE_REQUEST_LOGPROBS, TOP_LOGPROB: natural logarithm of the probability. */
    float logprob;
    /** FINISHED: prompt tokens that were found in the prefix cache of the engine that computed the prompt. */
    uint32_t cached_tokens;
    /** CLEAVE_EVENT_RECOMPUTED. */
    uint32_t flags;
} cleave_event_t;

/**
 * Takes up to `capacity` events from the queue, in order, and waits at most `timeout_ms` for the first one (0: not
 * at all, UINT32_MAX: for ever). `*n` is the number of events taken. It is less than `capacity` only if no more were
 * queued. A timeout without events is CLEAVE_OK with `*n` 0.
 *
 * `event_size` is sizeof(cleave_event_t) as the program was compiled, and the distance between the elements of
 * `events`. With a larger value the rest of each element is zeroed; with a smaller one (at least 48, a multiple of
 * 8) each event is cut.
 *
 * Callable from any thread. When several threads wait on one queue, each event goes to one of them. [BLOCKING] up to
 * the timeout. Errors: INVALID_ARGUMENT, NOT_FOUND, SHUTDOWN (the queue was destroyed meanwhile).
 */
cleave_status_t cleave_queue_poll(cleave_queue_t *queue,
                                  struct cleave_event_t *events,
                                  size_t event_size,
                                  size_t capacity,
                                  uint32_t timeout_ms,
                                  size_t *n);


/* ---- KV handles ---- */
/** The handle is of an import that has not landed yet. */
#define CLEAVE_KV_IMPORTING (1u << 0)

/** The handle is of a prompt that is still being computed; n_computed says how far. */
#define CLEAVE_KV_STREAMING (1u << 1)

/** Most bytes that cleave_kv_set_host_data attaches to a sequence. */
#define CLEAVE_KV_HOST_DATA_MAX 4096

/** Description of a KV handle. Set struct_size before the call. */
typedef struct cleave_kv_info_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** Tokens of the sequence, a pending one (sampled, not yet run through the model) among them. */
    uint32_t n_tokens;
    /** Blocks that it holds. */
    uint32_t n_blocks;
    /** CLEAVE_KV_*. */
    uint32_t flags;
    /** Size of the ticket in bytes. */
    uint64_t ticket_bytes;
    /** Size of the image in bytes. */
    uint64_t image_bytes;
    /** Milliseconds until it expires unless it is renewed. */
    uint64_t lease_left_ms;
    /** Fingerprint of the model. */
    uint8_t fingerprint[32];
    /** Tokens whose keys and values are in the blocks. */
    uint32_t n_computed;
    /** 0. */
    uint32_t reserved;
} cleave_kv_info_t;

/** Describes a handle. Callable from any thread. Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT. */
cleave_status_t cleave_kv_info(cleave_cache_t *cache,
                               cleave_kv_t kv,
                               struct cleave_kv_info_t *out,
                               cleave_error_t *err);

/**
 * Writes the token ids of the handle's sequence: prompts and generated tokens in order, the pending one (sampled, not
 * yet run through the model) last. For a handle whose prompt is still being computed these are the prompt's tokens, for
 * an import those that its ticket names, also after the import failed. (`tokens`, `cap`, `n`) follow the conventions for
 * buffers above. Callable from any thread. Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT (buffer too small).
 */
cleave_status_t cleave_kv_tokens(cleave_cache_t *cache,
                                 cleave_kv_t kv,
                                 int32_t *tokens,
                                 size_t cap,
                                 size_t *n,
                                 cleave_error_t *err);

/**
 * Attaches up to CLEAVE_KV_HOST_DATA_MAX bytes of the host's own (`len` at `data`, copied; 0 removes them) to the
 * handle's sequence, in place of what was attached before: a trace id, say, or the state of a detokenizer. The library
 * does not interpret them. Tickets and images written from now on carry them, signed with the cache's secret but
 * readable; the importer reads them with cleave_kv_host_data at once. They stay with the sequence when a request
 * continues it and hands it over again, and in duplicates, until they are replaced.
 *
 * An image that was read does not change, so after cleave_kv_read_image or cleave_kv_save this is INVALID_ARGUMENT:
 * attach to a duplicate of the handle instead. Callable from any thread.
 * Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT (too long, image read); for a failed import the reason why it failed.
 */
cleave_status_t cleave_kv_set_host_data(cleave_cache_t *cache,
                                        cleave_kv_t kv,
                                        const void *data,
                                        size_t len,
                                        cleave_error_t *err);

/**
 * Reads the bytes that cleave_kv_set_host_data attached to the handle's sequence, here or where it came from; `*len` is
 * 0 if there are none. (`buf`, `cap`, `len`) follow the conventions for buffers above. Callable from any thread.
 * Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT (buffer too small).
 */
cleave_status_t cleave_kv_host_data(cleave_cache_t *cache,
                                    cleave_kv_t kv,
                                    void *buf,
                                    size_t cap,
                                    size_t *len,
                                    cleave_error_t *err);

/**
 * Writes the handle's ticket: some hundred signed bytes and four for each token, with which a cache that has the same
 * secret pulls the blocks itself, in this process, on this machine (shared memory) or from elsewhere (TCP, after
 * cleave_cache_listen). The handle lives on until that has happened, it is released or its lease ends; a transfer that
 * begins renews the lease, and so does every sign of life from the importer. The tokens are readable in it: keep it
 * private. A handle of a prompt that is still being computed (KV_STREAM_STARTED) has a ticket too. (`buf`, `cap`, `len`)
 * follow the conventions for buffers above. Callable from any thread.
 * Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT (buffer too small), UNSUPPORTED.
 */
cleave_status_t cleave_kv_ticket(cleave_cache_t *cache,
                                 cleave_kv_t kv,
                                 void *buf,
                                 size_t cap,
                                 size_t *len,
                                 cleave_error_t *err);

/**
 * Reads a piece of the handle's image: everything that another cache needs, the KV itself included, for a wire of the
 * host's own or a file. The image is image_bytes of cleave_kv_info long and does not change while the handle lives.
 * Unlike with other buffers any `cap` will do: `*len` is how much was written, 0 at or beyond the end.
 *
 * Callable from any thread. [BLOCKING] Copies from the device.
 * Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT, IO, DEVICE.
 */
cleave_status_t cleave_kv_read_image(cleave_cache_t *cache,
                                     cleave_kv_t kv,
                                     uint64_t offset,
                                     void *buf,
                                     size_t cap,
                                     size_t *len,
                                     cleave_error_t *err);

/**
 * Takes in a ticket or an image (`len` bytes at `data`, copied during the call). `*kv` is the host's to submit, at once
 * if it likes: the request waits for the blocks. Once they have landed, or not, KV_READY with `user_tag` and the status
 * goes to `queue`, which may be NULL for no event.
 *
 * The tokens of the exporter's handle end with it: once everything is here that handle is consumed, and until then it
 * is not. Where there are no free blocks the import waits for some: as long as a request waits for it, else for
 * peer_timeout_ms (OUT_OF_MEMORY). If the transfer fails, nothing of it is used, and the exporter's handle stays, if
 * its side does; a request with CLEAVE_REQUEST_RECOMPUTE goes on all the same. Blocks that this cache has already are
 * not moved; blocks of another size or dtype are converted.
 *
 * Callable from any thread. An image is checked and copied before this returns.
 * Errors: CORRUPT, INCOMPATIBLE, PERMISSION (other secret), EXPIRED, PEER, OUT_OF_MEMORY (no free blocks),
 * WOULD_BLOCK (no place in the queue, or too many imports are waiting already, in all or for the same exporting cache:
 * try again when some have ended), INVALID_ARGUMENT, NOT_FOUND.
 */
cleave_status_t cleave_kv_import(cleave_cache_t *cache,
                                 cleave_queue_t *queue,
                                 const void *data,
                                 size_t len,
                                 uint64_t user_tag,
                                 cleave_kv_t *kv,
                                 cleave_error_t *err);

/**
 * Writes the handle's image to the file `path` (NUL-terminated UTF-8), whole or not at all: what was there is replaced
 * in one step. The handle lives on. Callable from any thread. [BLOCKING]
 * Errors: NOT_FOUND (handle, directory), EXPIRED, IO, INVALID_ARGUMENT (`path` exists and is no regular file).
 */
cleave_status_t cleave_kv_save(cleave_cache_t *cache, cleave_kv_t kv, const char *path, cleave_error_t *err);

/**
 * Reads an image from a file. `*kv` is the host's to submit or to release. Callable from any thread. [BLOCKING]
 * Errors: NOT_FOUND (file), CORRUPT, INCOMPATIBLE, PERMISSION, OUT_OF_MEMORY, IO, INVALID_ARGUMENT (no regular file:
 * a FIFO or a device is refused without waiting for it).
 */
cleave_status_t cleave_kv_load(cleave_cache_t *cache, const char *path, cleave_kv_t *kv, cleave_error_t *err);

/**
 * A second handle to the same snapshot, which shares its blocks: both can be continued, each its own way. `*out` is
 * the host's to submit or to release. Callable from any thread. Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT.
 */
cleave_status_t cleave_kv_duplicate(cleave_cache_t *cache, cleave_kv_t kv, cleave_kv_t *out, cleave_error_t *err);

/**
 * Makes the handle live `lease_ms` from now on (more than 0). Callable from any thread.
 * Errors: NOT_FOUND, EXPIRED (too late), INVALID_ARGUMENT.
 */
cleave_status_t cleave_kv_renew(cleave_cache_t *cache, cleave_kv_t kv, uint32_t lease_ms, cleave_error_t *err);

/**
 * Gives a handle back; its blocks are free once no transfer touches them. Idempotent: a handle that was released,
 * consumed or has expired is CLEAVE_OK. Callable from any thread. Errors: NOT_FOUND (the cache, or an id that this
 * cache never gave out), INVALID_ARGUMENT.
 */
cleave_status_t cleave_kv_release(cleave_cache_t *cache, cleave_kv_t kv, cleave_error_t *err);


/* ---- peers ----
 * Hosts check and warm a pair of caches before the first import between them. */
/** The first of these transports that works; NIXL only when it is required. */
#define CLEAVE_TRANSPORT_ANY 0

/** Both caches are in this process: one copy. */
#define CLEAVE_TRANSPORT_PROCESS 1

/** Both caches are on this machine: the exporter's pool is mapped once, then one copy. */
#define CLEAVE_TRANSPORT_SHARED_MEMORY 2

/** Several TCP connections, from pool to pool. */
#define CLEAVE_TRANSPORT_TCP 3

/**
 * NVIDIA's NIXL, loaded at run time from CLEAVE_NIXL_LIBRARY (path of libnixl_capi.so), the loader's path or
 * CLEAVE_NIXL_DIR (an unpacked wheel). Both sides need it; without it pairing is refused.
 */
#define CLEAVE_TRANSPORT_NIXL 4

/**
 * Both caches are on this machine and the exporter's pool is in the memory of a CUDA device: the pool is mapped
 * once, then one copy on the device, between devices or to host memory. The exporter's device must be visible to
 * this process.
 */
#define CLEAVE_TRANSPORT_CUDA 5

/** Encrypts every connection, over loopback too. */
#define CLEAVE_LISTEN_ENCRYPT (1u << 0)

/** Encrypts no connection, for trusted networks. Both sides still prove that they know the secret. */
#define CLEAVE_LISTEN_PLAINTEXT (1u << 1)

/** The two caches can exchange KV. */
#define CLEAVE_PAIR_NONE 0

/** The weights or the configs differ. */
#define CLEAVE_PAIR_WEIGHTS 1

/** The tokenizers differ. */
#define CLEAVE_PAIR_TOKENIZER 2

/** The KV dtypes differ, and this cache does not convert. */
#define CLEAVE_PAIR_DTYPE 3

/** The block sizes differ, and this cache does not convert. */
#define CLEAVE_PAIR_BLOCK_SIZE 4

/** The layouts differ in a way that cannot be converted. */
#define CLEAVE_PAIR_LAYOUT 5

/** The two sides have no common version of format or protocol. */
#define CLEAVE_PAIR_VERSION 6

/** The secrets differ. */
#define CLEAVE_PAIR_SECRET 7

/** One side lacks the required transport, or no transport works. */
#define CLEAVE_PAIR_TRANSPORT 8

/** Nobody answers at the address, or the peer is gone. */
#define CLEAVE_PAIR_UNREACHABLE 9

/** Blocks did not arrive as they were sent. */
#define CLEAVE_PAIR_SELF_TEST 10

/** The address is damaged, or is no address. */
#define CLEAVE_PAIR_ADDRESS 11

/** One side has no free block for the self-test, or is being destroyed. */
#define CLEAVE_PAIR_RESOURCES 12

/** Result of cleave_cache_pair. Set struct_size before the call. */
typedef struct cleave_pair_report_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** CLEAVE_OK, or why the pair cannot exchange KV. cleave_cache_pair returns the same. */
    cleave_status_t status;
    /** CLEAVE_TRANSPORT_*: the transport that imports will use. */
    uint32_t transport;
    /** CLEAVE_PAIR_*. */
    uint32_t reason;
    /** Speed of the self-test from the peer to this cache. */
    uint64_t bytes_per_second;
    /** Round trip of a message to the peer and back. */
    uint64_t rtt_ns;
    /** The transport and its address, or the expected and the found value. NUL-terminated. */
    char detail[160];
} cleave_pair_report_t;

/**
 * Lets caches on other machines import from this one: listens for TCP connections at `address` ("host:port", IPv6 in
 * brackets, port 0 for a free port). `advertise` ("host:port") is the address at which peers reach it, and is
 * written into tickets and addresses from now on; NULL advertises `address` itself, or the addresses of all
 * interfaces if it is 0.0.0.0 or [::]. `flags` is a set of CLEAVE_LISTEN_*; 0 encrypts (Noise, with the secret as
 * pre-shared key) unless the address is a loopback address. `*port` receives the port and may be NULL. Peers need
 * the cache's secret in any case. The cache listens until cleave_cache_destroy; for several addresses, call several
 * times.
 *
 * Callable from any thread. [BLOCKING] Looks up `address` if it is a host name. Errors: INVALID_ARGUMENT (address,
 * or a cache without a secret), PERMISSION (a port below 1024), IO (the port is taken), NOT_FOUND.
 */
cleave_status_t cleave_cache_listen(cleave_cache_t *cache,
                                    const char *address,
                                    const char *advertise,
                                    uint32_t flags,
                                    uint16_t *port,
                                    cleave_error_t *err);

/**
 * Writes the cache's address for cleave_cache_pair of a peer: where the cache is found and what it holds, signed
 * with its secret, a few hundred bytes. Hosts exchange it in their own way. It changes with cleave_cache_listen.
 * (`buf`, `cap`, `len`) follow the conventions for buffers above.
 *
 * Callable from any thread. Errors: NOT_FOUND, INVALID_ARGUMENT (buffer too small).
 */
cleave_status_t cleave_cache_address(cleave_cache_t *cache, void *buf, size_t cap, size_t *len, cleave_error_t *err);

/**
 * Checks, before there is any traffic, whether this cache can import from the cache at `address`: equal secret,
 * weights and tokenizer, a layout that is equal or can be converted, and a transport that reaches the peer
 * (`required_transport`, or any if it is CLEAVE_TRANSPORT_ANY). Then it moves blocks with a known pattern, compares
 * them and measures. From now on imports from that cache use the transport found, and no other. The costs of a new
 * pair are paid here: connections, the mapping of the peer's pool and, on one machine, the page faults of both
 * pools, which are backed by memory from then on.
 *
 * Fills `*out` also when the pair is refused, and returns the status in it. An import does not need this call; it
 * finds its own transport.
 *
 * Callable from any thread. [BLOCKING] Waits for the peer's answers, at most peer_timeout_ms each. Errors:
 * INCOMPATIBLE (weights, dtype, block size, version), PERMISSION (other secret), UNSUPPORTED (transport missing),
 * PEER (nobody there), CORRUPT (address, self-test), OUT_OF_MEMORY, SHUTDOWN, INVALID_ARGUMENT, NOT_FOUND.
 */
cleave_status_t cleave_cache_pair(cleave_cache_t *cache,
                                  const void *address,
                                  size_t len,
                                  uint32_t required_transport,
                                  struct cleave_pair_report_t *out,
                                  cleave_error_t *err);


/* ---- cache events: which blocks a prefix hit can be expected on, for routers ----
 * A cache whose config has `events_kept` records what enters and leaves its prefix index. A reader pulls the events by number
 * and so knows at any time which full blocks a request may find. Replaying all events from an empty set, or those after a
 * snapshot on its blocks, gives exactly the blocks of the index. Readers do not disturb each other; each keeps the number
 * it wants next. docs/kv-events.md describes the hashes, the memory that a log takes, and how to publish events. */
/** A block entered the prefix index: a request that begins with the same tokens may find it from now on. */
#define CLEAVE_CACHE_EVENT_STORED 1

/** A block left the prefix index, so that its memory could be used for others. */
#define CLEAVE_CACHE_EVENT_REMOVED 2

/** All blocks left the prefix index. */
#define CLEAVE_CACHE_EVENT_CLEARED 3

/** The cache's blocks are in host memory: "CPU" in vLLM's events. */
#define CLEAVE_MEDIUM_CPU 1

/** The cache's blocks are in the memory of a device: "GPU" in vLLM's events. */
#define CLEAVE_MEDIUM_GPU 2

/** A change of a cache's prefix index: 64 bytes. Fields that do not apply to a type are zero. */
typedef struct cleave_cache_event_t {
    /** Number of the event. The first event of a cache has number 1. In a snapshot: the number to continue from. */
    uint64_t sequence;
    /** CLEAVE_CACHE_EVENT_*. Skip types that you do not know. */
    uint32_t type;
    /** CLEAVE_MEDIUM_*: where the block is. */
    uint32_t medium;
    /**
     * STORED, REMOVED: the block, as the first 8 bytes of its BLAKE3 hash, read as a big-endian number. The hash covers the
     * salt, the block size and all tokens of the sequence up to the end of the block, but not the model.
     */
    uint64_t block_hash;
    /** STORED, REMOVED: the block before it in its sequence; 0 for the first block (`position` 0). */
    uint64_t parent_hash;
    /**
     * STORED, REMOVED: cache_salt of the requests that share the block; 0 for none. Requests with another salt, or
     * without one, never find it.
     */
    uint64_t cache_salt;
    /** STORED, REMOVED: number of the block in its sequence, from 0. */
    uint32_t position;
    /** STORED, REMOVED: cache group of the block. Always 0: all layers of a cache are in one group. */
    uint32_t group;
    /** STORED: index of the block's first token in `tokens`. */
    uint32_t tokens_begin;
    /** STORED: number of its tokens, which is the block size of the cache. */
    uint32_t n_tokens;
    /** 0. */
    uint64_t reserved;
} cleave_cache_event_t;

/** Result of cleave_cache_events and cleave_cache_event_snapshot. Set struct_size before the call. */
typedef struct cleave_cache_event_range_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** 0. */
    uint32_t reserved;
    /** Number of events written. */
    uint64_t n_events;
    /** Number of tokens written. */
    uint64_t n_tokens;
    /** Number of the event to ask for next. */
    uint64_t next;
    /** Number of the oldest event that the log still holds. */
    uint64_t oldest;
    /** Number that the cache's next event will get. Equal to `next` if everything was read. */
    uint64_t end;
} cleave_cache_event_range_t;

/**
 * Reads the events of a cache from number `next` on: up to `capacity` of them to `events`, at most 1024 in one call, and the
 * tokens of stored blocks one after the other to `tokens`, which has room for `tokens_cap`. It ends early when the
 * tokens of the next block do not fit. Waits at most `timeout_ms` for the first event (0: not at all, UINT32_MAX: for ever);
 * a timeout without events is CLEAVE_OK with n_events 0. `event_size` is sizeof(cleave_cache_event_t), as for
 * cleave_queue_poll: at least 64, a multiple of 8.
 *
 * EXPIRED means that the reader fell behind: event `next` is no longer held, `out->oldest` is the oldest that is, and
 * nothing was read. Take a snapshot and continue from it.
 *
 * Callable from any thread. [BLOCKING] up to the timeout. Neither waits for a step nor delays one. Errors: EXPIRED (gap;
 * `*out` is filled in), INVALID_ARGUMENT (no room for the tokens of one block, `next` is in the future), UNSUPPORTED (the
 * cache was created with events_kept 0), NOT_FOUND, SHUTDOWN (the cache was destroyed meanwhile).
 */
cleave_status_t cleave_cache_events(cleave_cache_t *cache,
                                    uint64_t next,
                                    struct cleave_cache_event_t *events,
                                    size_t event_size,
                                    size_t capacity,
                                    int32_t *tokens,
                                    size_t tokens_cap,
                                    uint32_t timeout_ms,
                                    struct cleave_cache_event_range_t *out,
                                    cleave_error_t *err);

/**
 * Writes the blocks that are in the prefix index now as STORED events, each after the one before it in its sequence if that is
 * in the index too. `out->next` is the number of the event to continue from: what the snapshot shows and the events
 * from there on are exactly what happened.
 *
 * The buffers are those of cleave_cache_events. Room for blocks_total events (cleave_engine_load) and block_tokens tokens for
 * each always suffices. If there is not enough, nothing is written but `*out`, whose n_events and n_tokens say what is
 * needed at this moment, and the status is INVALID_ARGUMENT. NULL with 0 for both buffers asks for these lengths and is
 * CLEAVE_OK.
 *
 * Callable from any thread. Takes milliseconds for ten thousands of blocks, but holds the cache's lock only for a thousand
 * blocks at a time, so steps go on. If events_kept is less than the events that come meanwhile, three times over, it
 * looks at all blocks under one hold. Errors: INVALID_ARGUMENT, UNSUPPORTED (events_kept 0), NOT_FOUND.
 */
cleave_status_t cleave_cache_event_snapshot(cleave_cache_t *cache,
                                            struct cleave_cache_event_t *events,
                                            size_t event_size,
                                            size_t capacity,
                                            int32_t *tokens,
                                            size_t tokens_cap,
                                            struct cleave_cache_event_range_t *out,
                                            cleave_error_t *err);


/* ---- insight: metrics, load and the audit of blocks ---- */
/** The engine refuses new requests, because it drains or is being destroyed. */
#define CLEAVE_LOAD_DRAINING (1u << 0)

/** The engine has failed, and refuses new requests. */
#define CLEAVE_LOAD_FAILED (1u << 1)

/** Counters of one engine since it was created, and those of its cache. Set struct_size before the call. */
typedef struct cleave_metrics_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** Requests in the running batch. */
    uint32_t running;
    /** Accepted requests that are not in the running batch. */
    uint32_t waiting;
    /** KV blocks of the cache. */
    uint32_t blocks_total;
    /** KV blocks that requests can have, including blocks that only the prefix index holds. */
    uint32_t blocks_free;
    /** KV handles in the cache. */
    uint32_t exports_open;
    /** Imports into the cache that have not finished. */
    uint32_t imports_open;
    /**
     * CLEAVE_ROLE_* of the last step. A role set by cleave_engine_set_role shows here after a step was planned under
     * it.
     */
    uint32_t role;
    /** Steps. */
    uint64_t steps;
    /** Prompt tokens computed. */
    uint64_t prompt_tokens;
    /** Tokens generated. */
    uint64_t generated_tokens;
    /** Prompt tokens found in the prefix cache, which were not computed. */
    uint64_t prefix_hit_tokens;
    /** Sequences put back because KV blocks ran out. */
    uint64_t preemptions;
    /** KV bytes imported. A handoff within one cache moves none. */
    uint64_t kv_bytes_in;
    /** KV bytes exported. */
    uint64_t kv_bytes_out;
    /** Time spent in steps. */
    uint64_t busy_ns;
    /** Time since the last step ended; 0 before the first. */
    uint64_t last_step_age_ns;
    /** Requests that continued a KV handle. */
    uint64_t handoffs;
    /** Time to take the handles' KV over, of all handoffs together. */
    uint64_t handoff_ns_total;
    /** The same, of the last handoff. */
    uint64_t handoff_ns_last;
    /** Duration of the last step. */
    uint64_t step_ns_last;
    /** Duration of the longest step. */
    uint64_t step_ns_max;
    /** Duration of the last export to a KV handle. */
    uint64_t export_ns_last;
    /** Time from the last cleave_engine_set_role to the first step that was planned under the new role. */
    uint64_t role_switch_ns_last;
    /** Imports into the cache that succeeded. */
    uint64_t imports;
    /** Imports into the cache that failed. */
    uint64_t imports_failed;
    /** Requests whose imported KV did not arrive and was computed here (CLEAVE_REQUEST_RECOMPUTE). */
    uint64_t recomputed;
    /** KV bytes pulled while the exporter was still computing the prompt. */
    uint64_t kv_bytes_hidden;
    /** KV bytes pulled after the exporter had computed the prompt. */
    uint64_t kv_bytes_exposed;
    /** Time from the exporter's last prompt token to the end of the import, of all imports together. */
    uint64_t kv_exposed_ns_total;
    /** The same, of the last import. */
    uint64_t kv_exposed_ns_last;
    /** Most prompt tokens in a step under the present role: max_batch_tokens, or the measured choice. */
    uint32_t prefill_step_tokens;
    /** Multiprocessors of the device that the engine may use; 0 on the CPU. */
    uint32_t multiprocessors;
    /**
     * Measured rate of prefill steps of the chosen length, in tokens per second; 0 if no length was chosen by
     * measurement.
     */
    uint64_t prefill_tokens_per_second;
} cleave_metrics_t;

/** Load of one engine, for routers and planners. Set struct_size before the call. */
typedef struct cleave_engine_load_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** CLEAVE_LOAD_*. */
    uint32_t flags;
    /** CLEAVE_ROLE_* in effect: the last step was planned under it, or would have been. */
    uint32_t role;
    /** CLEAVE_ROLE_* that was set last. It takes effect with the next step; `role` is then equal to it. */
    uint32_t role_requested;
    /** Requests in the running batch: `prefilling` and `decoding` ones. */
    uint32_t running;
    /**
     * Accepted requests that are not in the running batch and not importing. running, waiting and importing add up to
     * the number of open requests.
     */
    uint32_t waiting;
    /** Requests whose KV is on its way. */
    uint32_t importing;
    /** Running requests with more than one token to compute before their next token can be sampled. */
    uint32_t prefilling;
    /** Running requests of which each step computes one token. */
    uint32_t decoding;
    /** KV blocks of the cache. */
    uint32_t blocks_total;
    /** KV blocks that requests can have, `blocks_cached` among them. */
    uint32_t blocks_free;
    /** KV blocks that only the prefix index holds. They are evicted when there are no others. */
    uint32_t blocks_cached;
    /** Tokens per KV block. */
    uint32_t block_tokens;
    /** Most sequences that run at once. */
    uint32_t max_sequences;
    /** Most accepted requests that wait beyond those. */
    uint32_t max_waiting;
    /** Most tokens in a step. */
    uint32_t max_batch_tokens;
    /** Most prompt tokens in a step under role_requested. */
    uint32_t prefill_step_tokens;
    /** Prefilling requests at the moment when `role` took effect. All of them keep the role under which they were accepted. */
    uint32_t prefilling_at_switch;
    /** Decoding requests at that moment. */
    uint32_t decoding_at_switch;
    /** Waiting requests at that moment. */
    uint32_t waiting_at_switch;
    /** Importing requests at that moment. */
    uint32_t importing_at_switch;
    /** 0. */
    uint32_t reserved;
    /** Steps that have run. */
    uint64_t steps;
    /** Steps that had run when `role` took effect. All later ones were planned under it. */
    uint64_t role_since_step;
    /** CLOCK_MONOTONIC when `role` took effect. */
    uint64_t role_since_ns;
    /** CLOCK_MONOTONIC when this was read. */
    uint64_t timestamp_ns;
    /**
     * Prompt tokens computed per second in the last 9 to 10 seconds, idle time included: the tokens of the steps that ended
     * within the present second of the clock and the nine before it. An engine younger than a second counts as one second old.
     */
    double prefill_tokens_per_second;
    /** Tokens generated per second, in the same time. */
    double decode_tokens_per_second;
} cleave_engine_load_t;

/** Blocks of a cache by owner. Set struct_size before the call. */
typedef struct cleave_audit_t {
    /** sizeof this struct, set by the caller. */
    uint32_t struct_size;
    /** Blocks held by requests. A block with several kinds of owners counts for each. */
    uint32_t by_requests;
    /** Blocks held by transfers to and from peers. */
    uint32_t by_transfers;
    /** Blocks held by KV handles. */
    uint32_t by_exports;
    /** Blocks held by the prefix index. */
    uint32_t by_prefix_index;
    /** Blocks that are neither free nor owned, or whose count of owners is wrong: always 0. */
    uint32_t leaked;
    /** All blocks of the cache. */
    uint32_t total;
    /** Blocks without an owner. */
    uint32_t free;
} cleave_audit_t;

/** Reads an engine's counters without stopping it. Callable from any thread. Errors: NOT_FOUND, INVALID_ARGUMENT. */
cleave_status_t cleave_engine_metrics(cleave_engine_t *engine, struct cleave_metrics_t *out, cleave_error_t *err);

/**
 * Reads an engine's load: states of requests as of the last step boundary, with those that came since as waiting. It does not wait for a step, and is cheap enough for every request of a router. After
 * cleave_engine_set_role it proves the switch: once `role` is equal to `role_requested`, the role is in effect since
 * step role_since_step, and the fields `*_at_switch` say which requests were open then. That takes at most one step,
 * and never happens on an engine that has CLEAVE_LOAD_FAILED.
 *
 * Callable from any thread. Errors: NOT_FOUND, INVALID_ARGUMENT.
 */
cleave_status_t cleave_engine_load(cleave_engine_t *engine,
                                   struct cleave_engine_load_t *out,
                                   cleave_error_t *err);

/**
 * Writes the metrics of all engines and caches of the process as OpenMetrics text (application/openmetrics-text;
 * version=1.0.0), for the host's scrape endpoint. The text is a fragment: it does not end in `# EOF`, so that the host can
 * put its own metrics before or behind it. Write `# EOF` and a newline once, at the end of the response.
 *
 * Families of an engine have the labels model_name, cache, engine and role, those of a cache model_name and cache. Caches
 * and engines are counted from 0 in order of creation. Times, sizes and histograms are described in docs/metrics.md.
 *
 * (`buf`, `cap`, `len`) follow the conventions for buffers above. The text may grow between a call that asks for the length
 * and the next, so leave some room. Callable from any thread. Errors: INVALID_ARGUMENT.
 */
cleave_status_t cleave_metrics_text(char *buf,
                                    size_t cap,
                                    size_t *len,
                                    cleave_error_t *err);

/**
 * Counts the blocks of a cache by owner. Callable from any thread; holds the cache's lock while it counts. Errors:
 * NOT_FOUND, INVALID_ARGUMENT.
 */
cleave_status_t cleave_cache_audit(cleave_cache_t *cache, struct cleave_audit_t *out, cleave_error_t *err);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* CLEAVE_H */
