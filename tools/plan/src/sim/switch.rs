//! Role switches by load: prefill engines become decode engines, and back, while their work goes on.

use super::deployment::{Deployment, Role, Switching};
use super::engine::Engine;
use crate::cost::StepWork;

/// The engine whose role should change now, and its new role.
pub fn decide(switching: &Switching, deployment: &Deployment, engines: &[Engine]) -> Option<(usize, Role)> {
    let of = |role: Role| engines.iter().enumerate().filter(move |(_, e)| e.alive && e.role == role);
    let (prefills, decodes) = (of(Role::Prefill).count(), of(Role::Decode).count());
    let wait = mean(of(Role::Prefill).map(|(_, engine)| prefill_wait(deployment, engine)), f64::INFINITY);
    let pace = mean(of(Role::Decode).map(|(_, engine)| decode_pace(deployment, engine)), f64::INFINITY);
    let full = mean(of(Role::Decode).map(|(_, engine)| fullness(deployment, engine)), 1.0);
    let least = |role| of(role).min_by_key(|(_, engine)| (engine.open, engine.backlog)).map(|(index, _)| index);
    let decode_is_late = pace > 0.9 * switching.itl_limit || full > 0.9;
    if wait > switching.ttft_limit / 2.0 && !decode_is_late && decodes > 1 {
        // The remaining decode engines must carry the load of the one that leaves.
        let more = decodes as f64 / (decodes - 1) as f64;
        let remaining = full * more < 0.9 && pace * more < switching.itl_limit;
        return least(Role::Decode).filter(|_| remaining).map(|index| (index, Role::Prefill));
    }
    if decode_is_late && wait <= switching.ttft_limit / 4.0 && prefills > 1 {
        return least(Role::Prefill).map(|index| (index, Role::Decode));
    }
    None
}

/// Seconds until the prompts that wait at an engine are computed.
fn prefill_wait(deployment: &Deployment, engine: &Engine) -> f64 {
    let spec = &deployment.pools[engine.pool];
    let step = spec.max_batch_tokens;
    engine.backlog as f64 / step as f64 * spec.cost.seconds(&StepWork::prefill(step, 0))
}

/// Seconds between tokens at an engine's present load.
fn decode_pace(deployment: &Deployment, engine: &Engine) -> f64 {
    let spec = &deployment.pools[engine.pool];
    // Requests whose prompt another engine still computes take no part in steps.
    let sequences = engine.scheduler.running().clamp(1, spec.max_sequences);
    let context = engine.blocks.held() as f64 * super::BLOCK_TOKENS as f64 / sequences as f64;
    spec.cost.seconds(&StepWork::decode(sequences, context))
}

/// Share of an engine's places or of its KV in use, whichever is more.
fn fullness(deployment: &Deployment, engine: &Engine) -> f64 {
    let places = engine.scheduler.running() as f64 / deployment.pools[engine.pool].max_sequences.max(1) as f64;
    let kv = engine.blocks.held() as f64 / engine.blocks.total().max(1) as f64;
    places.max(kv)
}

fn mean(values: impl Iterator<Item = f64>, none: f64) -> f64 {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    if n == 0 { none } else { sum / n as f64 }
}
