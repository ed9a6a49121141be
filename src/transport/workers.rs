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
    /// Whose thread this is: the address of its `Shared`.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    ended: Condvar,
    chore: Chore,
}

pub(super) struct Workers(Arc<Shared>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workers {
    pub fn new(chore: Chore) -> Workers {
        Workers(Arc::new(Shared { state: Mutex::default(), wake: Condvar::new(), ended: Condvar::new(), chore }))
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

fn run(shared: &Shared) {
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
            let last = state.threads == 1;
            drop(state);
            let busy = last && (shared.chore)();
            state = shared.lock();
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
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    fn workers() -> Workers {
        Workers::new(Box::new(|| false))
    }

    #[test]
    fn closing_runs_what_was_accepted_and_refuses_the_rest() {
        let (workers, ran) = (workers(), Arc::new(AtomicUsize::new(0)));
        for i in 0..3 * MOST {
            let ran = ran.clone();
            let job = move || {
                ran.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(1));
                assert!(i % 7 != 0, "a job that panics takes no other with it");
            };
            workers.submit(Box::new(job)).unwrap();
            assert!(workers.0.lock().threads <= MOST);
        }
        workers.close();
        assert_eq!(ran.load(SeqCst), 3 * MOST);
        let refused = workers.submit(Box::new(|| panic!("never run"))).unwrap_err();
        assert_eq!(refused.status, crate::error::Status::Shutdown);
        workers.close();
    }

    #[test]
    fn a_job_may_close_its_own_pool() {
        let workers = Arc::new(workers());
        let (closed, wait) = std::sync::mpsc::channel();
        let last = workers.clone();
        workers
            .submit(Box::new(move || {
                last.close();
                closed.send(()).unwrap();
            }))
            .unwrap();
        wait.recv_timeout(Duration::from_secs(10)).expect("closing waited for itself");
        workers.close();
    }

    #[test]
    fn threads_go_when_there_is_nothing_to_do() {
        let workers = workers();
        (0..5).for_each(|_| workers.submit(Box::new(|| ())).unwrap());
        let begun = Instant::now();
        while workers.0.lock().threads > 0 {
            assert!(begun.elapsed() < 3 * LINGER, "threads stay");
            std::thread::sleep(LOOK);
        }
    }
}
