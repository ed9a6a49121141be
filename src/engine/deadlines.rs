//! The deadlines of an engine's open requests.

use std::collections::BTreeSet;
use std::time::Instant;

/// Request ids by deadline, earliest first. Requests without a deadline are not included.
#[derive(Default)]
pub(super) struct Deadlines(BTreeSet<(Instant, u64)>);

impl Deadlines {
    /// Adds a request, if it has a deadline.
    pub fn add(&mut self, deadline: Option<Instant>, id: u64) {
        self.0.extend(deadline.map(|deadline| (deadline, id)));
    }

    /// Removes a request that was added with this deadline.
    pub fn remove(&mut self, deadline: Option<Instant>, id: u64) {
        if let Some(deadline) = deadline {
            self.0.remove(&(deadline, id));
        }
    }

    /// The next deadline.
    pub fn earliest(&self) -> Option<Instant> {
        self.0.first().map(|entry| entry.0)
    }

    /// Removes and returns the request that is longest overdue at `now`.
    pub fn pop_overdue(&mut self, now: Instant) -> Option<u64> {
        let &(deadline, id) = self.0.first()?;
        if deadline > now {
            return None;
        }
        self.0.pop_first();
        Some(id)
    }
}
