//! Locks, atomics and clock of `kv`. Normally these are std's. In unit tests with the feature `shuttle` they belong to a model
//! checker, which decides at every step which thread runs, and to a clock that only the test moves.

// `Arc` stays std's: no rule depends on when a count changes, and std's wakers come from outside.
pub use std::sync::{Arc, PoisonError};

#[cfg(not(all(test, feature = "shuttle")))]
pub use {
    std::sync::{Condvar, Mutex, MutexGuard, atomic},
    std::time::Instant,
};

#[cfg(all(test, feature = "shuttle"))]
pub use {
    ::shuttle::sync::{Condvar, Mutex, MutexGuard, atomic},
    model::{Instant, advance, reset_clock},
};

/// Whether a model checker runs the threads: a cache then starts none of its own.
pub const MODELLED: bool = cfg!(all(test, feature = "shuttle"));

#[cfg(all(test, feature = "shuttle"))]
mod model {
    use std::cell::Cell;
    use std::ops::Add;
    use std::time::Duration;

    // All threads of one schedule run on one thread of the system, so tests that run side by side have separate clocks.
    thread_local!(static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) });

    /// The part of `std::time::Instant` that `kv` uses.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Instant(Duration);

    impl Instant {
        pub fn now() -> Instant {
            Instant(NOW.get())
        }

        pub fn saturating_duration_since(self, earlier: Instant) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    impl Add<Duration> for Instant {
        type Output = Instant;

        fn add(self, time: Duration) -> Instant {
            Instant(self.0 + time)
        }
    }

    pub fn advance(time: Duration) {
        NOW.set(NOW.get() + time);
    }

    pub fn reset_clock() {
        NOW.set(Duration::ZERO);
    }
}
