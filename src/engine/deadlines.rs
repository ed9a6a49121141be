//! The deadlines of an engine's open requests.

use std::collections::BTreeSet;
use std::time::Instant;

/// Request ids by deadline, earliest first. A request without one is not in it.
#[derive(Default)]
pub(super) struct Deadlines(BTreeSet<(Instant, u64)>);

impl Deadlines {
    pub fn add(&mut self, deadline: Option<Instant>, id: u64) {
        self.0.extend(deadline.map(|deadline| (deadline, id)));
    }

    pub fn remove(&mut self, deadline: Option<Instant>, id: u64) {
        if let Some(deadline) = deadline {
            self.0.remove(&(deadline, id));
        }
    }

    pub fn earliest(&self) -> Option<Instant> {
        self.0.first().map(|entry| entry.0)
    }

    /// Takes out the request that has been overdue longest at `now`, if there is one.
    pub fn pop_overdue(&mut self, now: Instant) -> Option<u64> {
        let &(deadline, id) = self.0.first()?;
        if deadline > now {
            return None;
        }
        self.0.pop_first();
        Some(id)
    }
}
