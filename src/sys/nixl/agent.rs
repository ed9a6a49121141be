//! NIXL agents. An agent is one end of a transfer; peers identify it by its name.

use super::live::LiveAgent;
use super::memory::{Memory, Registered, Registration};
use super::pieces::{Piece, coalesce};
use super::request::Request;
use super::transfer::{Reads, Transfer};
use super::{capi, metadata};
use crate::error::Result;
use crate::sys::thread::with_signals_blocked;
use crate::{bail, error};
use std::collections::HashSet;
use std::ffi::CStr;
use std::sync::{Arc, PoisonError, RwLock};

/// A NIXL agent with its UCX backend and its progress thread. Any thread may call it at any time.
///
/// Dropping the agent ends everything: transfers in flight fail with SHUTDOWN, and after the drop nothing is written to
/// registered memory any more. Registrations and transfers may be dropped after the agent.
pub struct Agent {
    live: Arc<LiveAgent>,
    /// Names of the added peers. Removing a peer takes the write lock, so that no read starts meanwhile.
    peers: RwLock<HashSet<String>>,
    reads: Arc<Reads>,
}

impl Agent {
    /// Creates an agent. `name` (1 to 128 bytes) must differ from the names of all its peers and of all earlier agents,
    /// because a peer rejects a known name with a different address. UNSUPPORTED without a usable NIXL.
    pub fn new(name: &str) -> Result<Agent> {
        let live = Arc::new(LiveAgent::new(&metadata::c_name(name)?)?);
        Ok(Agent { reads: Arc::new(Reads::new(live.clone())), live, peers: RwLock::default() })
    }

    /// The name under which peers know this agent.
    pub fn name(&self) -> &str {
        &self.live.name
    }

    /// Registers memory with NIXL. Reads can then land in it, and peers that get metadata made afterwards can read it.
    /// Pins the memory where RDMA requires that. Register a slab once, not once per request.
    pub fn register(&self, memory: Memory) -> Result<Registration> {
        Ok(Registration(Arc::new(Registered::new(&self.live, memory)?)))
    }

    /// Metadata that a peer needs to read from this process: its addresses, and keys to the memory registered **now**.
    /// Some hundreds of bytes. Whoever has it can read that memory, so send it only over an authenticated connection.
    pub fn metadata(&self) -> Result<Vec<u8>> {
        self.live.with(|functions, agent| {
            let (mut data, mut len) = (std::ptr::null_mut(), 0);
            // SAFETY: the agent is alive, and the call writes the pointer and the length to locals.
            let status = unsafe { (functions.get_local_md)(agent, &mut data, &mut len) };
            if status != capi::SUCCESS || data.is_null() {
                bail!(Device, "NIXL agent {}: no metadata: {}", self.live.name, capi::describe(status));
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
        if name == self.live.name {
            bail!(InvalidArgument, "NIXL metadata names agent {name}, which is this one");
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        self.live.with(|functions, agent| {
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
        self.reads.reap();
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let c_name = metadata::c_name(name)?;
        if !peers.contains(name) {
            bail!(NotFound, "NIXL agent {name} is no peer of {}", self.live.name);
        }
        let active = self.reads.in_flight(Some(name));
        if active > 0 {
            bail!(WouldBlock, "NIXL agent {name} cannot be removed: {active} reads from it are in flight");
        }
        // SAFETY: the agent and the C string are alive.
        let status = self.live.with(|f, agent| Ok(unsafe { (f.invalidate_remote_md)(agent, c_name.as_ptr()) }))?;
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
        self.reads.reap();
        let memory = registration.0.clone();
        if !Arc::ptr_eq(&memory.agent, &self.live) {
            bail!(InvalidArgument, "NIXL read: the memory is registered with agent {}", memory.agent.name);
        }
        let pieces = coalesce(pieces, memory.len)?;
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        if !peers.contains(peer) {
            bail!(NotFound, "NIXL agent {peer} is no peer of {}", self.live.name);
        }
        let c_name = metadata::c_name(peer)?;
        // Destroying the agent ends every request in the list, so the request is added while the agent cannot be
        // destroyed.
        let request = self.live.with(|functions, agent| {
            let request = Arc::new(Request::post(functions, agent, &c_name, memory, &pieces)?);
            self.reads.add(request.clone());
            Ok(request)
        })?;
        Ok(Transfer::new(self.reads.clone(), request))
    }

    /// Number of reads that have not ended, including those whose transfer was dropped.
    pub fn in_flight(&self) -> usize {
        self.reads.reap();
        self.reads.in_flight(None)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let error = error!(Shutdown, "NIXL agent {} was destroyed with this read in flight", self.live.name);
        self.reads.destroy_agent(&error);
    }
}
