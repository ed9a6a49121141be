//! Simulates deployments of cleave engines under simulated time, and recommends one for a model, a device and a workload. It
//! drives the library's own scheduler ([`cleave::scheduler`]), knows devices and models only as figures, and runs no model.
#![warn(missing_docs)]

pub mod calibrate;
pub mod cost;
pub mod hardware;
pub mod models;
pub mod planner;
pub mod recommend;
pub mod report;
pub mod sim;
pub mod study;
pub mod workload;
