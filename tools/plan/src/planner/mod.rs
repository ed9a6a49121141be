//! Recommends a layout: candidates are ranked by what their parts can carry, and the best are simulated at rising load until
//! too many requests miss the limits. It knows deployments and reports, and must not know how a simulation works.

mod demand;
mod layout;
mod search;
mod source;

pub use demand::Demand;
pub use layout::{Group, Kind, Layout, WHOLE_PROMPTS, devices};
pub use search::{Peak, highest, parallel};
pub use source::Source;
