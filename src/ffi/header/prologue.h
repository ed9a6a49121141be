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
