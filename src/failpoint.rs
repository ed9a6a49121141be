//! Failures on demand, for tests. Without the feature `failpoints` there is nothing here but an empty inline
//! function.
//!
//! A place in the library that may fail calls `failpoint::hit("engine.step")?`; a test arms the name with
//! [`arm`], and the n-th passage from then on fails or panics, once.

use crate::error::Status;

/// What an armed failpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Panic,
    Fail(Status),
    /// Sleeps for so long.
    Pause(std::time::Duration),
    /// Raises a signal in this process: SIGKILL, SIGSTOP.
    Signal(i32),
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) -> crate::error::Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub use armed::{arm, disarm_all, hit};

#[cfg(feature = "failpoints")]
mod armed {
    use super::Action;
    use crate::error::{Error, Result};
    use std::sync::{Mutex, PoisonError};

    struct Point {
        name: String,
        passages_left: u64,
        action: Action,
    }

    static POINTS: Mutex<Vec<Point>> = Mutex::new(Vec::new());

    /// The `nth` passage of `name` from now on (1 is the next) does `action`; if that one is somebody else's, the one
    /// after it.
    pub fn arm(name: &str, nth: u64, action: Action) {
        let mut points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
        points.push(Point { name: name.to_string(), passages_left: nth.max(1), action });
    }

    pub fn disarm_all() {
        POINTS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

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
            Some(Action::Signal(signal)) => {
                crate::sys::raise(signal);
                Ok(())
            }
            Some(Action::Fail(status)) => Err(Error::new(status, format!("failpoint {name}"))),
        }
    }
}
