//! Failures of engines, and role switches.

use super::engine::Message;
use super::request::{NOWHERE, Request};
use super::run::{Event, Simulation};
use super::switch;

impl Simulation<'_> {
    pub(super) fn fail(&mut self, failed: usize, back_after_ns: Option<u64>) {
        let at = |request: &Request| request.engines.contains(&failed);
        let hit: Vec<usize> = (0..self.requests.len()).filter(|&index| at(&self.requests[index])).collect();
        for index in hit {
            for stage in 0..2 {
                if self.requests[index].engines[stage] == failed {
                    self.requests[index].engines[stage] = NOWHERE;
                    self.requests[index].holds[stage] = Default::default();
                }
                self.leave_inbox(index, stage);
                self.leave(index, stage);
            }
            self.requests[index].attempt += 1;
            self.migrations += 1;
            self.at(self.now_ns + self.deployment.detection_ns, Event::Route { request: index });
        }
        let spec = &self.deployment.pools[self.engines[failed].pool];
        self.engines[failed].fail(spec);
        if let Some(after) = back_after_ns {
            let epoch = self.engines[failed].epoch;
            self.at(self.now_ns + after, Event::Back { engine: failed, epoch });
        }
    }

    /// Removes what a living engine has not taken up yet.
    fn leave_inbox(&mut self, index: usize, stage: usize) {
        let engine = self.requests[index].engines[stage];
        if engine != NOWHERE {
            let of_it = |message: &Message| matches!(message, Message::Tokens(r) | Message::Landed(r) if *r == index);
            self.engines[engine].inbox.retain(|message| !of_it(message));
        }
    }

    pub(super) fn review(&mut self) {
        let Some(switching) = &self.deployment.switching else { return };
        if let Some((engine, role)) = switch::decide(switching, self.deployment, &self.engines) {
            self.engines[engine].role = role;
            self.switches += 1;
            self.wake(engine);
        }
        self.at(self.now_ns + switching.every_ns, Event::Review);
    }
}
