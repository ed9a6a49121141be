//! Options that a host gives when it creates an engine.

use super::budget;
use crate::error::Result;

/// Purpose of an engine. The numbers are `CLEAVE_ROLE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// Computes prompts and generates tokens in the same steps.
    Mixed = 0,
    /// Computes prompts: each request ends with its first token and a KV handle.
    Prefill = 1,
    /// Continues KV handles. Prompt tokens (an appended turn, a recomputation) get only a small part of each step.
    Decode = 2,
}

impl Role {
    /// The role with this `CLEAVE_ROLE_*` number.
    pub fn from_code(code: u32) -> Option<Role> {
        [Role::Mixed, Role::Prefill, Role::Decode].into_iter().find(|r| *r as u32 == code)
    }
}

/// Limits of an engine, with every default filled in.
#[derive(Clone, Copy, Debug)]
pub(super) struct EngineLimits {
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Accepted requests that may wait beyond the running ones.
    pub max_waiting: usize,
    /// Prompt tokens that a decode engine computes for one request at most; 0: no limit.
    pub local_prefill_tokens: usize,
}

/// Options of an engine. A field that is zero or empty takes its default.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Purpose of the engine; by default mixed.
    pub role: Option<Role>,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Accepted requests that may wait beyond the running ones.
    pub max_waiting: usize,
    /// Token budget of a step. 0: as many prompt tokens as saturate a CUDA device, measured while the engine is idle.
    pub max_batch_tokens: usize,
    /// Threads that compute on the CPU; 0 chooses by the machine.
    pub threads: usize,
    /// Most prompt tokens that a fresh request may leave to compute while the role is decode; others are refused. 0: no limit.
    pub local_prefill_tokens: usize,
    /// CPUs that the engine's threads are bound to; empty leaves the choice to the system.
    pub cpus: Vec<usize>,
    /// Percentage of a CUDA device's multiprocessors, 1 to 99, or 100 for all. 0 means all, except when a prefill and a decode
    /// engine are on the device and no engine there was given a share: then prefill gets 70 and decode 30, if the driver can
    /// partition the device.
    pub sm_percent: u32,
}

impl EngineOptions {
    /// Default of [`EngineOptions::max_sequences`].
    pub const DEFAULT_MAX_SEQUENCES: usize = 64;
    /// Default of [`EngineOptions::max_waiting`].
    pub const DEFAULT_MAX_WAITING: usize = 1024;
    /// Default of [`EngineOptions::max_batch_tokens`] on devices that are not measured.
    pub const DEFAULT_MAX_BATCH_TOKENS: usize = budget::DEFAULT_TOKENS;

    const MAX_THREADS: usize = 1024;

    /// Checks the options and fills in the defaults.
    pub(super) fn limits(&self) -> Result<EngineLimits> {
        fn pick(name: &str, value: usize, default: usize, most: usize) -> Result<usize> {
            match value {
                0 => Ok(default),
                v if v > most => crate::bail!(InvalidArgument, "{name} {v} is over the limit of {most}"),
                v => Ok(v),
            }
        }
        pick("threads", self.threads, 0, Self::MAX_THREADS)?;
        let max_sequences = pick("max_sequences", self.max_sequences, Self::DEFAULT_MAX_SEQUENCES, 1 << 16)?;
        let max_batch_tokens =
            pick("max_batch_tokens", self.max_batch_tokens, Self::DEFAULT_MAX_BATCH_TOKENS, 1 << 16)?;
        Ok(EngineLimits {
            // Each step must have room for one token of every running sequence.
            max_sequences: max_sequences.min(max_batch_tokens),
            max_waiting: pick("max_waiting", self.max_waiting, Self::DEFAULT_MAX_WAITING, 1 << 20)?,
            local_prefill_tokens: self.local_prefill_tokens,
        })
    }
}
