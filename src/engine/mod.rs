//! Engines: each runs requests on its own thread, one step after the other, over a cache that it may share with others.
//!
//! Five nouns carry the module, as in nano-vllm:
//!
//! - A **sequence** is a running request ([`running`]): its tokens, its blocks ([`blocks`]) and the events it still owes
//!   ([`outbox`]). [`source`] decides where its tokens and KV come from and [`prepare`] checks them; until it can run, it is
//!   [`pending`]. At its end, its KV may become a handle ([`handover`]).
//! - The **block manager** is [`crate::kv`]; [`cache`] combines it with the model and the device.
//! - The **scheduler** is [`crate::scheduler`]. The [`table`] of requests owns it, and is the only place where a request arrives,
//!   emits an event or ends; [`guard`] ensures that each request ends exactly once.
//! - The **model runner** ([`runner`]) packs a plan's rows ([`batch`]), has them computed and samples tokens ([`sampler`]).
//! - The **engine** is an interface for host threads ([`engine`]) and a loop on the step thread ([`step`]). Both use the state in
//!   [`shared`]: commands go in through the [`inbox`], events come out through a [`Queue`]. Host threads never wait for a step, and
//!   the step thread never waits for the host.
//!
//! [`compute_share`] divides a device's multiprocessors among its engines; each keeps its part in [`engine_share`].
//! [`probe`] measures prefill steps, [`saturation`] chooses their length, and [`budget`] remembers it. [`metrics`] lists the
//! metrics that [`counters`] and [`histogram`] count.
//!
//! This module uses models, caches, transports and devices through their traits. It must not know the C API.

mod batch;
mod blocks;
mod budget;
mod cache;
mod cache_options;
mod compute_share;
mod counters;
mod deadlines;
mod device_runtime;
#[expect(clippy::module_inception, reason = "the module's main noun has its name")]
mod engine;
mod engine_share;
mod event;
mod guard;
mod handover;
mod histogram;
mod inbox;
mod load;
mod metrics;
mod options;
mod outbox;
mod pending;
mod prepare;
mod probe;
mod queue;
mod request;
mod runner;
mod running;
mod sampler;
mod saturation;
mod shared;
mod source;
mod step;
mod table;

pub use crate::backend::devices::DEVICE_CPU;
pub use crate::sequence::SamplingFields;
pub use cache::ModelCache;
pub use cache_options::CacheOptions;
pub use engine::{Engine, Submitted};
pub use event::{Event, EventKind};
pub use histogram::HistogramReading;
pub use load::{Load, Occupancy, Openness, RoleInEffect, Throughput};
pub(crate) use metrics::for_each_metric;
pub use metrics::{FAMILIES, Family, Kind, Metrics, unit};
pub use options::{EngineOptions, Role};
pub use queue::{Queue, Reservation, SpaceWaker};
pub use request::Request;
pub use shared::DECODE_ROLE_PREFILL_TOKENS;
