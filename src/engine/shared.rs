//! State shared by the host's threads and the step thread. Host calls touch nothing else, so none of them waits for a step.

use super::budget::Budget;
use super::counters::Counters;
use super::engine_share::EngineShare;
use super::event::Event;
use super::guard::{RequestGuard, RequestOwner};
use super::inbox::Inbox;
use super::options::EngineLimits;
use super::prepare::Bounds;
use super::queue::{Queue, Reservation, SpaceWaker};
use super::{ModelCache, Role};
use crate::error::Result;
use crate::sys::monotonic_ns;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Most prompt tokens in a step of a decode engine.
pub const DECODE_ROLE_PREFILL_TOKENS: usize = 64;

/// The part of an engine that all threads see.
pub(super) struct EngineShared {
    /// The cache that the engine runs over.
    pub cache: Arc<ModelCache>,
    /// The queue that receives the engine's events.
    pub queue: Arc<Queue>,
    /// Limits set by the host.
    pub limits: EngineLimits,
    /// Limits of a sequence, given by model and cache.
    pub bounds: Bounds,
    /// Token budget of a step.
    pub budget: Budget,
    /// Share of the device's multiprocessors.
    pub share: EngineShare,
    /// Commands for the step thread, and the open requests.
    pub inbox: Inbox,
    /// Counters behind the engine's metrics.
    pub counters: Counters,
    /// Role of requests accepted from now on, and of steps from the next one on: a [`Role`] as a number.
    role: AtomicU32,
    /// Number of the engine, which forms the high bits of its requests' ids.
    number: u64,
}

impl EngineShared {
    /// The shared state of a new engine without requests.
    pub fn new(
        cache: Arc<ModelCache>,
        queue: Arc<Queue>,
        limits: EngineLimits,
        budget: Budget,
        role: Role,
        share: Option<u32>,
    ) -> EngineShared {
        static ENGINES: AtomicU64 = AtomicU64::new(1);
        EngineShared {
            limits,
            bounds: cache.bounds(),
            cache,
            queue,
            budget,
            role: AtomicU32::new(role as u32),
            share: EngineShare::new(share),
            counters: Counters::new(role),
            inbox: Inbox::default(),
            number: ENGINES.fetch_add(1, Ordering::Relaxed) & 0xff_ffff,
        }
    }

    /// Most prompt tokens in a step. A decode engine takes few, to keep its inter-token latency low.
    pub fn prompt_tokens(&self) -> usize {
        let decode = self.role() == Role::Decode;
        self.budget.prompts().min(if decode { DECODE_ROLE_PREFILL_TOKENS } else { usize::MAX })
    }

    /// Role of requests accepted now, and of the next step.
    pub fn role(&self) -> Role {
        Role::from_code(self.role.load(Ordering::Relaxed)).unwrap_or(Role::Mixed)
    }

    /// Sets the role of requests accepted from now on, and of steps from the next one on.
    pub fn set_role(&self, role: Role) {
        self.counters.role_set(monotonic_ns());
        self.role.store(role as u32, Ordering::Relaxed);
        self.inbox.kick();
    }

    /// Admits one request and reserves its place in the queue. Fails if the engine or the queue is full, failed or ending.
    pub fn admit(self: &Arc<Self>, user_tag: u64) -> Result<RequestGuard> {
        let (id, reservation) = self.inbox.open(self.number, &self.limits, &self.queue)?;
        Ok(RequestGuard::new(self.clone(), id, user_tag, reservation))
    }
}

impl RequestOwner for EngineShared {
    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn finish(&self, reservation: Reservation, event: Event) {
        self.inbox.finish(reservation, event);
    }

    fn withdraw(&self, reservation: Reservation, id: u64) {
        self.inbox.withdraw(reservation, id);
    }
}

impl SpaceWaker for EngineShared {
    fn space(&self) {
        self.inbox.kick();
    }
}
