//! Uses the simulated driver through cudarc, as programs do.

mod basics;
mod capture;
mod common;
mod failures;
mod green;
mod sharing;
mod streams;
