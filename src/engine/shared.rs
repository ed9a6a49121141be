//! State shared by the host's threads and the step thread: the inbox, the set of open requests and the counters. Host calls
//! touch nothing else, so none of them waits for a step.

use super::counters::Counters;
use super::engine_share::EngineShare;
use super::event::Event;
use super::guard::{RequestGuard, RequestOwner};
use super::options::EngineLimits;
use super::pending::PendingRequest;
use super::prepare::Bounds;
use super::queue::{Queue, Reservation, SpaceWaker};
use super::saturation::Budget;
use super::{ModelCache, Role};
use crate::backend::ComputeShare;
use crate::error::{Error, Result, Status};
use crate::sys::monotonic_ns;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Number of cancelled requests that are remembered, so that cancelling one of them again is not an error.
const REMEMBERED_CANCELS: usize = 1024;

/// Most prompt tokens in a step of a decode engine.
const DECODE_ROLE_PREFILL_TOKENS: usize = 64;

/// The part of an engine that all threads see.
pub(super) struct EngineShared {
    /// The cache that the engine runs over.
    pub cache: Arc<ModelCache>,
    /// The queue that receives the engine's events.
    pub queue: Arc<Queue>,
    /// Limits set by the host.
    pub limits: EngineLimits,
    /// Limits of a sequence, given by model and cache.
    pub bounds: Bounds,
    /// Token budget of a step.
    pub budget: Budget,
    /// Share of the device's multiprocessors.
    pub share: EngineShare,
    /// Counters behind the engine's metrics.
    pub counters: Counters,
    /// Role of requests accepted from now on, and of steps from the next one on: a [`Role`] as a number.
    role: AtomicU32,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    /// Signalled when the last open request ends.
    idle: Condvar,
    /// Number of the engine, which forms the high bits of its requests' ids.
    number: u64,
}

/// Commands that the step thread has not taken yet.
#[derive(Default)]
pub(super) struct Work {
    /// Accepted requests.
    pub arrivals: Vec<PendingRequest>,
    /// Ids of requests to cancel.
    pub cancels: Vec<u64>,
    /// Ids of requests to export.
    pub exports: Vec<u64>,
    /// Ids of requests whose import has landed or failed.
    pub landed: Vec<u64>,
    /// New share of the device to use from the next step on.
    pub compute_share: Option<ComputeShare>,
    /// Whether the engine is to end.
    pub stop: bool,
}

#[derive(Default)]
struct Inbox {
    work: Work,
    woken: bool,
    draining: bool,
    /// Whether the step thread has taken its last work.
    ended: bool,
    failed: Option<Error>,
    open: HashSet<u64>,
    cancelled: VecDeque<u64>,
    last_id: u64,
}

impl EngineShared {
    /// The shared state of a new engine without requests.
    pub fn new(
        cache: Arc<ModelCache>,
        queue: Arc<Queue>,
        limits: EngineLimits,
        budget: Budget,
        role: Role,
        share: Option<u32>,
    ) -> EngineShared {
        static ENGINES: AtomicU64 = AtomicU64::new(1);
        EngineShared {
            limits,
            bounds: cache.bounds(),
            cache,
            queue,
            budget,
            role: AtomicU32::new(role as u32),
            share: EngineShare::new(share),
            counters: Counters::new(role),
            inbox: Mutex::default(),
            wake: Condvar::new(),
            idle: Condvar::new(),
            number: ENGINES.fetch_add(1, Ordering::Relaxed) & 0xff_ffff,
        }
    }

    /// Most prompt tokens in a step. A decode engine takes few, to keep its inter-token latency low.
    pub fn prompt_tokens(&self) -> usize {
        let decode = self.role() == Role::Decode;
        self.budget.prompts().min(if decode { DECODE_ROLE_PREFILL_TOKENS } else { usize::MAX })
    }

    /// Role of requests accepted now, and of the next step.
    pub fn role(&self) -> Role {
        Role::from_code(self.role.load(Ordering::Relaxed)).unwrap_or(Role::Mixed)
    }

    /// Sets the role of requests accepted from now on, and of steps from the next one on.
    pub fn set_role(&self, role: Role) {
        self.counters.role_set(monotonic_ns());
        self.role.store(role as u32, Ordering::Relaxed);
        self.kick();
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits one request and reserves its place in the queue. Fails if the engine or the queue is full, failed or ending.
    pub fn admit(self: &Arc<Self>, user_tag: u64) -> Result<RequestGuard> {
        let mut inbox = self.lock();
        if let Some(error) = &inbox.failed {
            return Err(error.clone().context("the engine has failed"));
        }
        if inbox.draining || inbox.work.stop || inbox.ended {
            crate::bail!(Shutdown, "the engine is draining and accepts no new requests");
        }
        let most = self.limits.max_sequences + self.limits.max_waiting;
        if inbox.open.len() >= most {
            crate::bail!(
                WouldBlock,
                "{} requests are open (max_sequences {} + max_waiting {}): submit again after a FINISHED event",
                inbox.open.len(),
                self.limits.max_sequences,
                self.limits.max_waiting
            );
        }
        let reservation = self.queue.reserve()?;
        inbox.last_id += 1;
        let id = self.number << 40 | inbox.last_id & 0xff_ffff_ffff;
        inbox.open.insert(id);
        Ok(RequestGuard::new(self.clone(), id, user_tag, reservation))
    }

    fn close(&self, inbox: &mut Inbox, id: u64) {
        inbox.open.remove(&id);
        if inbox.open.is_empty() {
            self.idle.notify_all();
        }
    }

    /// Accepts a request, which from now on ends with an event, and passes it to the step thread.
    pub fn arrive(&self, mut arrival: PendingRequest) {
        arrival.guard.accept();
        let mut inbox = self.lock();
        if !inbox.ended {
            inbox.work.arrivals.push(arrival);
            return self.wake.notify_one();
        }
        // The engine was destroyed after the admission: the step thread takes no more work.
        drop(inbox);
        arrival.refuse(&Error::new(Status::Shutdown, "the engine was destroyed"));
    }

    /// Tells the step thread that the import for request `id` has landed or failed.
    pub fn landed(&self, id: u64) {
        self.lock().work.landed.push(id);
        self.wake.notify_one();
    }

    /// Asks the step thread to cancel a request.
    pub fn cancel(&self, id: u64) -> Result<()> {
        let mut inbox = self.lock();
        if !inbox.open.contains(&id) {
            if inbox.cancelled.contains(&id) {
                return Ok(());
            }
            return Err(not_open(id));
        }
        if !inbox.cancelled.contains(&id) {
            if inbox.cancelled.len() == REMEMBERED_CANCELS {
                inbox.cancelled.pop_front();
            }
            inbox.cancelled.push_back(id);
            inbox.work.cancels.push(id);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Asks the step thread to export a request.
    pub fn export(&self, id: u64) -> Result<()> {
        let mut inbox = self.lock();
        if !inbox.open.contains(&id) {
            return Err(not_open(id));
        }
        inbox.work.exports.push(id);
        self.wake.notify_one();
        Ok(())
    }

    /// Moves the step thread to another share of the device.
    pub fn replace_compute_share(&self, share: ComputeShare) {
        let mut inbox = self.lock();
        if !inbox.ended {
            inbox.work.compute_share = Some(share);
            self.wake.notify_one();
        }
    }

    /// Wakes the step thread, so that it plans again.
    pub fn kick(&self) {
        self.lock().woken = true;
        self.wake.notify_one();
    }

    /// Tells the step thread to end all requests and itself.
    pub fn stop(&self) {
        self.lock().work.stop = true;
        self.wake.notify_one();
    }

    /// Takes all commands; for the step thread. With `wait`, sleeps until there is one, a wake-up comes or `until` is reached.
    pub fn take(&self, wait: bool, until: Option<Instant>) -> Work {
        let mut inbox = self.lock();
        while wait && !inbox.woken && inbox.work.is_empty() {
            inbox = match until {
                None => self.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.wake.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        inbox.woken = false;
        let stop = inbox.work.stop;
        let work = std::mem::take(&mut inbox.work);
        inbox.work.stop = stop;
        work
    }

    /// Takes the last commands as the step thread ends. Requests that arrive later are refused at once.
    pub fn leave(&self) -> Work {
        let mut inbox = self.lock();
        inbox.ended = true;
        std::mem::take(&mut inbox.work)
    }

    /// Marks the engine as failed. The first error stays.
    pub fn fail(&self, error: Error) {
        self.lock().failed.get_or_insert(error);
    }

    /// Error that made the engine fail, if it has failed.
    pub fn failure(&self) -> Option<Error> {
        self.lock().failed.clone()
    }

    /// Refuses new requests from now on and waits until none is open.
    pub fn drain(&self, timeout: Option<Duration>) -> Result<()> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut inbox = self.lock();
        inbox.draining = true;
        while !inbox.open.is_empty() {
            inbox = match until {
                None => self.idle.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        crate::bail!(
                            Timeout,
                            "{} requests are still open; the engine keeps draining",
                            inbox.open.len()
                        );
                    }
                    self.idle.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        if inbox.work.stop || inbox.ended {
            crate::bail!(Shutdown, "the engine was destroyed");
        }
        Ok(())
    }
}

impl RequestOwner for EngineShared {
    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn finish(&self, reservation: Reservation, event: Event) {
        let mut inbox = self.lock();
        reservation.finish(event);
        self.close(&mut inbox, event.request);
    }

    fn withdraw(&self, reservation: Reservation, id: u64) {
        let mut inbox = self.lock();
        drop(reservation);
        self.close(&mut inbox, id);
    }
}

impl SpaceWaker for EngineShared {
    fn space(&self) {
        self.kick();
    }
}

impl Work {
    fn is_empty(&self) -> bool {
        let Work { arrivals, cancels, exports, landed, compute_share, stop } = self;
        let nobody = arrivals.is_empty() && cancels.is_empty() && exports.is_empty() && landed.is_empty();
        nobody && compute_share.is_none() && !stop
    }
}

fn not_open(id: u64) -> Error {
    crate::error!(NotFound, "request {id:#x} is not open on this engine: it has finished or was never accepted")
}
