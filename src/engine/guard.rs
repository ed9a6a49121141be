//! The guard of a request: it makes each accepted request end with exactly one FINISHED event.

use super::counters::Counters;
use super::event::Event;
use super::queue::Reservation;
use crate::error::{Error, Status};
use crate::sequence::FinishReason;
use crate::sys::monotonic_ns;
use std::sync::Arc;

/// The engine that a request is open on, as the request's guard sees it.
pub(super) trait RequestOwner: Send + Sync {
    /// The engine's counters.
    fn counters(&self) -> &Counters;

    /// Sends the last event of a request. Whoever sees the event finds the request closed.
    fn finish(&self, reservation: Reservation, event: Event);

    /// Takes back the admission of a request that was never accepted. No event names that request.
    fn withdraw(&self, reservation: Reservation, id: u64);
}

/// Counts as one open request and holds the queue place reserved for its FINISHED event. A guard that is dropped instead of
/// finished, for example in a panic, still ends its request: silently before the request is accepted, with INTERNAL after that.
pub(super) struct RequestGuard {
    owner: Arc<dyn RequestOwner>,
    /// The request's id.
    pub id: u64,
    /// The host's tag, repeated in each event of the request.
    pub user_tag: u64,
    accepted: bool,
    /// When the request was admitted.
    admitted_ns: u64,
    /// When the engine last generated a token for this request; 0 before the first.
    last_token_ns: u64,
    reservation: Option<Reservation>,
}

impl RequestGuard {
    pub fn new(owner: Arc<dyn RequestOwner>, id: u64, user_tag: u64, reservation: Reservation) -> RequestGuard {
        let (admitted_ns, reservation) = (monotonic_ns(), Some(reservation));
        RequestGuard { owner, id, user_tag, accepted: false, admitted_ns, last_token_ns: 0, reservation }
    }

    /// Marks the request as accepted: the host learns its id, and is owed a FINISHED event from now on.
    pub fn accept(&mut self) {
        self.accepted = true;
    }

    /// Records that the first step that works on the request began at `now_ns`.
    pub fn scheduled(&self, now_ns: u64) {
        self.owner.counters().scheduled(now_ns.saturating_sub(self.admitted_ns));
    }

    /// Records a token that was generated at `now_ns`.
    pub fn generated(&mut self, now_ns: u64) {
        let counters = self.owner.counters();
        match std::mem::replace(&mut self.last_token_ns, now_ns) {
            0 => counters.first_token(now_ns.saturating_sub(self.admitted_ns)),
            last => counters.next_token(now_ns.saturating_sub(last)),
        }
    }

    /// Sends the request's last event.
    pub fn finish(mut self, event: Event) {
        self.send(event);
    }

    fn send(&mut self, event: Event) {
        if let Some(reservation) = self.reservation.take() {
            let took = monotonic_ns().saturating_sub(self.admitted_ns);
            self.owner.counters().finished(took);
            self.owner.finish(reservation, event);
        }
    }

    /// Ends the request with an error.
    pub fn fail(self, error: &Error) {
        crate::log!(Debug, "engine", "request {:#x} ended: {error}", self.id);
        let event = Event::finished(self.user_tag, self.id, FinishReason::Error, Some(error.status));
        self.finish(event);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if self.accepted {
            self.send(Event::finished(self.user_tag, self.id, FinishReason::Error, Some(Status::Internal)));
        } else if let Some(reservation) = self.reservation.take() {
            self.owner.withdraw(reservation, self.id);
        }
    }
}
