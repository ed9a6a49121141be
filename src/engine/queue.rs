//! The completion queue: many engines write to it, and any thread polls it.
//!
//! The queue is bounded. Accepting a request reserves one place for its FINISHED event, so that the event is never lost,
//! however full the queue is. TOKEN events use the remaining places. An engine that finds no place keeps the event and does not
//! schedule the sequence until a poll has made room.

use super::event::Event;
use crate::error::{Result, Status};
use crate::sys::{EventFd, monotonic_ns};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// An engine that waits for room in a full queue.
pub trait SpaceWaker: Send + Sync {
    /// Called once the queue has room again.
    fn space(&self);
}

/// Bounded queue of events, shared by any number of engines and caches.
pub struct Queue {
    state: Mutex<QueueState>,
    ready: Condvar,
    eventfd: EventFd,
    capacity: usize,
}

struct QueueState {
    events: VecDeque<Event>,
    /// Places reserved for FINISHED events of accepted requests and KV_READY events of accepted imports.
    reserved: usize,
    closed: bool,
    starved: Vec<Weak<dyn SpaceWaker>>,
}

/// A place in the queue reserved for one terminal event. Dropping it unused frees the place.
pub struct Reservation {
    queue: Arc<Queue>,
    used: bool,
}

impl Queue {
    /// Capacity of a queue for which the host chose none.
    pub const DEFAULT_CAPACITY: usize = 4096;

    /// Creates a queue for `capacity` events; 0 means [`Queue::DEFAULT_CAPACITY`].
    pub fn new(capacity: usize) -> Result<Arc<Queue>> {
        let capacity = if capacity == 0 { Queue::DEFAULT_CAPACITY } else { capacity };
        if !(4..=1 << 24).contains(&capacity) {
            crate::bail!(InvalidArgument, "queue capacity {capacity} is outside 4..=16777216");
        }
        Ok(Arc::new(Queue {
            state: Mutex::new(QueueState {
                events: VecDeque::with_capacity(capacity.min(Queue::DEFAULT_CAPACITY)),
                reserved: 0,
                closed: false,
                starved: Vec::new(),
            }),
            ready: Condvar::new(),
            eventfd: EventFd::new()?,
            capacity,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// File descriptor of an eventfd that is readable while events wait.
    pub fn fd(&self) -> i32 {
        self.eventfd.raw()
    }

    /// Reserves a place for a terminal event. Fails with WOULD_BLOCK if there is none, with SHUTDOWN once the queue is closed.
    /// One place always remains for TOKEN events, so that a queue full of reservations still makes progress.
    pub fn reserve(self: &Arc<Self>) -> Result<Reservation> {
        let mut state = self.lock();
        if state.closed {
            crate::bail!(Shutdown, "the queue was destroyed");
        }
        if state.events.len() + state.reserved + 1 >= self.capacity {
            crate::bail!(
                WouldBlock,
                "the completion queue is full ({} events waiting, {} requests open, capacity {})",
                state.events.len(),
                state.reserved,
                self.capacity
            );
        }
        state.reserved += 1;
        Ok(Reservation { queue: self.clone(), used: false })
    }

    /// Queues events that belong together, all or none. Returns false if there is no room; `waker` is then called once there is.
    pub fn push(&self, events: &mut [Event], waker: &Weak<dyn SpaceWaker>) -> bool {
        let mut state = self.lock();
        if state.closed {
            return true;
        }
        // A group larger than the whole queue is accepted as soon as no other events wait.
        let fits = state.events.len() + state.reserved + events.len() <= self.capacity || state.events.is_empty();
        if !fits {
            if !state.starved.iter().any(|w| w.ptr_eq(waker)) {
                state.starved.push(waker.clone());
            }
            return false;
        }
        self.append(&mut state, events);
        true
    }

    fn append(&self, state: &mut QueueState, events: &mut [Event]) {
        if events.is_empty() {
            return;
        }
        let now = monotonic_ns();
        let was_empty = state.events.is_empty();
        for event in events {
            event.timestamp_ns = now;
            state.events.push_back(*event);
        }
        if was_empty {
            self.eventfd.signal();
        }
        self.ready.notify_one();
    }

    /// Moves up to `max` events to `out` and returns their number, waiting at most `timeout` for the first one (None: for ever).
    /// Returning fewer events, or none after the timeout, is not an error. Fails with SHUTDOWN once the queue is closed.
    pub fn poll(&self, out: &mut Vec<Event>, max: usize, timeout: Option<Duration>) -> Result<usize> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(crate::error::Error::new(Status::Shutdown, "the queue was destroyed"));
            }
            if !state.events.is_empty() || max == 0 {
                break;
            }
            state = match deadline {
                None if timeout.is_none() => self.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => {
                    self.ready.wait_timeout(state, Duration::from_secs(3600)).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(0);
                    }
                    self.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let n = max.min(state.events.len());
        out.extend(state.events.drain(..n));
        if state.events.is_empty() {
            self.eventfd.clear();
        } else {
            self.ready.notify_one();
        }
        let starved = if n > 0 { std::mem::take(&mut state.starved) } else { Vec::new() };
        drop(state);
        for waker in starved.iter().filter_map(Weak::upgrade) {
            waker.space();
        }
        Ok(n)
    }

    /// Closes the queue: every poll fails with SHUTDOWN, and waiting and later events are dropped.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.events.clear();
        self.eventfd.signal();
        self.ready.notify_all();
        let starved = std::mem::take(&mut state.starved);
        drop(state);
        for waker in starved.iter().filter_map(Weak::upgrade) {
            waker.space();
        }
    }
}

impl Reservation {
    /// Queues the terminal event in the reserved place.
    pub fn finish(mut self, event: Event) {
        self.used = true;
        let mut state = self.queue.lock();
        state.reserved -= 1;
        if !state.closed {
            self.queue.append(&mut state, &mut [event]);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.used {
            self.queue.lock().reserved -= 1;
        }
    }
}
