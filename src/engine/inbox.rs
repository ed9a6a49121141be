//! An engine's inbox: the commands for its step thread, and the requests that are open. All of it is under one lock, so a request
//! is open exactly as long as its commands are taken.

use super::event::Event;
use super::load::Openness;
use super::options::EngineLimits;
use super::pending::PendingRequest;
use super::queue::{Queue, Reservation};
use crate::backend::ComputeShare;
use crate::error::{Error, Result, Status};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Number of cancelled requests that are remembered, so that cancelling one of them again is not an error.
const REMEMBERED_CANCELS: usize = 1024;

/// Commands of host threads, which the step thread takes.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    wake: Condvar,
    /// Signalled when the last open request ends.
    idle: Condvar,
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
struct InboxState {
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

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- open requests ----

    /// Opens a request on engine number `engine` and reserves its place in `queue`. Returns its id. Fails if the engine or the queue is
    /// full, failed or ending.
    pub fn open(&self, engine: u64, limits: &EngineLimits, queue: &Arc<Queue>) -> Result<(u64, Reservation)> {
        let mut inbox = self.lock();
        if let Some(error) = &inbox.failed {
            return Err(error.clone().context("the engine has failed"));
        }
        if inbox.draining || inbox.work.stop || inbox.ended {
            crate::bail!(Shutdown, "the engine is draining and accepts no new requests");
        }
        let most = limits.max_sequences + limits.max_waiting;
        if inbox.open.len() >= most {
            crate::bail!(
                WouldBlock,
                "{} requests are open (max_sequences {} + max_waiting {}): submit again after a FINISHED event",
                inbox.open.len(),
                limits.max_sequences,
                limits.max_waiting
            );
        }
        let reservation = queue.reserve()?;
        inbox.last_id += 1;
        let id = engine << 40 | inbox.last_id & 0xff_ffff_ffff;
        inbox.open.insert(id);
        Ok((id, reservation))
    }

    /// Sends a request's last event and closes the request. Whoever sees the event finds the request closed.
    pub fn finish(&self, reservation: Reservation, event: Event) {
        let mut inbox = self.lock();
        reservation.finish(event);
        self.close(&mut inbox, event.request);
    }

    /// Closes a request that was never accepted.
    pub fn withdraw(&self, reservation: Reservation, id: u64) {
        let mut inbox = self.lock();
        drop(reservation);
        self.close(&mut inbox, id);
    }

    fn close(&self, inbox: &mut InboxState, id: u64) {
        inbox.open.remove(&id);
        if inbox.open.is_empty() {
            self.idle.notify_all();
        }
    }

    /// Number of open requests, and whether the engine accepts more.
    pub fn openness(&self) -> (usize, Openness) {
        let inbox = self.lock();
        let openness = if inbox.failed.is_some() {
            Openness::Failed
        } else if inbox.draining || inbox.work.stop || inbox.ended {
            Openness::Draining
        } else {
            Openness::Open
        };
        (inbox.open.len(), openness)
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

    // ---- commands of host threads ----

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

    // ---- for the step thread ----

    /// Takes all commands. With `wait`, sleeps until there is one, a wake-up comes or `until` is reached.
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
