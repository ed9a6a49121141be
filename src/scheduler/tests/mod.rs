//! The scheduler against a model of the block pool and of an engine.

mod model;
mod order;
mod preemption;
mod random;
