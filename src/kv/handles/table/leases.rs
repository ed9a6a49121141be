//! The ends of all leases, in order, and when the timer that ends them sleeps until.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::sync::Instant;

/// Longest lease; longer ones are cut to it. The C API counts milliseconds in 32 bits.
pub const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

#[derive(Default)]
pub struct Leases {
    /// End of each lease, with the slot of its handle.
    ends: BTreeSet<(Instant, u32)>,
    /// Time until which the lease timer sleeps. It is not woken when a lease ends early, so a steady flow of handles wakes
    /// it once per lease.
    armed: Option<Instant>,
    /// The timer must be woken, because a lease that ends before `armed` has begun.
    poke: bool,
}

impl Leases {
    /// Begins a lease and returns its end.
    pub fn begin(&mut self, slot: u32, lease: Duration) -> Instant {
        let end = Instant::now() + lease.min(LONGEST);
        self.ends.insert((end, slot));
        self.poke |= self.armed.is_none_or(|armed| end < armed);
        end
    }

    /// Forgets a lease that [`Leases::begin`] said would end at `end`.
    pub fn forget(&mut self, slot: u32, end: Instant) {
        self.ends.remove(&(end, slot));
    }

    /// Slot of a handle whose lease is over by `now`.
    pub fn over(&self, now: Instant) -> Option<u32> {
        self.ends.first().filter(|(end, _)| *end <= now).map(|&(_, slot)| slot)
    }

    /// Notes that the timer goes to sleep until the first lease ends.
    pub fn arm(&mut self) {
        self.armed = self.ends.first().map(|&(end, _)| end);
    }

    /// Time until which the timer sleeps; None if until it is woken.
    pub fn armed(&self) -> Option<Instant> {
        self.armed
    }

    /// Whether the timer must be woken. True once.
    pub fn take_poke(&mut self) -> bool {
        std::mem::take(&mut self.poke)
    }

    pub fn has(&self, slot: u32, end: Instant) -> bool {
        self.ends.contains(&(end, slot))
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }
}
