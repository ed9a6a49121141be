//! events

use super::boundary::{call, put, required, timeout};
use super::error::{CLEAVE_OK, cleave_status_t};
use super::handle::{cleave_kv_t, cleave_queue_t, cleave_request_t};
use super::registry;
use super::versioned::EventBuffer;
use crate::engine::{Event, Queue};
use libc::size_t;

/// A token was generated.
pub const CLEAVE_EVENT_TOKEN: u32 = 1;
/// A request has ended. Every accepted request has exactly one, and it is its last event.
pub const CLEAVE_EVENT_FINISHED: u32 = 2;
/// An import has finished; `status` says whether it succeeded.
pub const CLEAVE_EVENT_KV_READY: u32 = 3;
/// An engine has failed and accepts no more requests. The FINISHED events of its requests follow; their ids identify
/// the engine.
pub const CLEAVE_EVENT_ENGINE_FAILED: u32 = 4;
/// One of the likeliest tokens at the position of the TOKEN event before it, best first; see CLEAVE_REQUEST_LOGPROBS.
/// These events directly follow their TOKEN event, although a cleave_queue_poll with little room may end between
/// them.
pub const CLEAVE_EVENT_TOP_LOGPROB: u32 = 5;
/// A prompt has begun to be computed, and `kv` is its streaming handle; see CLEAVE_REQUEST_STREAM_KV. The handle
/// belongs to the request: FINISHED carries it when the request ends with its KV, otherwise it fails.
pub const CLEAVE_EVENT_KV_STREAM_STARTED: u32 = 6;

/// Flag of FINISHED: the handle's KV did not arrive and was computed here; see CLEAVE_REQUEST_RECOMPUTE.
pub const CLEAVE_EVENT_RECOMPUTED: u32 = 1 << 0;

/// A stop id, a stop sequence or one of the model's EOS ids was generated.
pub const CLEAVE_FINISH_STOP: u32 = 1;
/// max_new_tokens were generated, or the model's context is full.
pub const CLEAVE_FINISH_LENGTH: u32 = 2;
/// A prefill engine has done its part: `kv` is the handle to continue from.
pub const CLEAVE_FINISH_PREFILLED: u32 = 3;
/// cleave_engine_export ended the request: `kv` is the handle to continue from.
pub const CLEAVE_FINISH_EXPORTED: u32 = 4;
/// The request failed; `status` says why: CANCELLED, TIMEOUT (deadline), SHUTDOWN, ...
pub const CLEAVE_FINISH_ERROR: u32 = 5;

/// An event: 64 bytes. Fields that do not apply to a type are zero, except `token`, which is -1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_event_t {
    /// CLEAVE_EVENT_*. Skip types that you do not know.
    pub r#type: u32,
    /// FINISHED: CLEAVE_FINISH_*.
    pub finish_reason: u32,
    /// CLEAVE_OK, or the reason of a failure.
    pub status: cleave_status_t,
    /// TOKEN, TOP_LOGPROB: the token.
    pub token: i32,
    /// The host's tag, as given with the request or the import.
    pub user_tag: u64,
    /// The request; 0 in events that belong to none.
    pub request: cleave_request_t,
    /// FINISHED: the handle that the request leaves, if any, which the host submits or releases. KV_READY: the
    /// imported handle. KV_STREAM_STARTED: the streaming handle.
    pub kv: cleave_kv_t,
    /// CLOCK_MONOTONIC when the event was queued.
    pub timestamp_ns: u64,
    /// TOKEN, TOP_LOGPROB: number of the token after the prompt, from 0. FINISHED: how many tokens there were.
    pub index: u32,
    /// TOKEN with CLEAVE_REQUEST_LOGPROBS, TOP_LOGPROB: natural logarithm of the probability.
    pub logprob: f32,
    /// FINISHED: prompt tokens that were found in the prefix cache of the engine that computed the prompt.
    pub cached_tokens: u32,
    /// CLEAVE_EVENT_RECOMPUTED.
    pub flags: u32,
}

const _: () = assert!(size_of::<cleave_event_t>() == 64 && align_of::<cleave_event_t>() == 8);

/// Size of the first version of the struct.
const SMALLEST_EVENT: usize = 48;

fn convert(event: &Event) -> cleave_event_t {
    cleave_event_t {
        r#type: event.kind as u32,
        finish_reason: event.finish.map_or(0, |reason| reason as u32),
        status: event.status.map_or(CLEAVE_OK, |status| status as i32),
        token: event.token,
        user_tag: event.user_tag,
        request: event.request,
        kv: event.kv,
        timestamp_ns: event.timestamp_ns,
        index: event.index,
        logprob: event.logprob,
        cached_tokens: event.cached_tokens,
        flags: if event.recomputed { CLEAVE_EVENT_RECOMPUTED } else { 0 },
    }
}

/// Takes up to `capacity` events from the queue, in order, and waits at most `timeout_ms` for the first one (0: not
/// at all, UINT32_MAX: for ever). `*n` is the number of events taken. It is less than `capacity` only if no more were
/// queued. A timeout without events is CLEAVE_OK with `*n` 0.
///
/// `event_size` is sizeof(cleave_event_t) as the program was compiled, and the distance between the elements of
/// `events`. With a larger value the rest of each element is zeroed; with a smaller one (at least 48, a multiple of
/// 8) each event is cut.
///
/// Callable from any thread. When several threads wait on one queue, each event goes to one of them. [BLOCKING] up to
/// the timeout. Errors: INVALID_ARGUMENT, NOT_FOUND, SHUTDOWN (the queue was destroyed meanwhile).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_queue_poll(
    queue: *mut cleave_queue_t,
    events: *mut cleave_event_t,
    event_size: size_t,
    capacity: size_t,
    timeout_ms: u32,
    n: *mut size_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(std::ptr::null_mut(), || unsafe {
        required(n, "n")?;
        put(n, 0);
        let queue = registry::get::<Queue>(queue, "queue")?;
        let events = EventBuffer::new(events, event_size, capacity, SMALLEST_EVENT, "events")?;
        let mut taken = Vec::new();
        queue.poll(&mut taken, capacity, timeout(timeout_ms))?;
        for (i, event) in taken.iter().enumerate() {
            events.write(i, &convert(event));
        }
        put(n, taken.len());
        Ok(())
    })
}
