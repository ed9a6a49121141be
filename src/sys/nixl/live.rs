//! A NIXL agent as NIXL knows it, from its creation to its destruction.

use super::capi::{self, AgentConfig, Functions};
use super::library::Library;
use super::loader::Handle;
use crate::error::Result;
use crate::sys::thread::with_signals_blocked;
use crate::{bail, error};
use std::ffi::CStr;
use std::sync::{PoisonError, RwLock};

/// Longest sleep of the progress thread in microseconds. Incoming traffic wakes the thread; the limit makes NIXL check
/// again in case UCX missed a wake-up. With 0, NIXL's default, the thread would never sleep and would occupy a core.
/// Measured while idle: 1 ms costs 2 to 3 % of a core, 20 ms under 1 %, with the same bandwidth over TCP and shared
/// memory.
const PROGRESS_DELAY_US: u64 = 20_000;

/// An agent that exists until it is destroyed, whoever still holds this.
pub(super) struct LiveAgent {
    library: &'static Library,
    pub name: String,
    /// None once the agent is destroyed. Destroying it takes the write lock; every other call takes the read lock.
    raw: RwLock<Option<Raw>>,
}

struct Raw(Handle);

// SAFETY: the agent is created with SYNC_READ_WRITE, so NIXL does its own locking.
unsafe impl Send for Raw {}
// SAFETY: for the same reason as Send.
unsafe impl Sync for Raw {}

impl LiveAgent {
    pub fn new(name: &CStr) -> Result<LiveAgent> {
        let library = Library::get()?;
        // Threads that NIXL starts inherit the signal mask.
        let raw = with_signals_blocked(|| create(&library.functions, name))?;
        Ok(LiveAgent { library, name: name.to_string_lossy().into_owned(), raw: RwLock::new(Some(Raw(raw))) })
    }

    /// Calls into NIXL with the agent, which cannot be destroyed during the call.
    pub fn with<T>(&self, call: impl FnOnce(&Functions, Handle) -> Result<T>) -> Result<T> {
        let raw = self.raw.read().unwrap_or_else(PoisonError::into_inner);
        let agent = raw.as_ref().ok_or_else(|| error!(Shutdown, "NIXL agent {} was destroyed", self.name))?;
        call(&self.library.functions, agent.0)
    }

    /// Destroys the agent, after `release` has released what refers to it. Nothing calls NIXL with it meanwhile or later.
    pub fn destroy(&self, release: impl FnOnce(&Functions, Handle)) {
        let mut raw = self.raw.write().unwrap_or_else(PoisonError::into_inner);
        let Some(Raw(agent)) = raw.take() else { return };
        let functions = &self.library.functions;
        release(functions, agent);
        // SAFETY: this is the last use of the agent; later callers find None.
        let status = unsafe { (functions.destroy_agent)(agent) };
        drop(raw);
        if status != capi::SUCCESS {
            crate::log!(Warn, "nixl", "agent {}: destruction: {}", self.name, capi::describe(status));
        }
    }
}

fn create(functions: &Functions, name: &CStr) -> Result<Handle> {
    let config = AgentConfig {
        // Without this thread, a peer's reads over TCP would wait while this process is busy elsewhere.
        progress_thread: true,
        listen_thread: false,
        listen_port: 0,
        thread_sync: capi::SYNC_READ_WRITE,
        workers: 1,
        progress_delay_us: PROGRESS_DELAY_US,
        listen_delay_us: 100_000,
        capture_telemetry: false,
    };
    let name_text = name.to_string_lossy();
    let (mut agent, mut parameters, mut backend) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the C strings, the configuration and the handles' locals are alive; a handle is used only if it was made.
    unsafe {
        let status = (functions.create_configured_agent)(name.as_ptr(), &config, &mut agent);
        if status != capi::SUCCESS {
            bail!(Unsupported, "NIXL agent {name_text} cannot be made: {}", capi::describe(status));
        }
        let mut status = (functions.create_params)(&mut parameters);
        if status == capi::SUCCESS {
            status = (functions.create_backend)(agent, c"UCX".as_ptr(), parameters, &mut backend);
            (functions.destroy_params)(parameters);
        }
        if status != capi::SUCCESS {
            (functions.destroy_agent)(agent);
            bail!(Unsupported, "NIXL agent {name_text}: no UCX backend: {}", capi::describe(status));
        }
        // This frees only the C API's handle. The agent owns the backend itself, its only one.
        (functions.destroy_backend)(backend);
    }
    Ok(agent)
}
