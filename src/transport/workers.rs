//! Threads that pull: as many as there are transfers, up to a limit, and none when there is nothing to do.
//!
//! Each job belongs to a peer. A peer that does not answer holds its threads for the peer timeout, so no peer may have
//! more than a quarter of the threads that it leaves free, and the same goes for places in the queue: a dozen peers that
//! do not answer leave enough for others.

use crate::bail;
use crate::error::Result;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) type Job = Box<dyn FnOnce() + Send>;
/// Work for a thread that has nothing else to do; it returns false once there is nothing to look after.
pub(super) type Chore = Box<dyn Fn() -> bool + Send + Sync>;
/// Who a job waits for: the epoch of the exporting cache.
pub(super) type PeerKey = [u8; 16];

/// The most transfers that run at once.
const MOST: usize = 256;
/// The most transfers that wait for a thread.
const MOST_QUEUED: usize = 2048;
/// A peer may have at most one part in so many of what it leaves free, but always one if anything is.
const PART: usize = 4;
/// How long a thread waits for another job, and how often the chore is done meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);

thread_local! {
    /// Whose thread this is: the address of its `WorkersShared`.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// Jobs of one peer.
#[derive(Clone, Copy, Default)]
struct Load {
    queued: usize,
    running: usize,
}

#[derive(Default)]
struct WorkersState {
    jobs: VecDeque<(PeerKey, Job)>,
    loads: HashMap<PeerKey, Load>,
    /// Jobs that are running.
    busy: usize,
    threads: usize,
    idle: usize,
    closed: bool,
}

struct WorkersShared {
    state: Mutex<WorkersState>,
    wake: Condvar,
    ended: Condvar,
    chore: Chore,
}

pub(super) struct Workers(Arc<WorkersShared>);

impl WorkersShared {
    fn lock(&self) -> MutexGuard<'_, WorkersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkersState {
    fn load(&self, peer: &PeerKey) -> Load {
        self.loads.get(peer).copied().unwrap_or_default()
    }

    /// True if another job of this peer may run now.
    fn may_run(&self, peer: &PeerKey) -> bool {
        self.load(peer).running < (MOST - self.busy).div_ceil(PART)
    }

    fn queue(&mut self, peer: PeerKey, job: Job) {
        self.loads.entry(peer).or_default().queued += 1;
        self.jobs.push_back((peer, job));
    }

    /// The first job that may run.
    fn take(&mut self) -> Option<(PeerKey, Job)> {
        let at = self.jobs.iter().position(|(peer, _)| self.may_run(peer))?;
        let (peer, job) = self.jobs.remove(at)?;
        self.busy += 1;
        let load = self.loads.entry(peer).or_default();
        load.queued -= 1;
        load.running += 1;
        Some((peer, job))
    }

    fn ended(&mut self, peer: &PeerKey) {
        self.busy -= 1;
        if let Some(load) = self.loads.get_mut(peer) {
            load.running -= 1;
            if load.queued + load.running == 0 {
                self.loads.remove(peer);
            }
        }
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
        let queued = state.load(&peer).queued;
        if queued >= (MOST_QUEUED - state.jobs.len()).div_ceil(PART) {
            let all = state.jobs.len();
            bail!(WouldBlock, "KV import: {all} imports are queued, {queued} of them from the same cache");
        }
        let eligible =
            state.may_run(&peer) && state.idle <= state.jobs.iter().filter(|(p, _)| state.may_run(p)).count();
        if eligible && state.threads < MOST {
            let shared = self.0.clone();
            state.threads += 1;
            let started = crate::sys::spawn("cleave-transfer", move || run(&shared));
            if let Err(error) = started {
                state.threads -= 1;
                // Those that run already will get to it.
                if state.threads == 0 {
                    return Err(error);
                }
            }
        }
        state.queue(peer, job);
        self.0.wake.notify_one();
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

fn run(shared: &WorkersShared) {
    OWN.set(std::ptr::from_ref(shared) as usize);
    let mut state = shared.lock();
    let mut since = Instant::now();
    loop {
        if let Some((peer, job)) = state.take() {
            drop(state);
            // A job reports its own panic; this one keeps the thread for the others.
            let _ = catch_unwind(AssertUnwindSafe(job));
            state = shared.lock();
            state.ended(&peer);
            since = Instant::now();
            continue;
        }
        if state.closed {
            break;
        }
        state.idle += 1;
        let (woken, waited) = shared.wake.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner);
        state = woken;
        state.idle -= 1;
        if waited.timed_out() && state.jobs.is_empty() && !state.closed {
            // Of two that would end at once one must see that it is the last: the lock is dropped by the last only.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use std::sync::{RwLock, mpsc};
    use std::thread;

    fn idle_chore() -> Workers {
        Workers::new(Box::new(|| false))
    }

    fn key(peer: usize) -> PeerKey {
        (peer as u128).to_le_bytes()
    }

    /// Queues jobs of a peer that wait for the gate, until one is refused or there are `n`. Says how many there are.
    fn stuck(workers: &Workers, peer: usize, n: usize, gate: &Arc<RwLock<()>>) -> usize {
        let stuck = |_: &usize| {
            let gate = gate.clone();
            let queued = workers.submit(key(peer), Box::new(move || drop(gate.read())));
            queued.inspect_err(|error| assert_eq!(error.status, Status::WouldBlock, "{error}")).is_ok()
        };
        (0..n).take_while(stuck).count()
    }

    #[test]
    fn a_peer_that_does_not_answer_leaves_threads_and_places_to_others() {
        let workers = idle_chore();
        let gate = Arc::new(RwLock::new(()));
        let shut = gate.write().unwrap();
        // All that one peer can have: a part of the threads, and of the places.
        let one = stuck(&workers, 1, 20_000, &gate);
        assert!((MOST / 8 + MOST_QUEUED / 8..MOST / 4 + MOST_QUEUED / 4).contains(&one), "{one}");
        let runs = |peer: usize| {
            let (send, received) = mpsc::channel();
            workers.submit(key(peer), Box::new(move || send.send(()).unwrap())).unwrap();
            received.recv_timeout(Duration::from_secs(60)).expect("it runs while others are stuck");
        };
        runs(2);
        // The same with a dozen of them.
        for peer in 3..15 {
            stuck(&workers, peer, 20_000, &gate);
        }
        runs(2);
        let state = workers.0.lock();
        assert!(state.threads <= MOST && state.jobs.len() < MOST_QUEUED, "{} queued", state.jobs.len());
        drop(state);
        drop(shut);
        workers.close();
        let state = workers.0.lock();
        assert_eq!((state.busy, state.threads, state.loads.len(), state.jobs.len()), (0, 0, 0, 0));
    }

    #[test]
    fn closing_runs_what_is_queued_beyond_the_limit() {
        let workers = idle_chore();
        let (gate, done) = (Arc::new(RwLock::new(())), Arc::new(AtomicUsize::new(0)));
        let shut = gate.write().unwrap();
        for peer in 0..MOST + 8 {
            let (gate, done) = (gate.clone(), done.clone());
            let job = move || {
                let _open = gate.read().unwrap();
                done.fetch_add(1, SeqCst);
            };
            workers.submit(key(peer), Box::new(job)).unwrap();
        }
        assert_eq!(workers.0.lock().threads, MOST);
        thread::scope(|scope| {
            let closer = scope.spawn(|| workers.close());
            while !workers.0.lock().closed {
                thread::yield_now();
            }
            let late = workers.submit(key(0), Box::new(|| ())).unwrap_err();
            assert_eq!((late.status, done.load(SeqCst)), (Status::Shutdown, 0));
            assert!(!closer.is_finished());
            drop(shut);
            closer.join().unwrap();
        });
        assert_eq!((done.load(SeqCst), workers.0.lock().threads), (MOST + 8, 0));
        workers.close();
    }

    #[test]
    fn a_panicking_job_takes_nothing_with_it() {
        let workers = idle_chore();
        let (send, received) = mpsc::channel();
        for n in 0..4 {
            let send = send.clone();
            let job = move || {
                send.send(n).unwrap();
                assert!(n % 2 == 1, "on purpose");
            };
            workers.submit(key(0), Box::new(job)).unwrap();
        }
        let mut ran: Vec<i32> = (0..4).map(|_| received.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        ran.sort_unstable();
        assert_eq!(ran, [0, 1, 2, 3]);
        workers.close();
        assert_eq!(workers.0.lock().threads, 0);
    }

    #[test]
    fn threads_end_when_there_is_nothing_to_look_after() {
        let busy = Arc::new(AtomicBool::new(true));
        let chore = busy.clone();
        let workers = Workers::new(Box::new(move || chore.load(SeqCst)));
        (0..3).for_each(|_| workers.submit(key(0), Box::new(|| ())).unwrap());
        let within = |time: Duration, threads: usize| {
            let until = Instant::now() + time;
            while workers.0.lock().threads != threads {
                assert!(Instant::now() < until, "{} threads", workers.0.lock().threads);
                thread::sleep(LOOK / 10);
            }
        };
        within(LINGER + Duration::from_secs(10), 1);
        thread::sleep(LINGER + 2 * LOOK);
        assert_eq!(workers.0.lock().threads, 1, "the last one does the chore");
        busy.store(false, SeqCst);
        within(Duration::from_secs(10), 0);
        let (send, received) = mpsc::channel();
        workers.submit(key(0), Box::new(move || send.send(()).unwrap())).unwrap();
        received.recv_timeout(Duration::from_secs(10)).unwrap();
        workers.close();
    }
}
