//! The token budget of a step: set by the host, or measured once per process for each device, share of it, model and layout.

use super::saturation::Choice;
use crate::backend::KvGeometry;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Token budget of a step on a device that was not measured.
pub(super) const DEFAULT_TOKENS: usize = 512;

/// The conditions under which a choice is valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Ordinal of the device.
    pub device: i32,
    /// Number of multiprocessors that the engine may use on the device.
    pub multiprocessors: u32,
    /// The model's fingerprint.
    pub model: [u8; 32],
    /// Layout of the KV cache.
    pub geometry: KvGeometry,
}

#[derive(Clone, Copy)]
enum Known {
    /// An engine is measuring.
    Measuring,
    /// The result; None if a measurement is impossible.
    Measured(Option<Choice>),
}

/// Results of this process, and measurements in progress.
static MEMORY: LazyLock<Mutex<HashMap<Key, Known>>> = LazyLock::new(Mutex::default);

fn memory() -> MutexGuard<'static, HashMap<Key, Known>> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The exclusive duty to measure for a key. If it is dropped without a result, another idle engine can take it.
pub(super) struct Claim(Key);

impl Claim {
    /// Takes the claim; None if the result is known or another engine is measuring.
    fn take(key: &Key) -> Option<Claim> {
        let mut memory = memory();
        if memory.contains_key(key) {
            return None;
        }
        memory.insert(key.clone(), Known::Measuring);
        Some(Claim(key.clone()))
    }

    /// Records the result of the measurement; None if it is impossible.
    pub fn settle(self, choice: Option<Choice>) {
        memory().insert(self.0.clone(), Known::Measured(choice));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut memory = memory();
        if matches!(memory.get(&self.0), Some(Known::Measuring)) {
            memory.remove(&self.0);
        }
    }
}

/// Token budget of an engine's steps: set by the host, or chosen by measurement.
pub(super) struct Budget {
    /// Budget set by the host.
    fixed: Option<usize>,
    /// Key and result of the measurement; None if this engine does not measure.
    found: Mutex<Option<(Key, Option<Choice>)>>,
}

impl Budget {
    /// A budget of `fixed` tokens or, without that, the one measured for `key`.
    pub fn new(fixed: Option<usize>, key: Option<Key>) -> Budget {
        let key = key.filter(|_| fixed.is_none());
        Budget { fixed, found: Mutex::new(key.map(|key| (key, None))) }
    }

    /// Changes the key, because the engine has moved to another share of the device.
    pub fn set_key(&self, key: Option<Key>) {
        let key = key.filter(|_| self.fixed.is_none());
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = key.map(|key| (key, None));
    }

    /// The choice made by measurement; None before that.
    pub fn choice(&self) -> Option<Choice> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, choice) = found.as_mut()?;
        if choice.is_none()
            && let Some(Known::Measured(known)) = memory().get(key)
        {
            *choice = *known;
        }
        *choice
    }

    /// Most prompt tokens in a step.
    pub fn prompts(&self) -> usize {
        self.fixed.or_else(|| self.choice().map(|choice| choice.tokens)).unwrap_or(DEFAULT_TOKENS)
    }

    /// Most tokens in a step. Unless the host set it, it allows at least one token for each of `max_sequences` sequences.
    pub fn step(&self, max_sequences: usize) -> usize {
        self.fixed.unwrap_or_else(|| self.prompts().max(max_sequences))
    }

    /// Claims the measurement, if it is due and no other engine has claimed it.
    pub fn claim(&self) -> Option<Claim> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_ref().filter(|(_, choice)| choice.is_none()).and_then(|(key, _)| Claim::take(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn key(device: i32) -> Key {
        let geometry =
            KvGeometry { layers: 1, kv_heads: 1, head_dim: 16, block_tokens: 16, dtype: Dtype::Bf16, shards: 1 };
        Key { device, multiprocessors: 4, model: [9; 32], geometry }
    }

    #[test]
    fn one_engine_measures_and_all_know() {
        let (one, two) = (Budget::new(None, Some(key(1000))), Budget::new(None, Some(key(1000))));
        let claim = one.claim().unwrap();
        assert!(one.claim().is_none() && two.claim().is_none());
        drop(claim);
        let claim = two.claim().expect("given up by the first");
        assert_eq!((one.choice(), one.prompts(), one.step(64), one.step(600)), (None, 512, 512, 600));
        claim.settle(Some(Choice { tokens: 256, rate: 7 }));
        for budget in [&one, &two, &Budget::new(None, Some(key(1000)))] {
            assert_eq!((budget.prompts(), budget.step(64), budget.step(600)), (256, 256, 600));
            assert!(budget.claim().is_none());
        }
        assert!(Budget::new(None, Some(key(1001))).claim().is_some(), "another device is another matter");
    }

    #[test]
    fn what_the_host_says_is_not_measured() {
        let budget = Budget::new(Some(99), Some(key(1002)));
        assert!(budget.claim().is_none() && budget.choice().is_none());
        assert_eq!((budget.prompts(), budget.step(64)), (99, 99));
        // Where nothing can be found out nobody tries again.
        let other = Budget::new(None, Some(key(1002)));
        other.claim().unwrap().settle(None);
        assert!(other.claim().is_none() && other.choice().is_none() && other.prompts() == 512);
    }
}
