//! What the host's threads and the step thread share: the inbox with its wake-up, the set of open requests,
//! and counters. Host calls touch nothing else, so none of them waits for a step.

use super::counters::Counters;
use super::engine_share::EngineShare;
use super::event::Event;
use super::guard::{RequestGuard, RequestOwner};
use super::histogram::Histograms;
use super::options::EngineLimits;
use super::pending::PendingRequest;
use super::prepare::Bounds;
use super::queue::{Queue, Reservation, SpaceWaker};
use super::saturation::Budget;
use super::{ModelCache, Role};
use crate::backend::ComputeShare;
use crate::error::{Error, Result, Status};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Cancelled requests remembered, so that a second cancel of one is no error.
const REMEMBERED_CANCELS: usize = 1024;

/// Prompt tokens that a decode engine takes into a step.
const DECODE_ROLE_PREFILL_TOKENS: usize = 64;

pub(super) struct EngineShared {
    pub cache: Arc<ModelCache>,
    pub queue: Arc<Queue>,
    pub limits: EngineLimits,
    /// What a sequence has to fit into.
    pub bounds: Bounds,
    /// Tokens of a step.
    pub budget: Budget,
    /// The role of requests accepted from now on, and of the steps that have begun since.
    pub role: AtomicU32,
    /// Its share of the device's multiprocessors.
    pub share: EngineShare,
    pub counters: Counters,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    /// Signalled when the last open request has ended.
    idle: Condvar,
    /// High bits of the ids of this engine's requests.
    number: u64,
}

/// Host calls that the step thread has not looked at yet.
#[derive(Default)]
pub(super) struct Work {
    pub arrivals: Vec<PendingRequest>,
    pub cancels: Vec<u64>,
    pub exports: Vec<u64>,
    /// Requests whose import is no longer in flight.
    pub landed: Vec<u64>,
    /// The share of the device to go on with.
    pub compute_share: Option<ComputeShare>,
    pub stop: bool,
}

#[derive(Default)]
struct Inbox {
    work: Work,
    woken: bool,
    draining: bool,
    /// The step thread has looked at its last work.
    ended: bool,
    failed: Option<Error>,
    open: HashSet<u64>,
    cancelled: VecDeque<u64>,
    last_id: u64,
}

impl EngineShared {
    pub fn new(
        cache: Arc<ModelCache>,
        queue: Arc<Queue>,
        limits: EngineLimits,
        budget: Budget,
        role: Role,
        share: Option<u32>,
    ) -> EngineShared {
        static ENGINES: AtomicU64 = AtomicU64::new(1);
        let counters = Counters::default();
        counters.role.store(role as u32, Ordering::Relaxed);
        EngineShared {
            limits,
            bounds: cache.bounds(),
            cache,
            queue,
            budget,
            role: AtomicU32::new(role as u32),
            share: EngineShare::new(share),
            counters,
            inbox: Mutex::default(),
            wake: Condvar::new(),
            idle: Condvar::new(),
            number: ENGINES.fetch_add(1, Ordering::Relaxed) & 0xff_ffff,
        }
    }

    /// Tokens of prompts that a step takes at most: in the role of decode few, so that inter-token latency holds.
    pub fn prompt_tokens(&self) -> usize {
        let decode = self.role.load(Ordering::Relaxed) == Role::Decode as u32;
        self.budget.prompts().min(if decode { DECODE_ROLE_PREFILL_TOKENS } else { usize::MAX })
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for one request, or says why there is none.
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

    /// Accepts a request: from here on it ends with an event.
    pub fn arrive(&self, mut arrival: PendingRequest) {
        arrival.guard.accept();
        let mut inbox = self.lock();
        if !inbox.ended {
            inbox.work.arrivals.push(arrival);
            return self.wake.notify_one();
        }
        // Destroyed since it was admitted: nobody would look at it.
        drop(inbox);
        arrival.refuse(&Error::new(Status::Shutdown, "the engine was destroyed"));
    }

    /// The import that request `id` waits for has landed, or failed.
    pub fn landed(&self, id: u64) {
        self.lock().work.landed.push(id);
        self.wake.notify_one();
    }

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

    pub fn export(&self, id: u64) -> Result<()> {
        let mut inbox = self.lock();
        if !inbox.open.contains(&id) {
            return Err(not_open(id));
        }
        inbox.work.exports.push(id);
        self.wake.notify_one();
        Ok(())
    }

    /// Has the step thread go on with another share of the device.
    pub fn replace_compute_share(&self, share: ComputeShare) {
        let mut inbox = self.lock();
        if !inbox.ended {
            inbox.work.compute_share = Some(share);
            self.wake.notify_one();
        }
    }

    /// Makes the step thread look at the world again.
    pub fn kick(&self) {
        self.lock().woken = true;
        self.wake.notify_one();
    }

    pub fn stop(&self) {
        self.lock().work.stop = true;
        self.wake.notify_one();
    }

    /// The step thread's side: all that came in. With `wait`, sleeps until something does or `until`.
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

    /// The step thread's last look: what comes after it is refused at once.
    pub fn leave(&self) -> Work {
        let mut inbox = self.lock();
        inbox.ended = true;
        std::mem::take(&mut inbox.work)
    }

    pub fn fail(&self, error: Error) {
        self.lock().failed.get_or_insert(error);
    }

    /// Why the engine has failed, if it has.
    pub fn failure(&self) -> Option<Error> {
        self.lock().failed.clone()
    }

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
                            "{} requests are still open; the engine goes on draining",
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
    fn histograms(&self) -> &Histograms {
        &self.counters.histograms
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
