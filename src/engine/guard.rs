//! A request's place in an engine: what makes it end exactly once.

use super::event::Event;
use super::queue::Reservation;
use super::shared::EngineShared;
use crate::error::{Error, Status};
use crate::sequence::FinishReason;
use std::sync::Arc;

/// Counts as an open request, and keeps the queue place of its FINISHED event. However it is lost (a panic on its way
/// through the step thread, say), dropping it ends the request: before the request is accepted without a word, from
/// then on with INTERNAL.
pub(super) struct RequestGuard {
    shared: Arc<EngineShared>,
    pub id: u64,
    pub user_tag: u64,
    accepted: bool,
    reservation: Option<Reservation>,
}

impl RequestGuard {
    pub fn new(shared: Arc<EngineShared>, id: u64, user_tag: u64, reservation: Reservation) -> RequestGuard {
        RequestGuard { shared, id, user_tag, accepted: false, reservation: Some(reservation) }
    }

    /// The host will be told its id: it is owed a FINISHED event from now on.
    pub fn accept(&mut self) {
        self.accepted = true;
    }

    /// The request's last event.
    pub fn finish(mut self, event: Event) {
        if let Some(reservation) = self.reservation.take() {
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
        let Some(reservation) = self.reservation.take() else { return };
        if self.accepted {
            let event = Event::finished(self.user_tag, self.id, FinishReason::Error, Some(Status::Internal));
            self.shared.finish(reservation, event);
        } else {
            self.shared.withdraw(reservation, self.id);
        }
    }
}
