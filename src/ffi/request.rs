//! requests

use super::boundary::{call, known_flags, put, required, slice};
use super::engine::EngineObject;
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_engine_t, cleave_kv_t, cleave_request_t};
use super::registry;
use super::versioned::{Input, sized_struct};
use crate::bail;
use crate::engine::{Request, SamplingFields};
use crate::error::{Error, Result};
use crate::sequence::MAX_LOGPROBS;
use libc::size_t;
use std::time::Duration;

/// FINISHED carries a KV handle. Implied on a prefill engine.
pub const CLEAVE_REQUEST_KEEP_KV: u32 = 1 << 0;
/// TOKEN events carry the log-probability of their token, and `logprobs` TOP_LOGPROB events follow each of them.
pub const CLEAVE_REQUEST_LOGPROBS: u32 = 1 << 1;
/// Reports the token that came with the handle once more, as a TOKEN event.
pub const CLEAVE_REQUEST_EMIT_PENDING: u32 = 1 << 2;
/// Does not stop at the model's EOS ids.
pub const CLEAVE_REQUEST_IGNORE_EOS: u32 = 1 << 3;
/// With a handle: takes every sampling and stop field from this request, and none from the handle.
pub const CLEAVE_REQUEST_OVERRIDE_SAMPLING: u32 = 1 << 4;

/// On a prefill engine: KV_STREAM_STARTED carries the handle as soon as the prompt begins to be computed. Its ticket
/// can be sent at once, and the importer pulls finished KV while the rest is computed. FINISHED carries the same
/// handle. No effect on engines of another role.
pub const CLEAVE_REQUEST_STREAM_KV: u32 = 1 << 5;
/// If the handle's KV does not arrive, for whatever reason, computes it here from the ticket's tokens instead of
/// ending with an error. The tokens are the same, later. If the handle was still streaming, its first token (index 0)
/// is then sampled and reported here, with or without EMIT_PENDING.
pub const CLEAVE_REQUEST_RECOMPUTE: u32 = 1 << 6;

const KNOWN_FLAGS: u32 = CLEAVE_REQUEST_KEEP_KV
    | CLEAVE_REQUEST_LOGPROBS
    | CLEAVE_REQUEST_EMIT_PENDING
    | CLEAVE_REQUEST_IGNORE_EOS
    | CLEAVE_REQUEST_OVERRIDE_SAMPLING
    | CLEAVE_REQUEST_STREAM_KV
    | CLEAVE_REQUEST_RECOMPUTE;

/// One request. Zero means the default in every field: the value named here for a fresh request, and the value of the
/// handle for a request that continues one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_request_desc_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// CLEAVE_REQUEST_*.
    pub flags: u32,
    /// Repeated in every event of the request.
    pub user_tag: u64,
    /// The KV handle to continue from, which an accepted request consumes; 0 starts a fresh sequence.
    pub kv: cleave_kv_t,
    /// Prompt: index of its first token in `tokens`. With a handle: the tokens that follow the handle.
    pub prompt_begin: u32,
    /// Prompt: number of tokens. May be 0 with a handle.
    pub prompt_len: u32,
    /// Stop ids: index of the first one in `tokens`. They end the generation, in addition to the model's EOS ids.
    pub stop_begin: u32,
    /// Stop ids: how many.
    pub stop_len: u32,
    /// Tokens to generate after the last prompt token, counted over all engines. Default: until the context is full.
    pub max_new_tokens: u32,
    /// Samples from the k likeliest tokens. Default: all.
    pub top_k: u32,
    /// Requests with a higher priority run first. Default: 0.
    pub priority: u32,
    /// Alternatives to report for each token, 0 to 128. More than 0 implies CLEAVE_REQUEST_LOGPROBS.
    pub logprobs: i32,
    /// Divides the logits. Default: 0, greedy.
    pub temperature: f32,
    /// Samples from the likeliest tokens whose probabilities sum to this, in (0, 1]. Default: 1.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the likeliest, in [0, 1]. Default: 0.
    pub min_p: f32,
    /// Penalty on tokens of the prompt and the generation. Default: 1, none.
    pub repetition_penalty: f32,
    /// Penalty on generated tokens, once each. Default: 0, none.
    pub presence_penalty: f32,
    /// Penalty on generated tokens, for each occurrence. Default: 0, none.
    pub frequency_penalty: f32,
    /// Equal seeds give equal samples, whatever else runs. Default: a random seed.
    pub seed: u64,
    /// Microseconds after submission at which the request ends with TIMEOUT. Default: never.
    pub deadline_us: u64,
    /// Requests share cached prefixes only with requests of the same salt.
    pub cache_salt: u64,
    /// Stop ids and stop sequences do not end the generation before this many tokens. Default: 0.
    pub min_new_tokens: u32,
    /// Stop sequences: index in `tokens`. Each sequence is its length followed by its ids: 2, a, b, 3, c, d, e.
    pub stop_sequences_begin: u32,
    /// Stop sequences: how many numbers, lengths included.
    pub stop_sequences_len: u32,
    /// Logit bias: index in `tokens`. Each entry is a token id and the bits of the float that is added to its logit.
    pub logit_bias_begin: u32,
    /// Logit bias: how many numbers, two for each entry.
    pub logit_bias_len: u32,
    /// Must be 0.
    pub reserved: u32,
}

sized_struct!(cleave_request_desc_t);

/// Submits `n_requests` requests. The token ids of prompts, stops and biases are ranges of one array, `tokens`, with
/// `n_tokens` elements. Everything is copied before the call returns. The struct_size of the first request is the
/// distance between requests, and must be equal in all.
///
/// Requests are accepted in order up to the first refused one. `*n_accepted` is the number of accepted requests,
/// `ids` (with room for n_requests) receives their ids, and the status is CLEAVE_OK or the reason of the first
/// refusal. Every accepted request ends with exactly one FINISHED event, its last. Events may be queued before this
/// call returns, so tell requests apart by user_tag.
///
/// Callable from any thread; does not wait for a step. Errors: WOULD_BLOCK (too many requests wait, or the queue is
/// full: try again after a FINISHED event), INVALID_ARGUMENT (the text names request and field), NOT_FOUND and
/// EXPIRED (engine, KV handle), CORRUPT (a KV handle that this model cannot have produced), INCOMPATIBLE,
/// UNSUPPORTED (flags), OUT_OF_MEMORY (larger than the whole cache), SHUTDOWN (draining or destroyed), PREFILL_ELSEWHERE (see local_prefill_tokens).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_submit(
    engine: *mut cleave_engine_t,
    requests: *const cleave_request_desc_t,
    n_requests: size_t,
    tokens: *const i32,
    n_tokens: size_t,
    ids: *mut cleave_request_t,
    n_accepted: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        required(n_accepted, "n_accepted")?;
        put(n_accepted, 0);
        let engine = registry::get::<EngineObject>(engine, "engine")?;
        let input = Input::new(requests, n_requests, "requests")?;
        if input.len() > 0 {
            required(ids, "ids")?;
        }
        let tokens = slice(tokens, n_tokens, "tokens")?;
        // The text of an error names the request, if there are several.
        let named = |e: Error, i: usize| if input.len() > 1 { e.context(format_args!("requests[{i}]")) } else { e };
        let mut wanted = Vec::new();
        let mut malformed = None;
        for i in 0..input.len() {
            match input.get(i).and_then(|desc| decode(&desc, tokens).map_err(|e| named(e, i))) {
                Ok(request) => wanted.push(request),
                Err(error) => {
                    malformed = Some(error);
                    break;
                }
            }
        }
        let expected = wanted.len();
        let submitted = engine.engine.submit(wanted);
        debug_assert!(submitted.ids.len() <= expected);
        for (i, id) in submitted.ids.iter().take(expected).enumerate() {
            ids.add(i).write(*id);
        }
        let accepted = submitted.ids.len().min(expected);
        put(n_accepted, accepted);
        submitted.refused.map(|e| named(e, accepted)).or(malformed).map_or(Ok(()), Err)
    })
}

/// Asks an engine to end a request with FINISHED (ERROR, CANCELLED) at the next step boundary. The call does not wait
/// and may be repeated. For a request that has ended meanwhile it returns CLEAVE_OK or NOT_FOUND, and no second event
/// follows.
///
/// Callable from any thread. Errors: NOT_FOUND (engine, id), INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_cancel(
    engine: *mut cleave_engine_t,
    id: cleave_request_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || registry::get::<EngineObject>(engine, "engine")?.engine.cancel(id))
}

/// Asks an engine to stop a running request at the next step boundary and to hand it over. Its FINISHED event
/// (EXPORTED) carries the KV handle, from which any engine continues with the next token. The call does not wait. A
/// request that ends before the step boundary ends as it would have.
///
/// Callable from any thread. Errors: NOT_FOUND (engine, id), INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_export(
    engine: *mut cleave_engine_t,
    id: cleave_request_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || registry::get::<EngineObject>(engine, "engine")?.engine.export(id))
}

fn decode(desc: &cleave_request_desc_t, tokens: &[i32]) -> Result<Request> {
    known_flags(desc.flags, KNOWN_FLAGS, "flags")?;
    known_flags(desc.reserved, 0, "reserved")?;
    let flag = |bit| desc.flags & bit != 0;
    if !u32::try_from(desc.logprobs).is_ok_and(|n| n <= MAX_LOGPROBS) {
        bail!(InvalidArgument, "logprobs {} is outside of 0..={MAX_LOGPROBS}", desc.logprobs);
    }
    let prompt = ids(range(tokens, desc.prompt_begin, desc.prompt_len, "prompt")?, desc.prompt_begin)?;
    if prompt.is_empty() && desc.kv == 0 {
        bail!(InvalidArgument, "prompt_len is 0, and there is no KV handle to continue from");
    }
    let sampling = SamplingFields {
        temperature: desc.temperature,
        top_k: desc.top_k,
        top_p: desc.top_p,
        min_p: desc.min_p,
        repetition_penalty: desc.repetition_penalty,
        presence_penalty: desc.presence_penalty,
        frequency_penalty: desc.frequency_penalty,
        seed: desc.seed,
        max_new_tokens: desc.max_new_tokens,
        min_new_tokens: desc.min_new_tokens,
        logprobs: (flag(CLEAVE_REQUEST_LOGPROBS) || desc.logprobs > 0).then_some(desc.logprobs as u32),
        ignore_eos: flag(CLEAVE_REQUEST_IGNORE_EOS),
        stop_ids: ids(range(tokens, desc.stop_begin, desc.stop_len, "stop")?, desc.stop_begin)?,
        stop_sequences: stop_sequences(tokens, desc.stop_sequences_begin, desc.stop_sequences_len)?,
        logit_bias: logit_bias(range(tokens, desc.logit_bias_begin, desc.logit_bias_len, "logit_bias")?)?,
    };
    Ok(Request {
        user_tag: desc.user_tag,
        kv: desc.kv,
        prompt,
        sampling,
        keep_kv: flag(CLEAVE_REQUEST_KEEP_KV),
        stream_kv: flag(CLEAVE_REQUEST_STREAM_KV),
        recompute: flag(CLEAVE_REQUEST_RECOMPUTE),
        emit_pending: flag(CLEAVE_REQUEST_EMIT_PENDING),
        override_sampling: flag(CLEAVE_REQUEST_OVERRIDE_SAMPLING),
        priority: desc.priority,
        deadline: (desc.deadline_us > 0).then(|| Duration::from_micros(desc.deadline_us)),
        cache_salt: desc.cache_salt,
    })
}

/// A part of `tokens`; an empty one may begin anywhere.
fn range<'a>(tokens: &'a [i32], begin: u32, len: u32, name: &str) -> Result<&'a [i32]> {
    if len == 0 {
        return Ok(&[]);
    }
    // The sum of two u32 cannot overflow a usize.
    let (begin, end) = (begin as usize, begin as usize + len as usize);
    tokens.get(begin..end).ok_or_else(|| {
        crate::error!(InvalidArgument, "{name}_begin and {name}_len reach to {end}, and n_tokens is {}", tokens.len())
    })
}

fn ids(tokens: &[i32], begin: u32) -> Result<Vec<u32>> {
    tokens.iter().enumerate().map(|(i, &token)| id(token, begin as usize + i)).collect()
}

fn id(token: i32, index: usize) -> Result<u32> {
    u32::try_from(token)
        .map_err(|_| crate::error!(InvalidArgument, "tokens[{index}] is {token}: no token id is negative"))
}

fn stop_sequences(tokens: &[i32], begin: u32, len: u32) -> Result<Vec<Vec<u32>>> {
    let mut rest = range(tokens, begin, len, "stop_sequences")?;
    let mut sequences = Vec::new();
    while let Some((&n, after)) = rest.split_first() {
        let at = begin as usize + len as usize - rest.len();
        let sequence = usize::try_from(n).ok().filter(|&n| n > 0).and_then(|n| after.get(..n));
        let Some(sequence) = sequence else {
            bail!(
                InvalidArgument,
                "tokens[{at}] is {n}: no length of a stop sequence with {} numbers left",
                after.len()
            );
        };
        sequences.push(ids(sequence, at as u32 + 1)?);
        rest = &after[sequence.len()..];
    }
    Ok(sequences)
}

fn logit_bias(numbers: &[i32]) -> Result<Vec<(u32, f32)>> {
    if !numbers.len().is_multiple_of(2) {
        bail!(InvalidArgument, "logit_bias_len is {}: pairs are needed", numbers.len());
    }
    let pairs = numbers.chunks_exact(2).enumerate().map(|(i, pair)| {
        let bias = f32::from_bits(pair[1] as u32);
        if bias.is_nan() || bias == f32::INFINITY {
            bail!(InvalidArgument, "logit_bias: the bias of pair {i} is {bias}");
        }
        Ok((id(pair[0], 2 * i).map_err(|e| e.context("logit_bias"))?, bias))
    });
    pairs.collect()
}
