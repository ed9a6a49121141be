//! The simulated driver through cudarc, as programs see it.

mod basics;
mod capture;
mod common;
mod failures;
mod green;
mod sharing;
mod streams;
