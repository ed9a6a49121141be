//! A request's place in an engine: what makes it end exactly once.

use super::event::Event;
use super::queue::Reservation;
use super::shared::EngineShared;
use crate::error::{Error, Status};
use crate::sequence::FinishReason;
use crate::sys::monotonic_ns;
use std::sync::Arc;

/// Counts as an open request, and keeps the queue place of its FINISHED event. However it is lost (a panic on its way
/// through the step thread, say), dropping it ends the request: before the request is accepted without a word, from
/// then on with INTERNAL.
pub(super) struct RequestGuard {
    shared: Arc<EngineShared>,
    pub id: u64,
    pub user_tag: u64,
    accepted: bool,
    /// When the request was admitted.
    admitted_ns: u64,
    /// When the engine last generated a token for this request; 0 before the first.
    last_token_ns: u64,
    reservation: Option<Reservation>,
}

impl RequestGuard {
    pub fn new(shared: Arc<EngineShared>, id: u64, user_tag: u64, reservation: Reservation) -> RequestGuard {
        let (admitted_ns, reservation) = (monotonic_ns(), Some(reservation));
        RequestGuard { shared, id, user_tag, accepted: false, admitted_ns, last_token_ns: 0, reservation }
    }

    /// The host will be told its id: it is owed a FINISHED event from now on.
    pub fn accept(&mut self) {
        self.accepted = true;
    }

    /// Records that the first step that works on the request began at `now_ns`.
    pub fn scheduled(&self, now_ns: u64) {
        self.shared.counters.histograms.queue_time.observe(now_ns.saturating_sub(self.admitted_ns));
    }

    /// Records a token that was generated at `now_ns`.
    pub fn generated(&mut self, now_ns: u64) {
        let histograms = &self.shared.counters.histograms;
        match std::mem::replace(&mut self.last_token_ns, now_ns) {
            0 => histograms.time_to_first_token.observe(now_ns.saturating_sub(self.admitted_ns)),
            last => histograms.inter_token_latency.observe(now_ns.saturating_sub(last)),
        }
    }

    /// Sends the request's last event.
    pub fn finish(mut self, event: Event) {
        self.send(event);
    }

    fn send(&mut self, event: Event) {
        if let Some(reservation) = self.reservation.take() {
            let took = monotonic_ns().saturating_sub(self.admitted_ns);
            self.shared.counters.histograms.e2e_latency.observe(took);
            self.shared.finish(reservation, event);
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
            self.shared.withdraw(reservation, self.id);
        }
    }
}
