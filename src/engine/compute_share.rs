//! How the engines on one device share its multiprocessors.
//!
//! The priority of a stream does not interrupt a running kernel. Without multiprocessors of its own, a decode engine's kernels
//! therefore queue behind those of a long prompt. When a prefill and a decode engine are on one device and the host gave no
//! engine there a share, each role gets a share by default. Shares are decided when an engine starts or ends or when the host
//! sets one. A change of role keeps the share, because graphs recorded for one share cannot run on another.

use super::Role;
use super::shared::EngineShared;
use crate::error::Result;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

/// Default percentages of the multiprocessors. Prefill is bound by compute; decode is bound by memory, which fewer
/// multiprocessors saturate.
const PREFILL_PERCENT: u32 = 70;
const DECODE_PERCENT: u32 = 30;

/// Converts the host's `sm_percent` to a share: 0 becomes None (the default), 100 becomes 0 (the whole device).
pub(super) fn from_sm_percent(sm_percent: u32) -> Result<Option<u32>> {
    match sm_percent {
        0 => Ok(None),
        1..100 => Ok(Some(sm_percent)),
        100 => Ok(Some(0)),
        _ => crate::bail!(InvalidArgument, "sm_percent {sm_percent} is over 100"),
    }
}

type Engines = HashMap<i32, Vec<Weak<EngineShared>>>;

/// Engines of this process by device. The lock is held while shares change, so that changes happen one after the other.
fn engines() -> MutexGuard<'static, Engines> {
    static ENGINES: LazyLock<Mutex<Engines>> = LazyLock::new(Mutex::default);
    ENGINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds an engine that has begun to run, and balances the shares on its device.
pub(super) fn join(engine: &Arc<EngineShared>) {
    if let Some(device) = engine.cache.partitioned_device() {
        let mut engines = engines();
        let here = engines.entry(device).or_default();
        here.push(Arc::downgrade(engine));
        balance(here);
    }
}

/// Removes an engine that has ended, and balances the shares on its device.
pub(super) fn leave(engine: &Arc<EngineShared>) {
    if let Some(device) = engine.cache.partitioned_device() {
        let mut engines = engines();
        if let Some(here) = engines.get_mut(&device) {
            here.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(engine)));
            balance(here);
        }
    }
}

/// Sets an engine's share; None leaves it to the default. The share is acquired on this thread, so that the caller gets the
/// error; the step thread only switches to it.
pub(super) fn set(engine: &Arc<EngineShared>, set: Option<u32>) -> Result<()> {
    let mut engines = engines();
    if let Some(percent) = set {
        change(engine, percent)?;
    }
    engine.share.lock().set = set;
    match engine.cache.partitioned_device().and_then(|device| engines.get_mut(&device)) {
        Some(here) => balance(here),
        None => change(engine, 0)?,
    }
    Ok(())
}

fn change(engine: &EngineShared, percent: u32) -> Result<()> {
    let mut state = engine.share.lock();
    if state.percent != percent {
        engine.inbox.replace_compute_share(engine.cache.compute_share(percent, state.percent)?);
        state.percent = percent;
    }
    Ok(())
}

/// Gives the current default share to the engines of a device for which the host set none. If the driver or the device cannot
/// partition multiprocessors, all engines keep their shares.
fn balance(here: &mut Vec<Weak<EngineShared>>) {
    here.retain(|engine| engine.strong_count() > 0);
    let engines: Vec<Arc<EngineShared>> = here.iter().filter_map(Weak::upgrade).collect();
    let any = |wanted: Role| engines.iter().any(|engine| engine.role() == wanted);
    let unset = |engine: &&Arc<EngineShared>| engine.share.lock().set.is_none();
    let parts = engines.iter().all(|engine| unset(&engine)) && any(Role::Prefill) && any(Role::Decode);
    let mut changes = Vec::new();
    for engine in engines.iter().filter(unset) {
        let percent = match engine.role() {
            Role::Prefill if parts => PREFILL_PERCENT,
            Role::Decode if parts => DECODE_PERCENT,
            _ => 0,
        };
        let now = engine.share.lock().percent;
        if now == percent {
            continue;
        }
        match engine.cache.compute_share(percent, now) {
            Ok(share) => changes.push((engine, percent, share)),
            Err(error) => {
                crate::log!(Info, "engine", "prefill and decode engines compete for all multiprocessors: {error}");
                return;
            }
        }
    }
    for (engine, percent, share) in changes {
        crate::log!(
            Info,
            "engine",
            "{:?} engine: default share of {percent} % of the multiprocessors (0: all)",
            engine.role()
        );
        engine.inbox.replace_compute_share(share);
        engine.share.lock().percent = percent;
    }
}
