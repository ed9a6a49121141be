//! The sequence section: a snapshot as bytes.

use super::wire::{Reader, Writer};
use crate::bail;
use crate::error::Result;
use crate::sequence::{FinishReason, MAX_HOST_DATA, MAX_LOGPROBS, SamplingParams, Snapshot};

const IGNORE_EOS: u32 = 1;
const LOGPROBS: u32 = 2;
const CONVERTED: u32 = 4;
/// Bytes of the fields that every sequence has.
const FIXED: usize = 100;

/// Checks that an engine can have left such a snapshot; the error says why not.
pub(in crate::kv) fn validate(s: &Snapshot) -> std::result::Result<(), String> {
    let n = s.tokens.len();
    if n == 0 || n > (u32::MAX / 8) as usize {
        return Err(format!("tokens: expected 1 to {}, found {n}", u32::MAX / 8));
    }
    if s.computed as usize > n {
        return Err(format!("computed tokens: expected at most {n}, found {}", s.computed));
    }
    if s.host_data.len() > MAX_HOST_DATA {
        return Err(format!("host data: expected at most {MAX_HOST_DATA} bytes, found {}", s.host_data.len()));
    }
    let mut end = 0;
    for &(a, b) in &s.prompts {
        if a < end || b < a || b as usize > n {
            return Err(format!("prompt range {a}..{b}: expected ascending, within {end}..{n}"));
        }
        end = b;
    }
    let p = &s.params;
    let plain = [p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.presence_penalty, p.frequency_penalty];
    let numbers = plain.into_iter().chain(p.logit_bias.iter().map(|b| b.1)).chain([s.last_logprob]);
    let numbers = numbers.chain(s.last_top.iter().map(|t| t.1));
    if numbers.into_iter().any(f32::is_nan) {
        return Err("sampling parameters: expected numbers, found NaN".into());
    }
    Ok(())
}

/// Bytes that [`encode`] writes.
pub(in crate::kv) fn encoded_len(s: &Snapshot) -> usize {
    let stops: usize = s.params.stop_sequences.iter().map(|stop| 4 + 4 * stop.len()).sum();
    let pairs = s.prompts.len() + s.params.logit_bias.len() + s.last_top.len();
    let words = s.tokens.len() + s.params.stop_ids.len() + 2 * pairs;
    FIXED + 4 * words + stops
}

pub(crate) fn encode(s: &Snapshot) -> Vec<u8> {
    // Without `..`: whoever adds a parameter gives it a place here, which is a new version of the format.
    let &SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        seed,
        max_new_tokens,
        min_new_tokens,
        logprobs,
        ignore_eos,
        ref stop_ids,
        ref stop_sequences,
        ref logit_bias,
    } = &s.params;
    let mut w = Writer(Vec::with_capacity(encoded_len(s)));
    let flags = [(ignore_eos, IGNORE_EOS), (logprobs.is_some(), LOGPROBS), (s.converted, CONVERTED)];
    let flags = flags.into_iter().filter(|flag| flag.0).fold(0, |flags, flag| flags | flag.1);
    w.u32(s.tokens.len() as u32).u32(s.computed).u32(s.prompts.len() as u32);
    w.u32(s.finished.map_or(0, |reason| reason as u32)).u32(flags).f32(s.last_logprob);
    w.u64(s.cache_salt).u64(seed);
    w.f32(temperature).u32(top_k).f32(top_p).f32(min_p);
    w.f32(repetition_penalty).f32(presence_penalty).f32(frequency_penalty);
    w.u32(max_new_tokens).u32(min_new_tokens).u32(logprobs.unwrap_or(0));
    w.u32(stop_ids.len() as u32).u32(stop_sequences.len() as u32).u32(logit_bias.len() as u32);
    w.u32(s.last_top.len() as u32).u32(s.cached_tokens);
    w.u32s(&s.tokens);
    s.prompts.iter().for_each(|&(a, b)| _ = w.u32(a).u32(b));
    w.u32s(stop_ids);
    stop_sequences.iter().for_each(|stop| _ = w.u32(stop.len() as u32).u32s(stop));
    logit_bias.iter().chain(&s.last_top).for_each(|&(token, number)| _ = w.u32(token).f32(number));
    w.0
}

pub(crate) fn decode(data: &[u8]) -> Result<Snapshot> {
    let mut r = Reader::new("sequence", data);
    let n_tokens = r.u32("token count")?;
    let computed = r.u32("computed tokens")?;
    let n_prompts = r.u32("prompt count")?;
    let finished = match r.u32("finish reason")? {
        0 => None,
        1 => Some(FinishReason::Stop),
        2 => Some(FinishReason::Length),
        3 => Some(FinishReason::Prefilled),
        4 => Some(FinishReason::Exported),
        5 => Some(FinishReason::Error),
        found => bail!(Corrupt, "sequence: finish reason: expected 0 to 5, found {found}"),
    };
    let flags = r.u32("flags")?;
    if flags & !(IGNORE_EOS | LOGPROBS | CONVERTED) != 0 {
        bail!(Corrupt, "sequence: flags: expected 0 to 7, found {flags:#x}");
    }
    let last_logprob = r.f32("last logprob")?;
    let cache_salt = r.u64("cache salt")?;
    let mut params = SamplingParams {
        seed: r.u64("seed")?,
        temperature: r.f32("temperature")?,
        top_k: r.u32("top_k")?,
        top_p: r.f32("top_p")?,
        min_p: r.f32("min_p")?,
        repetition_penalty: r.f32("repetition penalty")?,
        presence_penalty: r.f32("presence penalty")?,
        frequency_penalty: r.f32("frequency penalty")?,
        max_new_tokens: r.u32("max_new_tokens")?,
        min_new_tokens: r.u32("min_new_tokens")?,
        logprobs: Some(r.u32("logprobs")?).filter(|_| flags & LOGPROBS != 0),
        ignore_eos: flags & IGNORE_EOS != 0,
        stop_ids: Vec::new(),
        stop_sequences: Vec::new(),
        logit_bias: Vec::new(),
    };
    let (n_ids, n_stops, n_bias) = (r.u32("stop ids")?, r.u32("stop sequences")?, r.u32("logit bias")?);
    let (n_top, cached_tokens) = (r.u32("alternatives")?, r.u32("cached tokens")?);
    if n_top > MAX_LOGPROBS {
        bail!(Corrupt, "sequence: alternatives: expected at most {MAX_LOGPROBS}, found {n_top}");
    }
    let tokens = r.u32s(n_tokens, "tokens")?;
    // One at a time: an untrusted count allocates nothing that its bytes do not fill.
    let mut prompts = Vec::new();
    for _ in 0..n_prompts {
        prompts.push((r.u32("prompt begin")?, r.u32("prompt end")?));
    }
    params.stop_ids = r.u32s(n_ids, "stop ids")?;
    for _ in 0..n_stops {
        let n = r.u32("stop sequence length")?;
        params.stop_sequences.push(r.u32s(n, "stop sequence")?);
    }
    for _ in 0..n_bias {
        params.logit_bias.push((r.u32("logit bias token")?, r.f32("logit bias")?));
    }
    let mut last_top = Vec::new();
    for _ in 0..n_top {
        last_top.push((r.u32("alternative")?, r.f32("alternative's logprob")?));
    }
    r.end()?;
    let converted = flags & CONVERTED != 0;
    let snapshot = Snapshot {
        tokens,
        computed,
        prompts,
        last_logprob,
        last_top,
        cached_tokens,
        params,
        cache_salt,
        converted,
        finished,
        host_data: Vec::new(),
    };
    match validate(&snapshot) {
        Ok(()) => Ok(snapshot),
        Err(text) => bail!(Corrupt, "sequence: {text}"),
    }
}
