//! The transfer thread of a cache: started by the first job, ended by close.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};

use crate::bail;
use crate::error::Result;
use crate::sync::{Mutex, PoisonError};

pub(crate) type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
enum Thread {
    #[default]
    NotStarted,
    Running(Sender<Job>, JoinHandle<()>),
    Closed,
}

#[derive(Default)]
pub(super) struct Worker {
    thread: Mutex<Thread>,
}

impl Worker {
    /// Queues a job. Every accepted job runs, also those still queued at close: they must notice themselves.
    pub fn submit(&self, job: Job) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Thread::NotStarted = *thread {
            let (sender, jobs) = unbounded::<Job>();
            let run = move || {
                for job in jobs {
                    // A job reports its own panic; this one keeps the thread for the others.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            };
            *thread = Thread::Running(sender, crate::sys::spawn("cleave-transfer", run)?);
        }
        match &*thread {
            Thread::Running(sender, _) if sender.send(job).is_ok() => Ok(()),
            _ => bail!(Shutdown, "KV import: the cache is closed"),
        }
    }

    /// Lets the queued jobs run out and waits for them, unless this is the thread that runs them.
    pub fn close(&self) {
        let thread = {
            let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *thread, Thread::Closed)
        };
        if let Thread::Running(sender, handle) = thread {
            drop(sender);
            if handle.thread().id() != std::thread::current().id() {
                let _ = handle.join();
            }
        }
    }
}
