//! NIXL agents: an agent is one end of transfers, and peers know it by its name.

use super::capi::{self, AgentConfig, Functions, Handle};
use super::memory::{Memory, Registered, Registration};
use super::transfer::{Piece, Request, Transfer, coalesce};
use super::{library::Library, metadata};
use crate::error::Result;
use crate::sys::thread::with_signals_blocked;
use crate::{bail, error};
use std::collections::HashSet;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// How long the progress thread sleeps at most, in microseconds. It wakes by itself for what arrives; NIXL looks
/// again for the wake-ups that UCX misses. With 0, which is NIXL's default, it would never sleep, and take a core.
/// Idle, 1 ms cost 2 to 3 % of a core and 20 ms under 1 %; bandwidth over TCP and shared memory did not differ.
const PROGRESS_DELAY_US: u64 = 20_000;

/// A NIXL agent with its UCX backend and its progress thread. Calls may come from any thread at once.
///
/// Dropping it ends everything: transfers in flight end with SHUTDOWN, and after the drop no byte of registered
/// memory is written any more. Registrations and transfers may be dropped later.
pub struct Agent(Arc<Core>);

pub(super) struct Core {
    library: &'static Library,
    pub name: String,
    /// None once the agent is destroyed. Written to destroy it, read by every other call.
    raw: RwLock<Option<Raw>>,
    /// Names of the added peers. Locked for writing while a peer is removed, so that no read starts meanwhile.
    peers: RwLock<HashSet<String>>,
    /// Requests that have not been seen to end.
    requests: Mutex<Vec<Arc<Request>>>,
}

struct Raw(Handle);

// SAFETY: the agent is made with SYNC_READ_WRITE, so NIXL locks for itself.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Agent {
    /// Makes an agent. `name` (1 to 128 bytes) must differ from the names of all its peers and of earlier agents: a peer refuses
    /// a known name with another address. UNSUPPORTED without a usable NIXL.
    pub fn new(name: &str) -> Result<Agent> {
        let c_name = metadata::c_name(name)?;
        let library = Library::get()?;
        let functions = &library.functions;
        // NIXL's threads inherit the mask.
        let raw = with_signals_blocked(|| create(functions, &c_name))?;
        Ok(Agent(Arc::new(Core {
            library,
            name: name.to_string(),
            raw: RwLock::new(Some(Raw(raw))),
            peers: RwLock::default(),
            requests: Mutex::default(),
        })))
    }

    /// The name under which peers know this agent.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Makes memory known to NIXL: readable for peers that get the metadata made afterwards, and a place for reads
    /// to land in. Pins it where RDMA needs that. Do it once for a slab, not once for a request.
    pub fn register(&self, memory: Memory) -> Result<Registration> {
        Ok(Registration(Arc::new(Registered::new(&self.0, memory)?)))
    }

    /// Metadata that a peer needs to read from here: addresses of this process and keys to the memory that is registered
    /// **now**. Some hundreds of bytes. Whoever has it can read that memory, so send it over an authenticated connection only.
    pub fn metadata(&self) -> Result<Vec<u8>> {
        self.0.with(|functions, agent| {
            let (mut data, mut len) = (std::ptr::null_mut(), 0);
            // SAFETY: a live agent and places for the pointer and the length.
            let status = unsafe { (functions.get_local_md)(agent, &mut data, &mut len) };
            if status != capi::SUCCESS || data.is_null() {
                bail!(Device, "NIXL agent {}: no metadata: {}", self.0.name, capi::describe(status));
            }
            // SAFETY: `len` bytes from malloc, which are ours to free.
            Ok(unsafe {
                let metadata = metadata::wrap(std::slice::from_raw_parts(data.cast::<u8>(), len));
                libc::free(data);
                metadata
            })
        })
    }

    /// Adds a peer by its metadata and returns its name. Can be called again after the peer has registered more memory. CORRUPT
    /// if the metadata is damaged, INCOMPATIBLE if NIXL refuses it. Accept metadata from authenticated peers only: NIXL and UCX
    /// trust all of it but the name.
    pub fn add_peer(&self, metadata: &[u8]) -> Result<String> {
        let (name, blob) = metadata::unwrap(metadata)?;
        if name == self.0.name {
            bail!(InvalidArgument, "NIXL metadata names agent {name}, which is this one");
        }
        let mut peers = self.0.peers.write().unwrap_or_else(PoisonError::into_inner);
        self.0.with(|functions, agent| {
            let mut loaded = std::ptr::null_mut();
            // SAFETY: a live agent, the bytes, and a place for the name.
            let status = with_signals_blocked(|| unsafe {
                (functions.load_remote_md)(agent, blob.as_ptr().cast(), blob.len(), &mut loaded)
            });
            if status != capi::SUCCESS || loaded.is_null() {
                bail!(Incompatible, "NIXL does not take the metadata of agent {name}: {}", capi::describe(status));
            }
            // SAFETY: a C string from malloc, which is ours to free.
            let known = unsafe {
                let known = CStr::from_ptr(loaded).to_string_lossy().into_owned();
                libc::free(loaded.cast());
                known
            };
            if known != name {
                bail!(Corrupt, "NIXL metadata names agent {name}, but NIXL reads {known}");
            }
            Ok(())
        })?;
        peers.insert(name.clone());
        Ok(name)
    }

    /// Forgets a peer. WOULD_BLOCK while reads from it are in flight: forgetting does not stop them.
    pub fn remove_peer(&self, name: &str) -> Result<()> {
        self.0.reap();
        let mut peers = self.0.peers.write().unwrap_or_else(PoisonError::into_inner);
        let c_name = metadata::c_name(name)?;
        if !peers.contains(name) {
            bail!(NotFound, "NIXL agent {name} is no peer of {}", self.0.name);
        }
        let active = self.0.requests().iter().filter(|r| r.peer == name && r.ended().is_none()).count();
        if active > 0 {
            bail!(WouldBlock, "NIXL agent {name} cannot be removed: {active} reads from it are in flight");
        }
        // SAFETY: a live agent and a C string.
        let status = self.0.with(|f, agent| Ok(unsafe { (f.invalidate_remote_md)(agent, c_name.as_ptr()) }))?;
        // NIXL has forgotten a peer whose connection broke.
        if status != capi::SUCCESS && status != capi::NOT_FOUND {
            bail!(Device, "NIXL agent {name} cannot be removed: {}", capi::describe(status));
        }
        peers.remove(name);
        Ok(())
    }

    /// Starts to read `pieces` of a peer's registered memory into `registration`, and returns the transfer to poll.
    /// Pieces may be in any order but must not overlap locally. PEER if it is gone; INVALID_ARGUMENT names a piece
    /// that is not in the registration, or says that the peer has not registered what is asked for.
    pub fn read(&self, peer: &str, registration: &Registration, pieces: &[Piece]) -> Result<Transfer> {
        self.0.reap();
        let memory = registration.0.clone();
        if !Arc::ptr_eq(&memory.core, &self.0) {
            bail!(InvalidArgument, "NIXL read: the memory is registered with agent {}", memory.core.name);
        }
        let pieces = coalesce(pieces, memory.len)?;
        let peers = self.0.peers.read().unwrap_or_else(PoisonError::into_inner);
        if !peers.contains(peer) {
            bail!(NotFound, "NIXL agent {peer} is no peer of {}", self.0.name);
        }
        let c_name = metadata::c_name(peer)?;
        // In the list before the agent can be destroyed, which must see every request.
        let request = self.0.with(|functions, agent| {
            let request = Arc::new(Request::post(functions, agent, &c_name, memory, &pieces)?);
            self.0.requests().push(request.clone());
            Ok(request)
        })?;
        Ok(Transfer::new(self.0.clone(), request))
    }

    /// Number of reads that have not ended, including those whose transfer was dropped.
    pub fn in_flight(&self) -> usize {
        self.0.reap();
        self.0.requests().iter().filter(|request| request.ended().is_none()).count()
    }
}

fn create(functions: &Functions, name: &CStr) -> Result<Handle> {
    let config = AgentConfig {
        // Without it nobody serves a peer's reads over TCP while this process is busy elsewhere.
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
    // SAFETY: C strings, a configuration and places for handles; each handle is used only if it was made.
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
        // Only the C API's handle of it: the backend is the agent's, and the only one.
        (functions.destroy_backend)(backend);
    }
    Ok(agent)
}

impl Core {
    /// Calls into NIXL with the agent, which cannot be destroyed meanwhile.
    pub fn with<T>(&self, call: impl FnOnce(&Functions, Handle) -> Result<T>) -> Result<T> {
        let raw = self.raw.read().unwrap_or_else(PoisonError::into_inner);
        let agent = raw.as_ref().ok_or_else(|| error!(Shutdown, "NIXL agent {} was destroyed", self.name))?;
        call(&self.library.functions, agent.0)
    }

    fn requests(&self) -> MutexGuard<'_, Vec<Arc<Request>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See `Transfer::poll`.
    pub fn poll(&self, request: &Arc<Request>) -> Result<bool> {
        if request.ended().is_none() {
            // An agent destroyed meanwhile has ended it.
            let _ = self.with(|functions, agent| {
                request.poll(functions, agent);
                Ok(())
            });
        }
        let Some(result) = request.ended() else { return Ok(false) };
        self.requests().retain(|other| !Arc::ptr_eq(other, request));
        result.map(|()| true)
    }

    /// Polls requests whose transfer was dropped, and forgets those that have ended.
    fn reap(&self) {
        // Polled outside the lock: a poll may copy for long.
        let dropped: Vec<_> = self.requests().iter().filter(|r| Arc::strong_count(r) == 1).cloned().collect();
        for request in dropped {
            let _ = self.poll(&request);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let mut raw = self.0.raw.write().unwrap_or_else(PoisonError::into_inner);
        let Some(Raw(agent)) = raw.take() else { return };
        let functions = &self.0.library.functions;
        let requests = std::mem::take(&mut *self.0.requests());
        // Requests hold on to the agent's backend, so they go first.
        for request in &requests {
            let error = error!(Shutdown, "NIXL agent {} was destroyed with this read in flight", self.0.name);
            request.abandon(functions, agent, error);
        }
        // SAFETY: the last use of the agent: whoever asks for it from here on finds None.
        let status = unsafe { (functions.destroy_agent)(agent) };
        drop(raw);
        if status != capi::SUCCESS {
            crate::log!(Warn, "nixl", "agent {}: destruction: {}", self.0.name, capi::describe(status));
        }
        // `requests` is dropped now, and with it the memory that they kept: UCX writes there no more.
    }
}
