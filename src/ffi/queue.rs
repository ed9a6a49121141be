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

/// Creates a queue for `capacity` events (4 to 16777216; 0 means 4096). Every accepted request reserves one place for
/// its FINISHED event, so the capacity limits how many requests the queue's engines accept at once (WOULD_BLOCK
/// beyond it). An engine whose tokens find no place pauses until there is one, and loses nothing. `*out` belongs to
/// the caller, who gives it to cleave_queue_destroy.
///
/// Callable from any thread. Errors: INVALID_ARGUMENT, IO (no file descriptor), OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_queue_create(
    capacity: u32,
    out: *mut *mut cleave_queue_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        required(out, "out")?;
        put(out, registry::insert(Queue::new(capacity as usize)?)?);
        Ok(())
    })
}

/// Destroys a queue. Callers that wait in cleave_queue_poll get SHUTDOWN, queued and later events are dropped, and
/// its engines accept no more requests. The descriptor is closed when the last engine of the queue is destroyed. To
/// receive every FINISHED event, destroy the engines first. NULL and a queue that was destroyed before are ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_queue_destroy(queue: *mut cleave_queue_t) {
    if !queue.is_null() {
        call_void(|| {
            registry::take::<Queue>(queue, "queue")?.close();
            Ok(())
        });
    }
}

/// Returns the queue's eventfd, which is readable while events are queued: for poll, epoll and Go's netpoller. It
/// belongs to the library. Watch it, but do not read, write or close it, and remove it from the loop before
/// cleave_queue_destroy. Level-triggered watching is simplest; with edge-triggered watching, call cleave_queue_poll
/// until it returns no event.
///
/// Callable from any thread. Returns a negative status if `queue` is not a queue.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_queue_fd(queue: *const cleave_queue_t) -> c_int {
    call_int(|| Ok(registry::get::<Queue>(queue, "queue")?.fd()))
}
