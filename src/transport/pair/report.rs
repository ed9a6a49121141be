//! Results of pairing, and the reasons for a refusal.

use crate::error::{Error, Status};
use crate::transport::source::Transport;
use std::time::Duration;

/// Why a pair cannot exchange KV. The numbers are `CLEAVE_PAIR_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// KV can be exchanged.
    Fine = 0,
    /// Other weights or config.
    Weights = 1,
    /// Another tokenizer.
    Tokenizer = 2,
    /// Another KV element type, and one of the caches does not convert.
    Dtype = 3,
    /// Another number of tokens per block, and one of the caches does not convert.
    BlockSize = 4,
    /// Layers, heads or head dimension, or tensor-parallel sharding that cannot be converted.
    Layout = 5,
    /// No common version of formats or protocol.
    Version = 6,
    /// Another secret.
    Secret = 7,
    /// The required transport is missing, or no transport reaches the peer.
    Transport = 8,
    /// The peer does not answer.
    Unreachable = 9,
    /// The blocks of the self-test arrived changed.
    SelfTest = 10,
    /// The address is damaged, or is not an address of a cache.
    Address = 11,
    /// One of the two caches has no free block for the self-test, or is closed.
    Resources = 12,
}

/// How two caches would exchange KV.
#[derive(Clone, Debug)]
pub struct Report {
    /// The transport that imports will use; None if KV cannot be exchanged.
    pub transport: Option<Transport>,
    /// Why KV cannot be exchanged, or `Fine`.
    pub reason: Reason,
    /// The reason as an error; None if KV can be exchanged.
    pub error: Option<Error>,
    /// Measured bandwidth of the self-test.
    pub bytes_per_second: u64,
    /// The shortest time of a question and its answer.
    pub round_trip: Duration,
    /// A sentence for people: the transport and conversion, or the error.
    pub detail: String,
}

/// A refusal of a pair.
pub(super) struct Refused(pub Reason, pub Error);

/// The reason that belongs to an error.
pub(super) fn reason_of(error: &Error) -> Reason {
    match error.status {
        Status::Permission => Reason::Secret,
        Status::Incompatible => Reason::Version,
        Status::Unsupported => Reason::Transport,
        Status::OutOfMemory | Status::Shutdown => Reason::Resources,
        Status::Corrupt => Reason::SelfTest,
        _ => Reason::Unreachable,
    }
}
