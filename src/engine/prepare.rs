//! Turns a request into the sequence it asks for, with every check that can be made before the request is accepted.

use super::request::Request;
use crate::error::Result;
use crate::sequence::{SamplingParams, Snapshot};

/// Limits of a sequence on one model and cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Size of the model's vocabulary.
    pub vocab_size: u32,
    /// Context of the model in tokens.
    pub max_context: u32,
    /// Tokens that the whole cache can hold.
    pub cache_tokens: u64,
}

impl Bounds {
    /// Length of the longest possible sequence in tokens.
    pub fn max_tokens(&self) -> u32 {
        self.max_context.min(u32::try_from(self.cache_tokens).unwrap_or(u32::MAX))
    }
}

/// Checks everything about `request` that can be checked before it is accepted: its prompt, the sequence `base` of the handle
/// that it continues, the combined sampling parameters and the length. Returns the combined parameters.
pub(super) fn check(request: &Request, base: Option<&Snapshot>, bounds: &Bounds) -> Result<SamplingParams> {
    check_prompt(&request.prompt, bounds.vocab_size)?;
    match base {
        Some(base) => check_base(base, bounds.vocab_size)?,
        None if request.prompt.is_empty() => {
            crate::bail!(InvalidArgument, "prompt_len is 0 and the request continues no KV handle")
        }
        None => {}
    }
    let inherited = base.filter(|_| !request.override_sampling).map(|base| base.params.clone());
    let params = request.sampling.clone().resolve(inherited.unwrap_or_default());
    crate::sampling::validate(&params, bounds.vocab_size as usize)?;
    check_length(base.map_or(0, |base| base.tokens.len()) + request.prompt.len(), bounds)?;
    Ok(params)
}

/// The sequence that `request` starts, or continues from `base`.
pub(super) fn prepare(request: &Request, base: Option<Snapshot>, bounds: &Bounds) -> Result<Snapshot> {
    let params = check(request, base.as_ref(), bounds)?;
    let mut snapshot = base.unwrap_or_else(|| empty(request.cache_salt));
    snapshot.params = params;
    if snapshot.params.seed == 0 && snapshot.params.temperature > 0.0 {
        snapshot.params.seed = u64::from_le_bytes(crate::sys::random_bytes()?) | 1;
    }
    if !request.prompt.is_empty() {
        let begin = snapshot.tokens.len() as u32;
        snapshot.tokens.extend_from_slice(&request.prompt);
        snapshot.prompts.push((begin, snapshot.tokens.len() as u32));
        snapshot.last_top.clear();
        snapshot.cached_tokens = 0;
    }
    snapshot.finished = None;
    // The next token is sampled from the last token's logits, so at least that token has to run again.
    snapshot.computed = snapshot.computed.min(snapshot.tokens.len() as u32 - 1);
    Ok(snapshot)
}

fn empty(cache_salt: u64) -> Snapshot {
    Snapshot {
        tokens: Vec::new(),
        computed: 0,
        prompts: Vec::new(),
        last_logprob: 0.0,
        last_top: Vec::new(),
        cached_tokens: 0,
        params: SamplingParams::default(),
        cache_salt,
        converted: false,
        finished: None,
        host_data: Vec::new(),
    }
}

/// Checks the part of `request` that does not depend on the sequence it continues: its prompt, and the sampling parameters that it
/// sets itself.
pub(super) fn check_own(request: &Request, bounds: &Bounds) -> Result<()> {
    check_prompt(&request.prompt, bounds.vocab_size)?;
    let set = request.sampling.clone().resolve(SamplingParams::default());
    crate::sampling::validate(&set, bounds.vocab_size as usize)
}

/// Refuses a prompt with a token outside the vocabulary.
fn check_prompt(prompt: &[u32], vocab_size: u32) -> Result<()> {
    match prompt.iter().position(|&t| t >= vocab_size) {
        Some(i) => {
            crate::bail!(
                InvalidArgument,
                "prompt token {} at index {i} is not below vocab_size {vocab_size}",
                prompt[i]
            )
        }
        None => Ok(()),
    }
}

/// Refuses a handle's sequence that no engine on this model can have produced. The import checked the signature and the format
/// of its image or ticket, but not the tokens against the model: one token outside the vocabulary would fail the step, and with
/// it every request of the engine. Sampling parameters are checked later, combined with the request's own.
fn check_base(snapshot: &Snapshot, vocab_size: u32) -> Result<()> {
    let n = snapshot.tokens.len();
    let outside = |token: &u32| *token >= vocab_size;
    if let Some(i) = snapshot.tokens.iter().position(outside) {
        crate::bail!(
            Corrupt,
            "KV handle: token {} at index {i} of {n} is not below vocab_size {vocab_size}",
            snapshot.tokens[i]
        );
    }
    if let Some((token, _)) = snapshot.last_top.iter().find(|top| outside(&top.0)) {
        crate::bail!(Corrupt, "KV handle: alternative {token} of its last token is not below vocab_size {vocab_size}");
    }
    if let Some((begin, end)) = snapshot.prompts.iter().find(|prompt| prompt.0 >= prompt.1) {
        crate::bail!(Corrupt, "KV handle: prompt range {begin}..{end} is empty");
    }
    if snapshot.cached_tokens as usize > n {
        crate::bail!(Corrupt, "KV handle: {} cached tokens of {n}", snapshot.cached_tokens);
    }
    Ok(())
}

fn check_length(tokens: usize, bounds: &Bounds) -> Result<()> {
    let n = tokens as u64;
    if n == 0 {
        crate::bail!(InvalidArgument, "the KV handle holds no tokens and the request brings none");
    }
    // A sequence that fills the context can still be finished (as LENGTH); a longer one cannot run.
    if n > u64::from(bounds.max_context) {
        crate::bail!(InvalidArgument, "{n} tokens do not fit the model's context of {}", bounds.max_context);
    }
    if n > bounds.cache_tokens {
        crate::bail!(OutOfMemory, "{n} tokens do not fit the KV cache, which holds {} in total", bounds.cache_tokens);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    const BOUNDS: Bounds = Bounds { vocab_size: 10, max_context: 8, cache_tokens: 6 };

    fn prompt(tokens: &[u32]) -> Request {
        Request { prompt: tokens.to_vec(), ..Request::default() }
    }

    #[test]
    fn refuses_what_cannot_run() {
        let status = |r: &Request| prepare(r, None, &BOUNDS).unwrap_err().status;
        assert_eq!(status(&prompt(&[])), Status::InvalidArgument);
        assert_eq!(status(&prompt(&[3, 10])), Status::InvalidArgument);
        assert_eq!(status(&prompt(&[1; 7])), Status::OutOfMemory);
        assert_eq!(status(&prompt(&[1; 9])), Status::InvalidArgument);
    }

    /// A request for a handle whose KV is on its way is refused for its own faults at once, not when the KV has landed.
    #[test]
    fn own_faults_do_not_wait_for_a_handle() {
        assert!(check_own(&prompt(&[]), &BOUNDS).is_ok() && check_own(&prompt(&[9]), &BOUNDS).is_ok());
        assert!(check_own(&prompt(&[10]), &BOUNDS).unwrap_err().message.contains("prompt token 10"));
        let mut request = prompt(&[]);
        request.sampling.presence_penalty = 2.5;
        assert!(check_own(&request, &BOUNDS).unwrap_err().message.contains("presence_penalty 2.5"));
    }

    #[test]
    fn a_turn_is_appended_and_zero_fields_inherit() {
        let mut first = prepare(&prompt(&[1, 2]), None, &BOUNDS).unwrap();
        first.params.top_k = 7;
        first.tokens.push(3);
        first.computed = 2;
        let mut next = prompt(&[4]);
        next.sampling.temperature = 0.5;
        next.sampling.seed = 9;
        let second = prepare(&next, Some(first.clone()), &BOUNDS).unwrap();
        assert_eq!(second.tokens, [1, 2, 3, 4]);
        assert_eq!(second.prompts, [(0, 2), (3, 4)]);
        assert_eq!((second.params.top_k, second.params.temperature), (7, 0.5));
        assert_eq!(second.generated(), 0);
        next.override_sampling = true;
        assert_eq!(prepare(&next, Some(first), &BOUNDS).unwrap().params.top_k, 0);
    }

    #[test]
    fn sampling_without_a_seed_gets_one() {
        let mut request = prompt(&[1]);
        request.sampling.temperature = 1.0;
        let a = prepare(&request, None, &BOUNDS).unwrap().params.seed;
        let b = prepare(&request, None, &BOUNDS).unwrap().params.seed;
        assert!(a != 0 && b != 0 && a != b);
    }
}
