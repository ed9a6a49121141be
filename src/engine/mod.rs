//! Engines: each runs requests over a cache that it shares with others, one step after the other, on a thread of its own.
//!
//! Five nouns carry it, as in nano-vllm:
//!
//! - A **sequence** is a request that runs ([`running`]): its tokens, its blocks ([`blocks`]), the events it still owes. What it
//!   starts from is decided in [`source`] and checked in [`prepare`]; until it can run it is [`pending`].
//! - The **block manager** is [`crate::kv`]; [`cache`] puts it together with the model and the device it lies on.
//! - The **scheduler** is [`crate::scheduler`]. The [`table`] of requests owns it, and is the only place where a request arrives,
//!   emits an event or ends; [`guard`] is why each ends exactly once.
//! - The **model runner** ([`runner`]) packs a plan's rows ([`batch`]), has them computed and samples ([`sampler`]).
//! - The **engine** is a face for host threads ([`engine`]) and a loop on the step thread ([`step`]). Between them lies what both
//!   touch ([`shared`]): commands go in through an inbox, events come out through a [`Queue`]. Host threads never wait for a
//!   step, and the step thread never waits for the host.
//!
//! Engines on one device share its multiprocessors by the rules of [`compute_share`].
//! [`probe`] measures how long prefill steps should be, and [`saturation`] chooses. [`metrics`] is the list of metrics,
//! which [`counters`] and [`histogram`] count.
//!
//! This module knows models, caches, transports and devices by their traits; it knows nothing of the C API.

mod batch;
mod blocks;
mod cache;
mod compute_share;
mod counters;
mod deadlines;
mod device_runtime;
#[expect(clippy::module_inception, reason = "the module's main noun has its name")]
mod engine;
mod engine_share;
mod event;
mod guard;
mod histogram;
mod metrics;
mod options;
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
pub use cache::{CacheOptions, ModelCache};
pub use engine::{Engine, Submitted};
pub use event::{Event, EventKind};
pub use histogram::HistogramReading;
pub(crate) use metrics::for_each_metric;
pub use metrics::{FAMILIES, Family, Kind, Metrics, unit};
pub use options::{EngineOptions, Role};
pub use queue::{Queue, Reservation, SpaceWaker};
pub use request::Request;
