//! A deployment under simulated time. Engines run the library's own scheduler; step durations come from a cost model, and the
//! rest of an engine is a few counters. Everything is deterministic: the same deployment and workload give the same result.

mod arrive;
mod blocks;
mod deployment;
mod engine;
mod faults;
mod handoff;
mod request;
mod route;
mod run;
mod step;
mod switch;

pub use blocks::BLOCK_TOKENS;
pub use deployment::{Deployment, Failure, Links, Pool, Role, Routing, Switching, blocks_that_fit};
pub use request::{End, Request};
pub use run::{Outcome, simulate};
