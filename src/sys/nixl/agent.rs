//! NIXL agents. An agent is one end of a transfer; peers identify it by its name.

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

/// Longest sleep of the progress thread in microseconds. Incoming traffic wakes the thread; the limit makes NIXL check
/// again in case UCX missed a wake-up. With 0, NIXL's default, the thread would never sleep and would occupy a core.
/// Measured while idle: 1 ms costs 2 to 3 % of a core, 20 ms under 1 %, with the same bandwidth over TCP and shared
/// memory.
const PROGRESS_DELAY_US: u64 = 20_000;

/// A NIXL agent with its UCX backend and its progress thread. Any thread may call it at any time.
///
/// Dropping the agent ends everything: transfers in flight fail with SHUTDOWN, and after the drop nothing is written to
/// registered memory any more. Registrations and transfers may be dropped after the agent.
pub struct Agent(Arc<Core>);

pub(super) struct Core {
    library: &'static Library,
    pub name: String,
    /// None once the agent is destroyed. Destroying it takes the write lock; every other call takes the read lock.
    raw: RwLock<Option<Raw>>,
    /// Names of the added peers. Removing a peer takes the write lock, so that no read starts meanwhile.
    peers: RwLock<HashSet<String>>,
    /// Requests that may still be in flight.
    requests: Mutex<Vec<Arc<Request>>>,
}

struct Raw(Handle);

// SAFETY: the agent is created with SYNC_READ_WRITE, so NIXL does its own locking.
unsafe impl Send for Raw {}
// SAFETY: for the same reason as Send.
unsafe impl Sync for Raw {}

impl Agent {
    /// Creates an agent. `name` (1 to 128 bytes) must differ from the names of all its peers and of all earlier agents,
    /// because a peer rejects a known name with a different address. UNSUPPORTED without a usable NIXL.
    pub fn new(name: &str) -> Result<Agent> {
        let c_name = metadata::c_name(name)?;
        let library = Library::get()?;
        let functions = &library.functions;
        // Threads that NIXL starts inherit the signal mask.
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

    /// Registers memory with NIXL. Reads can then land in it, and peers that get metadata made afterwards can read it.
    /// Pins the memory where RDMA requires that. Register a slab once, not once per request.
    pub fn register(&self, memory: Memory) -> Result<Registration> {
        Ok(Registration(Arc::new(Registered::new(&self.0, memory)?)))
    }

    /// Metadata that a peer needs to read from this process: its addresses, and keys to the memory registered **now**.
    /// Some hundreds of bytes. Whoever has it can read that memory, so send it only over an authenticated connection.
    pub fn metadata(&self) -> Result<Vec<u8>> {
        self.0.with(|functions, agent| {
            let (mut data, mut len) = (std::ptr::null_mut(), 0);
            // SAFETY: the agent is alive, and the call writes the pointer and the length to locals.
            let status = unsafe { (functions.get_local_md)(agent, &mut data, &mut len) };
            if status != capi::SUCCESS || data.is_null() {
                bail!(Device, "NIXL agent {}: no metadata: {}", self.0.name, capi::describe(status));
            }
            // SAFETY: NIXL returned `len` bytes from malloc, and this process has to free them.
            Ok(unsafe {
                let metadata = metadata::wrap(std::slice::from_raw_parts(data.cast::<u8>(), len));
                libc::free(data);
                metadata
            })
        })
    }

    /// Adds a peer by its metadata and returns its name. Call this again after the peer has registered more memory.
    /// CORRUPT if the metadata is damaged, INCOMPATIBLE if NIXL rejects it. Accept metadata only from authenticated
    /// peers: NIXL and UCX trust all of it except the name.
    pub fn add_peer(&self, metadata: &[u8]) -> Result<String> {
        let (name, blob) = metadata::unwrap(metadata)?;
        if name == self.0.name {
            bail!(InvalidArgument, "NIXL metadata names agent {name}, which is this one");
        }
        let mut peers = self.0.peers.write().unwrap_or_else(PoisonError::into_inner);
        self.0.with(|functions, agent| {
            let mut loaded = std::ptr::null_mut();
            // SAFETY: the agent and the bytes are alive, and the call writes the name's pointer to a local.
            let status = with_signals_blocked(|| unsafe {
                (functions.load_remote_md)(agent, blob.as_ptr().cast(), blob.len(), &mut loaded)
            });
            if status != capi::SUCCESS || loaded.is_null() {
                bail!(Incompatible, "NIXL does not take the metadata of agent {name}: {}", capi::describe(status));
            }
            // SAFETY: NIXL returned a C string from malloc, and this process has to free it.
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

    /// Forgets a peer. WOULD_BLOCK while reads from it are in flight, because forgetting the peer does not stop them.
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
        // SAFETY: the agent and the C string are alive.
        let status = self.0.with(|f, agent| Ok(unsafe { (f.invalidate_remote_md)(agent, c_name.as_ptr()) }))?;
        // NIXL itself forgets a peer whose connection broke, so NOT_FOUND is no error.
        if status != capi::SUCCESS && status != capi::NOT_FOUND {
            bail!(Device, "NIXL agent {name} cannot be removed: {}", capi::describe(status));
        }
        peers.remove(name);
        Ok(())
    }

    /// Starts to read `pieces` of a peer's registered memory into `registration`. Poll the returned transfer until it
    /// ends. Pieces may be in any order but must not overlap locally. PEER if the peer is gone. INVALID_ARGUMENT if a
    /// piece is outside of the registration, or the peer has not registered the memory.
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
        // Destroying the agent ends every request in the list, so the request is added while the agent cannot be
        // destroyed.
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

impl Core {
    /// Calls into NIXL with the agent, which cannot be destroyed during the call.
    pub fn with<T>(&self, call: impl FnOnce(&Functions, Handle) -> Result<T>) -> Result<T> {
        let raw = self.raw.read().unwrap_or_else(PoisonError::into_inner);
        let agent = raw.as_ref().ok_or_else(|| error!(Shutdown, "NIXL agent {} was destroyed", self.name))?;
        call(&self.library.functions, agent.0)
    }

    fn requests(&self) -> MutexGuard<'_, Vec<Arc<Request>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Implements `Transfer::poll`.
    pub fn poll(&self, request: &Arc<Request>) -> Result<bool> {
        if request.ended().is_none() {
            // If the agent was destroyed meanwhile, that has ended the request.
            let _ = self.with(|functions, agent| {
                request.poll(functions, agent);
                Ok(())
            });
        }
        let Some(result) = request.ended() else { return Ok(false) };
        self.requests().retain(|other| !Arc::ptr_eq(other, request));
        result.map(|()| true)
    }

    /// Polls requests whose transfer was dropped, and removes those that have ended.
    fn reap(&self) {
        // Poll outside the lock, because a poll may copy data for a long time.
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
        // Requests refer to the agent's backend, so they are released first.
        for request in &requests {
            let error = error!(Shutdown, "NIXL agent {} was destroyed with this read in flight", self.0.name);
            request.abandon(functions, agent, error);
        }
        // SAFETY: this is the last use of the agent; later callers find None.
        let status = unsafe { (functions.destroy_agent)(agent) };
        drop(raw);
        if status != capi::SUCCESS {
            crate::log!(Warn, "nixl", "agent {}: destruction: {}", self.0.name, capi::describe(status));
        }
        // `requests` is dropped here, and with it the memory it kept alive: UCX no longer writes there.
    }
}
