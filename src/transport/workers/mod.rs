//! Threads that pull: as many as there are transfers, up to a limit, and none when there is nothing to do.
//!
//! Each job belongs to a peer, and [`shares`] decides whose jobs run. A job reports through its [`Place`] when it hears its
//! peer and how long it has waited, so that peers that do not answer hold up nobody else.

mod shares;
#[cfg(test)]
mod tests;

use crate::bail;
use crate::error::Result;
use shares::{MOST, PeerKey, Shares};
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) type Job = Box<dyn FnOnce(&Place) + Send>;
/// Work for a thread that has nothing else to do. Returns false once there is nothing to look after.
pub(super) type Chore = Box<dyn Fn() -> bool + Send + Sync>;

/// How long a thread waits for another job, and how often the chore is done meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);
/// A job that waits for a peer that has been silent for this long is stalled. An exporter that is well answers within half
/// of this time, also if it has nothing new. Where this does not hold (the first question for NIXL) or the answer matters too
/// much (COMMIT), the wait is not reported.
const STALLED: Duration = Duration::from_millis(500);

thread_local! {
    /// Whose thread this is: the address of its `WorkersShared`.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

#[derive(Default)]
struct WorkersState {
    jobs: VecDeque<(PeerKey, Job)>,
    shares: Shares,
    threads: usize,
    closed: bool,
}

struct WorkersShared {
    state: Mutex<WorkersState>,
    wake: Condvar,
    ended: Condvar,
    chore: Chore,
}

pub(super) struct Workers(Arc<WorkersShared>);

/// State of a running job.
#[derive(Clone, Copy, PartialEq)]
enum Standing {
    Active,
    /// It waits, and its peer has been silent for a while.
    Stalled,
    /// It was told to end because others need its thread.
    GaveWay,
}

#[derive(Clone, Copy)]
struct PlaceState {
    standing: Standing,
    /// When the job last reported that it heard its peer.
    heard: Option<Instant>,
}

/// A running job's thread, which the job has to give up if its peer is silent and others need it.
pub(super) struct Place {
    workers: Arc<WorkersShared>,
    peer: PeerKey,
    state: Mutex<PlaceState>,
}

impl WorkersShared {
    fn lock(&self) -> MutexGuard<'_, WorkersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes or starts threads for the queued jobs that may run.
    fn call_threads(self: &Arc<Self>, state: &mut WorkersState) -> Result<()> {
        let ready = state.shares.ready();
        if ready > 0 {
            // One that takes a job wakes the next.
            self.wake.notify_one();
        }
        while ready > state.threads - state.shares.running() && state.threads < MOST {
            let shared = self.clone();
            state.threads += 1;
            crate::sys::spawn("cleave-transfer", move || run(&shared)).inspect_err(|_| state.threads -= 1)?;
        }
        Ok(())
    }
}

impl WorkersState {
    fn queue(&mut self, peer: PeerKey, job: Job) {
        self.shares.queued(peer);
        self.jobs.push_back((peer, job));
    }

    /// The job that runs next, if any may run.
    fn take(&mut self) -> Option<(PeerKey, Job)> {
        let turns = self.jobs.iter().enumerate().filter_map(|(at, (peer, _))| Some((self.shares.turn(peer)?, at)));
        let (_, at) = turns.min()?;
        let (peer, job) = self.jobs.remove(at)?;
        self.shares.begun(&peer);
        Some((peer, job))
    }
}

impl Workers {
    pub fn new(chore: Chore) -> Workers {
        Workers(Arc::new(WorkersShared { state: Mutex::default(), wake: Condvar::new(), ended: Condvar::new(), chore }))
    }

    /// Queues a job of a peer, or refuses it with WOULD_BLOCK. Every accepted job runs, also those still queued at close:
    /// they must notice themselves.
    pub fn submit(&self, peer: PeerKey, job: Job) -> Result<()> {
        let mut state = self.0.lock();
        if state.closed {
            bail!(Shutdown, "KV import: the cache is closed");
        }
        if !state.shares.may_queue(&peer) {
            let (all, own) = (state.jobs.len(), state.shares.queued_by(&peer));
            bail!(WouldBlock, "KV import: {all} imports are queued, {own} of them from the same cache");
        }
        state.queue(peer, job);
        let called = self.0.call_threads(&mut state);
        // Without a new thread, those that run already get to it.
        if called.is_err() && state.threads == 0 {
            state.shares.dropped(&peer);
            let job = state.jobs.pop_back();
            // Its drop takes other locks and wakes others.
            drop(state);
            drop(job);
            return called;
        }
        Ok(())
    }

    /// Lets the queued jobs run out and waits for them; on one of these threads, which drops the last of what it woke,
    /// for the others.
    pub fn close(&self) {
        let own = usize::from(OWN.get() == Arc::as_ptr(&self.0) as usize);
        let mut state = self.0.lock();
        state.closed = true;
        self.0.wake.notify_all();
        while state.threads > own {
            state = self.0.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, PlaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails with PEER if the job was told to end.
    pub fn check(&self) -> Result<()> {
        if self.lock().standing == Standing::GaveWay {
            bail!(Peer, "the peer was silent, and imports from other peers need the thread");
        }
        Ok(())
    }

    /// Notes that the job has heard its peer.
    pub fn heard(&self) {
        let mut own = self.lock();
        let now = Instant::now();
        // Called for every piece of a transfer, so the lock of all jobs is spared where it would change next to nothing.
        let lately = own.heard.is_some_and(|heard| now.saturating_duration_since(heard) < STALLED / 10);
        if own.standing == Standing::Active && lately {
            return;
        }
        own.heard = Some(now);
        let mut state = self.workers.lock();
        let was_silent = state.shares.heard(&self.peer, now);
        if own.standing == Standing::Stalled {
            own.standing = Standing::Active;
            state.shares.recovered(&self.peer);
        }
        if was_silent {
            // It may have more threads now.
            let _ = self.workers.call_threads(&mut state);
        }
    }

    /// Notes that the job has waited for its peer for so long. Fails with PEER if it has to end because jobs of other peers
    /// need its thread.
    pub fn note_silence(&self, waited: Duration) -> Result<()> {
        let mut own = self.lock();
        if own.standing == Standing::Active && waited < STALLED {
            return Ok(());
        }
        let mut state = self.workers.lock();
        match own.standing {
            Standing::Active if state.shares.silence(&self.peer, waited, Instant::now()) >= STALLED => {
                own.standing = Standing::Stalled;
                state.shares.stalled(&self.peer);
                // Its place may now count as one that others may have.
                let _ = self.workers.call_threads(&mut state);
            }
            // Another job has heard the peer. A wait that begins anew is no sign of life.
            Standing::Stalled if !state.shares.is_silent(&self.peer) => {
                own.standing = Standing::Active;
                state.shares.recovered(&self.peer);
            }
            Standing::Stalled if state.shares.must_give_way(&self.peer) => {
                own.standing = Standing::GaveWay;
                state.shares.gave_way(&self.peer);
            }
            _ => {}
        }
        drop((state, own));
        self.check()
    }
}

fn run(shared: &Arc<WorkersShared>) {
    OWN.set(Arc::as_ptr(shared) as usize);
    let mut state = shared.lock();
    let mut since = Instant::now();
    loop {
        if let Some((peer, job)) = state.take() {
            // If more may run, the next thread is woken, or started: that may have failed before.
            let _ = shared.call_threads(&mut state);
            drop(state);
            let begun = PlaceState { standing: Standing::Active, heard: None };
            let place = Place { workers: shared.clone(), peer, state: Mutex::new(begun) };
            // A job reports its own panic; this one keeps the thread for the others.
            let _ = catch_unwind(AssertUnwindSafe(|| job(&place)));
            let standing = place.lock().standing;
            state = shared.lock();
            match standing {
                Standing::Active => {}
                Standing::Stalled => state.shares.recovered(&peer),
                Standing::GaveWay => state.shares.left(),
            }
            state.shares.ended(&peer);
            since = Instant::now();
            continue;
        }
        if state.closed {
            break;
        }
        let (woken, waited) = shared.wake.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner);
        state = woken;
        if waited.timed_out() && state.jobs.is_empty() && !state.closed {
            // Only the last thread drops the lock, so that of two threads that end together one sees that it is the last.
            let mut busy = false;
            if state.threads == 1 {
                drop(state);
                busy = (shared.chore)();
                state = shared.lock();
            }
            if since.elapsed() > LINGER && !busy && state.jobs.is_empty() {
                break;
            }
        }
    }
    state.threads -= 1;
    shared.ended.notify_all();
}
