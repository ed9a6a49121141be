/*
 * cleave.h: disaggregated LLM inference as a library.
 *
 * Generated from src/ffi by tests/sources: do not edit, run `make header`.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A model is loaded once. A cache holds KV blocks for it on a device. Engines run over a cache, each with a role:
 * prefill, decode or both. They report to a completion queue. A sequence leaves an engine as a KV handle, and goes on
 * in any other engine, process or host that can reach the handle.
 *
 *
 * API CONVENTIONS
 *
 * Errors. A function that can fail returns CLEAVE_OK (0) or a negative CLEAVE_ERR_* and takes a `cleave_error_t *err` as its
 * last parameter. `err` may be NULL. It is written on failure only, with the status and a text that names what is at fault.
 * There is no other record of the last error. The exceptions are cleave_queue_poll and cleave_queue_fd, which are called
 * in a loop and return a status alone. Results are written on success only, except counts (`*n`, `*len`, `*n_accepted`),
 * which are set as soon as the arguments that they depend on have been checked.
 *
 * Threads. Every function may be called from any thread at any time, also two at once on the same object. The
 * *_destroy and *_release functions are no exception as far as memory is concerned: a call that is under way in another
 * thread ends normally or with SHUTDOWN, a later one gets NOT_FOUND. No function keeps anything in thread-local storage
 * that the next call relies on. After fork() the child may call nothing but exec.
 *
 * Blocking. Functions marked [BLOCKING] may wait for a device, a disk, a peer or a timeout; all others return in
 * microseconds, apart from a lock that is held that long.
 *
 * Ownership. What is passed in is borrowed for the call and copied if needed. What `**out` returns is the caller's until
 * it is given to the matching *_destroy or *_release. There is no order in which objects must be destroyed: each keeps
 * what it needs. Nothing has to be called at start or exit, and nothing is printed.
 *
 * Structs. Zero-initialise and set struct_size to sizeof: for structs that are read and for those that are written.
 * Zero means default. Fields are only ever appended; there are no pointers in structs. A library that is newer than the
 * program takes missing fields as zero and writes none; one that is older takes a longer struct if all it does not know
 * is zero, else it says UNSUPPORTED, and in structs that it writes it zeroes the rest. struct_size 0, not a multiple of
 * 4 or above 65536 is INVALID_ARGUMENT. In an array the struct_size of the first element is the distance between
 * elements.
 *
 * Buffers. Where a result of any length goes to (buffer, cap, *n): *n is set to the full length, in elements. If that is
 * more than cap, nothing is written and the status is INVALID_ARGUMENT. NULL with cap 0 asks for the length and is
 * CLEAVE_OK. Text is UTF-8 without a NUL in *n; one is written behind it where cap leaves room.
 *
 * Strings in are UTF-8: NUL-terminated where there is no length, else `len` bytes of which none is special. Arrays of
 * length 0 may be NULL.
 *
 * Units. Sizes and lengths are in bytes unless a name says tokens or blocks; times are in what the name ends with (_us,
 * _ms, _ns). timeout_ms UINT32_MAX is for ever, 0 not at all.
 */
#ifndef CLEAVE_H
#define CLEAVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
