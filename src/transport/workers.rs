//! Threads that pull: as many as there are transfers, up to a limit, and none when there is nothing to do.

use crate::bail;
use crate::error::Result;
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) type Job = Box<dyn FnOnce() + Send>;
/// Looks after things while nothing else is to be done; false once there is nothing to look after.
pub(super) type Chore = Box<dyn Fn() -> bool + Send + Sync>;

/// Transfers that run at once. A peer that does not answer holds some of them for its timeout; the others go on.
const MOST: usize = 128;
/// How long a thread waits for another job, and how often the chore is done meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);

thread_local! {
    /// Whose thread this is: the address of its `WorkersShared`.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

#[derive(Default)]
struct WorkersState {
    jobs: VecDeque<Job>,
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

impl Workers {
    pub fn new(chore: Chore) -> Workers {
        Workers(Arc::new(WorkersShared { state: Mutex::default(), wake: Condvar::new(), ended: Condvar::new(), chore }))
    }

    /// Queues a job. Every accepted job runs, also those still queued at close: they must notice themselves.
    pub fn submit(&self, job: Job) -> Result<()> {
        let mut state = self.0.lock();
        if state.closed {
            bail!(Shutdown, "KV import: the cache is closed");
        }
        if state.idle <= state.jobs.len() && state.threads < MOST {
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
        state.jobs.push_back(job);
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
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            // A job reports its own panic; this one keeps the thread for the others.
            let _ = catch_unwind(AssertUnwindSafe(job));
            state = shared.lock();
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

    #[test]
    fn closing_runs_what_is_queued_beyond_the_limit() {
        let workers = idle_chore();
        let (gate, done) = (Arc::new(RwLock::new(())), Arc::new(AtomicUsize::new(0)));
        let shut = gate.write().unwrap();
        for _ in 0..MOST + 8 {
            let (gate, done) = (gate.clone(), done.clone());
            let job = move || {
                let _open = gate.read().unwrap();
                done.fetch_add(1, SeqCst);
            };
            workers.submit(Box::new(job)).unwrap();
        }
        assert_eq!(workers.0.lock().threads, MOST);
        thread::scope(|scope| {
            let closer = scope.spawn(|| workers.close());
            while !workers.0.lock().closed {
                thread::yield_now();
            }
            let late = workers.submit(Box::new(|| ())).unwrap_err();
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
            workers.submit(Box::new(job)).unwrap();
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
        (0..3).for_each(|_| workers.submit(Box::new(|| ())).unwrap());
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
        workers.submit(Box::new(move || send.send(()).unwrap())).unwrap();
        received.recv_timeout(Duration::from_secs(10)).unwrap();
        workers.close();
    }
}
