//! completion queue

use super::boundary::{call, call_int, call_void, put, required};
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_queue, cleave_queue_t};
use super::registry::{self, Kind, Object};
use crate::engine::Queue;
use libc::c_int;

impl Object for Queue {
    type C = cleave_queue;
    const KIND: Kind = Kind::Queue;
}

/// Makes a queue that holds `capacity` events (0: 4096; 4 to 16777216). Every accepted request keeps one place for its
/// FINISHED event, so a queue bounds how many requests its engines accept at once (WOULD_BLOCK beyond); an engine whose
/// tokens find no place pauses until there is one and loses nothing. `*out` is the caller's, to be ended with
/// cleave_queue_destroy. Callable from any thread. Errors: INVALID_ARGUMENT, IO (no file descriptor), OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_queue_create(
    capacity: u32,
    out: *mut *mut cleave_queue_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe {
        required(out, "out")?;
        put(out, registry::insert(Queue::new(capacity as usize)?)?);
        Ok(())
    })
}

/// Ends a queue: who waits in cleave_queue_poll gets SHUTDOWN, events that wait and events that come later are dropped, its
/// engines accept no more requests. Its descriptor is closed once its last engine is destroyed. Destroy engines first
/// to get every FINISHED event. NULL and a queue that was destroyed before are ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_queue_destroy(queue: *mut cleave_queue_t) {
    if !queue.is_null() {
        call_void(|| {
            registry::take::<Queue>(queue, "queue")?.close();
            Ok(())
        });
    }
}

/// The queue's eventfd, readable while events wait, for poll, epoll, kqueue-like loops and Go's netpoller. It is the
/// library's: watch it, but do not read, write or close it, and take it out of the loop before cleave_queue_destroy.
/// Level-triggered use is simplest; edge-triggered, call cleave_queue_poll until it gives no event.
///
/// Callable from any thread. A negative status for a queue that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_queue_fd(queue: *const cleave_queue_t) -> c_int {
    call_int(|| Ok(registry::get::<Queue>(queue, "queue")?.fd()))
}
