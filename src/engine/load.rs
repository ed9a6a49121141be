//! The load of an engine, for routers and planners: its requests by state, the tokens that its steps compute per second, and the
//! role in effect. The step thread records it; times and counts come as arguments.

use super::Role;
use crate::kv::BlockCounts;

/// Requests of an engine by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Requests in the batch with more than one token to compute before their next token can be sampled.
    pub prefilling: usize,
    /// Other requests in the batch.
    pub decoding: usize,
    /// Accepted requests that are not in the batch, apart from importing ones.
    pub waiting: usize,
    /// Requests whose KV is on its way.
    pub importing: usize,
}

impl Occupancy {
    /// The occupancy at the last step boundary, adjusted to the number of requests that are `open` now: those that arrived since
    /// are waiting. The states always add up to `open`.
    fn with_open(self, open: usize) -> Occupancy {
        let prefilling = self.prefilling.min(open);
        let decoding = self.decoding.min(open - prefilling);
        let importing = self.importing.min(open - prefilling - decoding);
        Occupancy { prefilling, decoding, importing, waiting: open - prefilling - decoding - importing }
    }
}

/// Role of an engine, and the moment since which it is in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleInEffect {
    /// The role.
    pub role: Role,
    /// Number of steps that had run when the role took effect. All later steps are planned under it.
    pub since_step: u64,
    /// Time when it took effect, on the monotonic clock.
    pub since_ns: u64,
    /// Requests that were open at that moment.
    pub occupancy: Occupancy,
}

/// Tokens per second of each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Throughput {
    /// Prompt tokens computed.
    pub prefill: f64,
    /// Tokens generated.
    pub decode: f64,
}

/// Whether an engine accepts requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Openness {
    /// It does.
    Open,
    /// It is draining or being destroyed.
    Draining,
    /// It has failed.
    Failed,
}

/// A reading of an engine's load: its requests, limits, role and recent throughput, and the blocks of its cache.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Time of the reading, on the monotonic clock.
    pub now_ns: u64,
    /// Open requests by state.
    pub occupancy: Occupancy,
    /// Whether the engine accepts requests.
    pub openness: Openness,
    /// Role in effect.
    pub role: RoleInEffect,
    /// Role that the host set last, which takes effect with the next step.
    pub role_requested: Role,
    /// Steps that have run.
    pub steps: u64,
    /// Tokens per second in the last ten seconds.
    pub throughput: Throughput,
    /// Blocks of the cache.
    pub blocks: BlockCounts,
    /// Tokens per block.
    pub block_tokens: usize,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Accepted requests that may wait beyond the running ones.
    pub max_waiting: usize,
    /// Most tokens in a step.
    pub max_batch_tokens: usize,
    /// Most prompt tokens in a step under the role that was set last.
    pub prefill_step_tokens: usize,
}

/// The part of [`Load`] that the step thread records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LoadReading {
    pub occupancy: Occupancy,
    pub role: RoleInEffect,
    pub steps: u64,
    pub throughput: Throughput,
}

/// Load of an engine, as the step thread records it.
pub(super) struct LoadRecord {
    occupancy: Occupancy,
    role: RoleInEffect,
    steps: u64,
    recent: RecentTokens,
}

impl LoadRecord {
    /// The record of an engine that starts with `role` at `now_ns`.
    pub fn new(role: Role, now_ns: u64) -> LoadRecord {
        LoadRecord {
            occupancy: Occupancy::default(),
            role: RoleInEffect { role, since_step: 0, since_ns: now_ns, occupancy: Occupancy::default() },
            steps: 0,
            recent: RecentTokens::new(now_ns),
        }
    }

    /// The engine's requests are in these states.
    pub fn occupied(&mut self, occupancy: Occupancy) {
        self.occupancy = occupancy;
    }

    /// A step ended that computed `prompt` tokens of prompts and generated `generated` tokens.
    pub fn stepped(&mut self, now_ns: u64, prompt: u64, generated: u64) {
        self.steps += 1;
        self.recent.add(now_ns, prompt, generated);
    }

    /// `role` takes effect, while requests are in the states of `occupancy`.
    pub fn role_changed(&mut self, role: Role, now_ns: u64, occupancy: Occupancy) {
        self.role = RoleInEffect { role, since_step: self.steps, since_ns: now_ns, occupancy };
    }

    /// A reading at `now_ns`, while `open` requests are open.
    pub fn read(&self, now_ns: u64, open: usize) -> LoadReading {
        LoadReading {
            occupancy: self.occupancy.with_open(open),
            role: self.role,
            steps: self.steps,
            throughput: self.recent.throughput(now_ns),
        }
    }
}

/// Length of a slot of [`RecentTokens`].
const SLOT_NS: u64 = 1_000_000_000;
/// Number of slots: throughput covers this slot and those before it, 9 to 10 seconds.
const SLOTS: u64 = 10;

/// Tokens of the steps that ended in the last seconds, in slots of one second.
struct RecentTokens {
    started_ns: u64,
    slots: [Slot; SLOTS as usize],
}

/// Tokens of the steps that ended in one second.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// Number of the second on the monotonic clock.
    number: u64,
    prompt: u64,
    generated: u64,
}

impl RecentTokens {
    fn new(now_ns: u64) -> RecentTokens {
        RecentTokens { started_ns: now_ns, slots: [Slot::default(); SLOTS as usize] }
    }

    fn add(&mut self, now_ns: u64, prompt: u64, generated: u64) {
        let number = now_ns / SLOT_NS;
        let slot = &mut self.slots[(number % SLOTS) as usize];
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.prompt += prompt;
        slot.generated += generated;
    }

    /// Tokens per second of wall time. An engine younger than a second counts as one second old, so that its first step
    /// does not look like a burst.
    fn throughput(&self, now_ns: u64) -> Throughput {
        let first = (now_ns / SLOT_NS + 1).saturating_sub(SLOTS);
        let from_ns = self.started_ns.max(first * SLOT_NS);
        let seconds = now_ns.saturating_sub(from_ns).max(SLOT_NS) as f64 / SLOT_NS as f64;
        let recent = self.slots.iter().filter(|slot| slot.number >= first);
        let (prompt, generated) = recent.fold((0, 0), |(p, g), slot| (p + slot.prompt, g + slot.generated));
        Throughput { prefill: prompt as f64 / seconds, decode: generated as f64 / seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = SLOT_NS;

    #[test]
    fn throughput_covers_the_last_seconds_and_ends_with_the_steps() {
        let mut record = LoadRecord::new(Role::Mixed, 100 * S);
        let rates = |record: &LoadRecord, now| record.read(now, 0).throughput;
        assert_eq!(rates(&record, 100 * S), Throughput::default());
        record.stepped(100 * S + S / 2, 30, 4);
        assert_eq!(rates(&record, 100 * S + S / 2), Throughput { prefill: 30.0, decode: 4.0 });
        assert_eq!(rates(&record, 102 * S), Throughput { prefill: 15.0, decode: 2.0 });
        for step in 0..400 {
            record.stepped(102 * S + step * S / 10, 0, 3);
        }
        // 30 tokens a second for 40 seconds; the prompt is long forgotten.
        let Throughput { prefill, decode } = rates(&record, 142 * S - 1);
        assert_eq!(prefill, 0.0);
        assert!((decode - 30.0).abs() < 0.1, "{decode}");
        assert!(rates(&record, 147 * S).decode < 20.0);
        assert_eq!(rates(&record, 152 * S), Throughput::default());
    }

    #[test]
    fn states_add_up_to_the_open_requests() {
        let mut record = LoadRecord::new(Role::Mixed, 0);
        record.occupied(Occupancy { prefilling: 2, decoding: 3, waiting: 1, importing: 4 });
        let states = |open| {
            let Occupancy { prefilling, decoding, waiting, importing } = record.read(1, open).occupancy;
            [prefilling, decoding, importing, waiting]
        };
        assert_eq!(states(10), [2, 3, 4, 1]);
        assert_eq!(states(17), [2, 3, 4, 8]);
        assert_eq!(states(6), [2, 3, 1, 0]);
        assert_eq!(states(0), [0, 0, 0, 0]);
    }
}
