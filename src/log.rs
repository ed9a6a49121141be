//! The log: a level filter, a bounded queue and a thread that calls the sink.
//!
//! Writing never blocks. When the queue is full, messages are dropped and counted, and the log thread reports the count
//! once it has caught up. Without a sink there is no thread and no queue.

use crate::error::Result;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

/// Messages that wait for the sink before further ones are dropped.
const QUEUE: usize = 1024;

/// Importance of a message. The numbers are `CLEAVE_LOG_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// An engine or a transfer has failed, or a panic was caught.
    Error = 1,
    /// A function works, but slower or with less than was asked for.
    Warn = 2,
    /// An object was created or destroyed.
    Info = 3,
    /// A request ended, or a call failed.
    Debug = 4,
    /// A step ran.
    Trace = 5,
}

/// Function that receives the level, target and text of each message. Only the log thread calls it.
pub type Sink = Box<dyn FnMut(Level, &str, &str) + Send>;

struct Record {
    level: Level,
    target: &'static str,
    text: String,
}

static MAX_LEVEL: AtomicI32 = AtomicI32::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);
static SENDER: RwLock<Option<Sender<Record>>> = RwLock::new(None);
static THREAD: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

thread_local! {
    static IS_LOG_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Whether a message of this level reaches the sink. Costs one relaxed load.
#[inline]
pub fn enabled(level: Level) -> bool {
    level as i32 <= MAX_LEVEL.load(Relaxed)
}

/// Queues a message. Use the macro `log!`, which formats only messages that are enabled.
pub fn write(level: Level, target: &'static str, text: String) {
    let sent = match SENDER.try_read() {
        Ok(sender) => match sender.as_ref() {
            Some(sender) => sender.try_send(Record { level, target, text }).is_ok(),
            None => return,
        },
        Err(_) => false,
    };
    if !sent {
        DROPPED.fetch_add(1, Relaxed);
    }
}

/// Replaces the sink. The old sink first receives all messages queued for it, and its thread ends; then the new one starts.
/// None turns the log off.
pub fn set(max_level: i32, sink: Option<Sink>) -> Result<()> {
    if IS_LOG_THREAD.get() {
        crate::bail!(InvalidArgument, "the log sink cannot replace itself: cleave_log_set was called from it");
    }
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    MAX_LEVEL.store(0, Relaxed);
    drop(SENDER.write().unwrap_or_else(PoisonError::into_inner).take());
    if let Some(old) = thread.take() {
        let _ = old.join();
    }
    if let Some(sink) = sink.filter(|_| max_level > 0) {
        DROPPED.store(0, Relaxed);
        let (sender, receiver) = bounded(QUEUE);
        *thread = Some(crate::sys::spawn("cleave-log", move || run(&receiver, sink))?);
        *SENDER.write().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        MAX_LEVEL.store(max_level, Relaxed);
    }
    Ok(())
}

fn run(records: &Receiver<Record>, mut sink: Sink) {
    IS_LOG_THREAD.set(true);
    for record in records {
        sink(record.level, record.target, &record.text);
        if records.is_empty() {
            let dropped = DROPPED.swap(0, Relaxed);
            if dropped > 0 {
                sink(Level::Warn, "log", &format!("{dropped} messages dropped: the log sink is too slow"));
            }
        }
    }
}

/// Writes a message, if its level is enabled: `log!(Info, "engine", "loaded {n} layers")` gives the level, the target (a part of
/// the library) and a format with its arguments.
#[macro_export]
macro_rules! log {
    ($level:ident, $target:literal, $($text:tt)*) => {
        if $crate::log::enabled($crate::log::Level::$level) {
            $crate::log::write($crate::log::Level::$level, $target, format!($($text)*));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Barrier};

    /// A single test, because the process has only one sink.
    #[test]
    fn filters_flushes_and_counts_what_it_drops() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = |seen: &Arc<Mutex<Vec<String>>>| -> Sink {
            let seen = seen.clone();
            Box::new(move |level, target, text| seen.lock().unwrap().push(format!("{level:?} {target} {text}")))
        };
        set(Level::Info as i32, Some(sink(&seen))).unwrap();
        crate::log!(Info, "log-test", "kept {}", 1);
        crate::log!(Debug, "log-test", "filtered");
        set(0, None).unwrap();
        crate::log!(Error, "log-test", "after the sink was taken away");
        let mine = |seen: &Mutex<Vec<String>>| -> Vec<String> {
            seen.lock().unwrap().iter().filter(|s| s.contains("log")).cloned().collect()
        };
        assert_eq!(mine(&seen), ["Info log-test kept 1"]);

        // A sink that stands still: the queue fills, writers go on.
        let gate = Arc::new(Barrier::new(2));
        let mut held = Some(gate.clone());
        let mut inner = sink(&seen);
        let slow = Box::new(move |level, target: &str, text: &str| {
            if let Some(gate) = held.take() {
                gate.wait();
            }
            inner(level, target, text);
        });
        set(Level::Trace as i32, Some(slow)).unwrap();
        for i in 0..QUEUE + 100 {
            crate::log!(Trace, "log-test", "{i}");
        }
        gate.wait();
        set(0, None).unwrap();
        let text = mine(&seen).pop().unwrap();
        assert!(text.starts_with("Warn log ") && text.contains("messages dropped"), "{text}");
    }

    #[test]
    fn the_sink_cannot_replace_itself() {
        IS_LOG_THREAD.set(true);
        assert_eq!(set(0, None).unwrap_err().status, crate::error::Status::InvalidArgument);
        IS_LOG_THREAD.set(false);
    }
}
