//! Failures on demand, for tests. Without the feature `failpoints` this module is one empty inline function.
//!
//! A place in the library that may fail calls `failpoint::hit("engine.step")?`. A test arms the name with `arm`, and the n-th
//! passage from then on fails, panics or waits, once. A test that needs a moment to last arms [`Action::Hold`], waits for
//! `reached`, does its work and calls `let_go`. This works at any speed, unlike a pause of some milliseconds.

use crate::error::Status;

/// Effect of an armed failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Panics.
    Panic,
    /// Fails with this status.
    Fail(Status),
    /// Sleeps for this time.
    Pause(std::time::Duration),
    /// Waits until `let_go` is called for this failpoint.
    Hold,
    /// Raises a signal in this process: SIGKILL, SIGSTOP.
    Signal(i32),
}

/// Passes a failpoint. Without the feature `failpoints` it always succeeds.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) -> crate::error::Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub use armed::{arm, disarm_all, hit, let_go, reached};

#[cfg(feature = "failpoints")]
mod armed {
    use super::Action;
    use crate::error::{Error, Result};
    use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
    use std::time::{Duration, Instant};

    struct Point {
        name: String,
        passages_left: u64,
        action: Action,
    }

    static POINTS: Mutex<Vec<Point>> = Mutex::new(Vec::new());
    /// Names of the failpoints in which a thread waits, once for each such thread.
    static HELD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static HELD_CHANGED: Condvar = Condvar::new();

    fn held() -> MutexGuard<'static, Vec<String>> {
        HELD.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Arms a failpoint: the `nth` passage of `name` from now on (1 is the next) does `action`. If another action is due at the
    /// same passage, this one is done at the passage after it.
    pub fn arm(name: &str, nth: u64, action: Action) {
        let mut points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
        points.push(Point { name: name.to_string(), passages_left: nth.max(1), action });
    }

    /// Disarms every failpoint and releases all threads held in one.
    pub fn disarm_all() {
        POINTS.lock().unwrap_or_else(PoisonError::into_inner).clear();
        held().clear();
        HELD_CHANGED.notify_all();
    }

    /// Waits until `n` threads are held in the failpoint, for at most `within`. Returns false if that time passes.
    pub fn reached(name: &str, n: usize, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut held = held();
        while held.iter().filter(|held| *held == name).count() < n {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            held = HELD_CHANGED.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Releases the threads held in the failpoint, and disarms it.
    pub fn let_go(name: &str) {
        POINTS.lock().unwrap_or_else(PoisonError::into_inner).retain(|point| point.name != name);
        held().retain(|held| held != name);
        HELD_CHANGED.notify_all();
    }

    fn hold(name: &str) {
        let mut held = held();
        held.push(name.to_string());
        HELD_CHANGED.notify_all();
        while held.iter().any(|held| held == name) {
            held = HELD_CHANGED.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Passes a failpoint and does the action that is due there.
    pub fn hit(name: &str) -> Result<()> {
        let action = {
            let mut points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
            for point in points.iter_mut().filter(|p| p.name == name) {
                point.passages_left = point.passages_left.saturating_sub(1);
            }
            let due = points.iter().position(|p| p.name == name && p.passages_left == 0);
            due.map(|i| points.swap_remove(i).action)
        };
        match action {
            None => Ok(()),
            Some(Action::Panic) => panic!("failpoint {name}"),
            Some(Action::Pause(time)) => {
                std::thread::sleep(time);
                Ok(())
            }
            Some(Action::Hold) => {
                hold(name);
                Ok(())
            }
            Some(Action::Signal(signal)) => {
                crate::sys::raise(signal);
                Ok(())
            }
            Some(Action::Fail(status)) => Err(Error::new(status, format!("failpoint {name}"))),
        }
    }
}
