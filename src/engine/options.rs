//! Options that a host gives when it creates an engine.

use super::saturation;
use crate::error::Result;

/// Purpose of an engine. The numbers are `CLEAVE_ROLE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// Prompts and generation in the same steps.
    Mixed = 0,
    /// A request ends with its first token and a handle; whole steps go to prompts.
    Prefill = 1,
    /// Made for handles; prompt tokens (a turn appended, a recomputation) take a small part of a step.
    Decode = 2,
}

impl Role {
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
    pub role: Option<Role>,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Accepted requests that wait beyond those.
    pub max_waiting: usize,
    /// Token budget of a step. 0: as many prompt tokens as saturate a CUDA device, measured in idle moments.
    pub max_batch_tokens: usize,
    pub threads: usize,
    /// While the role is decode: prompts with more tokens than this to compute are refused. 0: none are.
    pub local_prefill_tokens: usize,
    /// CPUs to run on; empty: where the system puts them.
    pub cpus: Vec<usize>,
    /// Percent of a CUDA device's multiprocessors, 1 to 99; 100: all. 0: all, unless both a prefill and a decode engine are on
    /// the device and no engine there was given a share; then 70 for prefill and 30 for decode, where the driver has parts.
    pub sm_percent: u32,
}

impl EngineOptions {
    pub const DEFAULT_MAX_SEQUENCES: usize = 64;
    pub const DEFAULT_MAX_WAITING: usize = 1024;
    /// Where nothing was measured.
    pub const DEFAULT_MAX_BATCH_TOKENS: usize = saturation::DEFAULT_TOKENS;

    const MAX_THREADS: usize = 1024;

    pub(super) fn limits(&self) -> Result<EngineLimits> {
        fn pick(name: &str, value: usize, default: usize, most: usize) -> Result<usize> {
            match value {
                0 => Ok(default),
                v if v > most => crate::bail!(InvalidArgument, "{name} {v} is over {most}"),
                v => Ok(v),
            }
        }
        pick("threads", self.threads, 0, Self::MAX_THREADS)?;
        let max_sequences = pick("max_sequences", self.max_sequences, Self::DEFAULT_MAX_SEQUENCES, 1 << 16)?;
        let max_batch_tokens =
            pick("max_batch_tokens", self.max_batch_tokens, Self::DEFAULT_MAX_BATCH_TOKENS, 1 << 16)?;
        Ok(EngineLimits {
            // Every running sequence has its token in each step.
            max_sequences: max_sequences.min(max_batch_tokens),
            max_waiting: pick("max_waiting", self.max_waiting, Self::DEFAULT_MAX_WAITING, 1 << 20)?,
            local_prefill_tokens: self.local_prefill_tokens,
        })
    }
}
