//! Events of one request that the queue had no room for, and how the request ends after them.

use super::event::Event;
use super::queue::{Queue, SpaceWaker};
use crate::error::Error;
use crate::sequence::FinishReason;
use std::collections::VecDeque;
use std::sync::Weak;

/// How a request ends.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// With a result.
    Reason(FinishReason),
    /// With an error.
    Failed(Error),
}

/// Events of a request that wait for room in the queue. The sequence is paused until all are sent.
#[derive(Default)]
pub(super) struct Outbox {
    /// Groups of events that are sent together or not at all.
    groups: VecDeque<Vec<Event>>,
    /// How the request ends once no events wait.
    end: Option<End>,
}

impl Outbox {
    /// Whether events wait.
    pub fn is_stalled(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Sends a group of events, after those that already wait. Returns false if the group has to wait too; `space` is then woken
    /// once there is room.
    pub fn send(&mut self, mut events: Vec<Event>, queue: &Queue, space: &Weak<dyn SpaceWaker>) -> bool {
        let sent = self.groups.is_empty() && queue.push(&mut events, space);
        if !sent {
            self.groups.push_back(events);
        }
        sent
    }

    /// Sends the waiting events. Returns false if the queue has no room for all of them.
    pub fn flush(&mut self, queue: &Queue, space: &Weak<dyn SpaceWaker>) -> bool {
        while let Some(events) = self.groups.front_mut() {
            if !queue.push(events, space) {
                return false;
            }
            self.groups.pop_front();
        }
        true
    }

    /// Returns `end` if no events wait. Otherwise keeps it until they are sent, unless an earlier end is kept already.
    pub fn end(&mut self, end: End) -> Option<End> {
        if !self.is_stalled() {
            return Some(end);
        }
        self.end.get_or_insert(end);
        None
    }

    /// Takes the end that [`Outbox::end`] has kept.
    pub fn take_end(&mut self) -> Option<End> {
        self.end.take()
    }
}
