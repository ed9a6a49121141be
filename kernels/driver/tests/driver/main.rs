//! The simulated driver through cudarc, as programs see it.

mod basics;
mod capture;
mod common;
mod failures;
mod sharing;
mod streams;
