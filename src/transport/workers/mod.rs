//! Threads that pull: as many as there are transfers, up to a limit, and none when there is nothing to do.
//!
//! Each job belongs to a peer, and [`shares`] decides whose jobs run. A job reports through its [`Place`] how long its peer
//! has been silent, so that peers that do not answer hold up nobody else.

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
/// A job whose peer has been silent for this long is stalled. An exporter that is well answers every question within half
/// of this time, also if it has nothing new.
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
    /// Its peer has been silent for a while.
    Stalled,
    /// It was told to end because others need its thread.
    GaveWay,
}

/// A running job's thread, which the job has to give up if its peer is silent and others need it.
pub(super) struct Place {
    workers: Arc<WorkersShared>,
    peer: PeerKey,
    standing: Mutex<Standing>,
}

impl WorkersShared {
    fn lock(&self) -> MutexGuard<'_, WorkersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes or starts threads for the queued jobs that may run.
    fn call_threads(self: &Arc<Self>, state: &mut WorkersState) -> Result<()> {
        self.wake.notify_one();
        while state.shares.ready() > state.threads - state.shares.running() && state.threads < MOST {
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

    /// The first job that may run.
    fn take(&mut self) -> Option<(PeerKey, Job)> {
        let at = self.jobs.iter().position(|(peer, _)| self.shares.may_run(peer))?;
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
            state.jobs.pop_back();
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
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how long the peer has been silent: zero if it is not waited for. Fails with PEER if the job has to end because
    /// jobs of other peers need its thread.
    pub fn note_silence(&self, silence: Duration) -> Result<()> {
        let stalled = silence >= STALLED;
        let mut standing = self.standing();
        if *standing == Standing::Active && !stalled {
            return Ok(());
        }
        let mut state = self.workers.lock();
        match (*standing, stalled) {
            (Standing::Active, _) => {
                *standing = Standing::Stalled;
                state.shares.stalled(&self.peer);
                // Its place may now count as one that others may have.
                let _ = self.workers.call_threads(&mut state);
            }
            (Standing::Stalled, false) => {
                *standing = Standing::Active;
                state.shares.recovered(&self.peer);
            }
            (Standing::Stalled, true) if state.shares.must_give_way(&self.peer) => {
                *standing = Standing::GaveWay;
                state.shares.gave_way(&self.peer);
            }
            _ => {}
        }
        if *standing == Standing::GaveWay {
            bail!(Peer, "the peer was silent, and imports from other peers need the thread");
        }
        Ok(())
    }
}

fn run(shared: &Arc<WorkersShared>) {
    OWN.set(Arc::as_ptr(shared) as usize);
    let mut state = shared.lock();
    let mut since = Instant::now();
    loop {
        if let Some((peer, job)) = state.take() {
            drop(state);
            let place = Place { workers: shared.clone(), peer, standing: Mutex::new(Standing::Active) };
            // A job reports its own panic; this one keeps the thread for the others.
            let _ = catch_unwind(AssertUnwindSafe(|| job(&place)));
            let standing = *place.standing();
            state = shared.lock();
            match standing {
                Standing::Active => {}
                Standing::Stalled => state.shares.recovered(&peer),
                Standing::GaveWay => state.shares.left(&peer),
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
