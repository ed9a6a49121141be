//! A small thread pool. It runs one parallel region at a time, and the calling thread takes part in it.
//!
//! Threads claim chunks of work from a counter. A worker that the operating system preempts therefore delays a region
//! by at most one chunk. A worker that has not entered a region yet is not waited for: the caller closes the region.
//! Waiting starts as a bounded spin, then yields, then sleeps. Between steps all workers sleep.

use super::affinity::bind_current_thread;
use crate::error::Result;
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time that an idle worker spins for the next region before it sleeps.
const SPIN: Duration = Duration::from_micros(60);
/// Time that the caller spins for the last chunk before it yields its core.
const PATIENCE: Duration = Duration::from_micros(20);

type Job = *const (dyn Fn(usize) + Sync);

/// Bit of `state` that is set while workers may enter the region. The bits below count the workers inside; the bits
/// above hold the number of the region.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

struct PoolShared {
    state: AtomicU64,
    /// Written only while no region is open and no worker is inside.
    job: UnsafeCell<Option<Job>>,
    sleeping: AtomicUsize,
    waiting: AtomicBool,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    done: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the caller writes `job` only while the region is closed and empty, and workers read it only inside the
// region. `state` orders the two.
unsafe impl Sync for PoolShared {}
// SAFETY: the job pointer is dereferenced only inside a region, while the caller keeps the job alive.
unsafe impl Send for PoolShared {}

impl PoolShared {
    fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_panic(&self, payload: Box<dyn Any + Send>) {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
    }
}

/// The threads of one backend: the calling thread and `threads - 1` workers.
pub struct Pool {
    shared: Arc<PoolShared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the workers and binds them to `cpus` if given. The caller binds itself with [`bind_current_thread`].
    pub fn new(threads: usize, cpus: Option<&[usize]>) -> Result<Pool> {
        let shared = Arc::new(PoolShared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            sleeping: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, workers: Vec::new() };
        for index in 1..threads.max(1) {
            let shared = pool.shared.clone();
            let cpus = cpus.map(<[usize]>::to_vec);
            pool.workers.push(crate::sys::spawn(&format!("cleave-cpu-{index}"), move || {
                if let Some(cpus) = cpus {
                    // The engine tries the same set on its own thread. A failure here only costs speed.
                    let _ = bind_current_thread(&cpus);
                }
                work(&shared, index);
            })?);
        }
        Ok(pool)
    }

    /// Number of threads, including the caller.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread)` on the caller (thread 0) and on every worker that enters before the caller is done. The job
    /// must take its work from a shared counter, since any worker may be absent. Returns when all threads have left the
    /// region. A panic on any thread is resumed here.
    pub fn region(&mut self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let shared = &*self.shared;
        // SAFETY: this erases a lifetime. The job is called only inside the region, which ends before this function
        // returns or unwinds. No thread reads `job` now, because the previous region is closed and empty.
        unsafe { *shared.job.get() = Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job)) };
        let number = (shared.state.load(SeqCst) >> 32).wrapping_add(1);
        shared.state.store(number << 32 | OPEN, SeqCst);
        if shared.sleeping.load(SeqCst) > 0 {
            drop(shared.guard());
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        shared.state.fetch_and(!OPEN, SeqCst);
        self.wait();
        let others = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        if let Some(payload) = others {
            resume_unwind(payload);
        }
    }

    /// Calls `body(thread, range)` on ranges of at most `grain` items that together cover `0..items`.
    pub fn chunks(&mut self, items: usize, grain: usize, body: impl Fn(usize, Range<usize>) + Sync) {
        let grain = grain.max(1);
        if items <= grain {
            if items > 0 {
                body(0, 0..items);
            }
            return;
        }
        let next = AtomicUsize::new(0);
        self.region(&|thread| {
            while let Some(range) = claim(&next, items, grain) {
                body(thread, range);
            }
        });
    }

    /// Waits until no worker is inside the closed region.
    fn wait(&self) {
        let shared = &*self.shared;
        let inside = || shared.state.load(SeqCst) & INSIDE != 0;
        let begin = Instant::now();
        while inside() {
            let waited = begin.elapsed();
            if waited < PATIENCE {
                pause();
            } else if waited < 4 * PATIENCE {
                std::thread::yield_now();
            } else {
                let mut guard = shared.guard();
                shared.waiting.store(true, SeqCst);
                while inside() {
                    guard = shared.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                shared.waiting.store(false, SeqCst);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(self.shared.guard());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// Claims the next range of at most `grain` items, out of `items`. None when all are claimed.
pub(super) fn claim(next: &AtomicUsize, items: usize, grain: usize) -> Option<Range<usize>> {
    let start = next.fetch_add(grain, SeqCst);
    (start < items).then(|| start..(start + grain).min(items))
}

fn work(shared: &PoolShared, index: usize) {
    let mut seen = 0;
    while let Some(number) = next_region(shared, seen) {
        seen = number;
        if !enter(shared, number) {
            continue;
        }
        // SAFETY: while the region is open, the job is set and alive.
        let job = unsafe { &*(*shared.job.get()).expect("an open region has a job") };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(index))) {
            shared.keep_panic(payload);
        }
        let before = shared.state.fetch_sub(1, SeqCst);
        if before & (OPEN | INSIDE) == 1 && shared.waiting.load(SeqCst) {
            drop(shared.guard());
            shared.done.notify_all();
        }
    }
}

/// Enters region `number`, counting this worker as inside. False if the region was closed in the meantime.
fn enter(shared: &PoolShared, number: u64) -> bool {
    let join = |state: u64| (state >> 32 == number && state & OPEN != 0).then_some(state + 1);
    shared.state.fetch_update(SeqCst, SeqCst, join).is_ok()
}

/// Waits for a region whose number is not `seen`. None when the pool is dropped.
fn next_region(shared: &PoolShared, seen: u64) -> Option<u64> {
    let number = || shared.state.load(SeqCst) >> 32;
    let stop = || shared.stop.load(SeqCst);
    let begin = Instant::now();
    while begin.elapsed() < SPIN {
        for _ in 0..8 {
            if stop() {
                return None;
            }
            if number() != seen {
                return Some(number());
            }
            pause();
        }
    }
    let mut guard = shared.guard();
    shared.sleeping.fetch_add(1, SeqCst);
    while number() == seen && !stop() {
        guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    shared.sleeping.fetch_sub(1, SeqCst);
    (!stop()).then(number)
}

fn pause() {
    std::hint::spin_loop();
}
