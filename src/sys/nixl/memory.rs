//! Memory registered with NIXL: peers may read it, and reads land in it.

use super::capi::{self, Functions};
use super::live::LiveAgent;
use super::loader::Handle;
use crate::bail;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

/// Owner of memory to register. It is kept alive as long as NIXL knows the memory. The bytes are atomic, because other
/// threads and processes may read and write them at any time.
pub type Memory = Arc<dyn AsRef<[AtomicU8]> + Send + Sync>;

/// Memory registered with an agent. Dropping this ends the registration once the reads into it have ended, which may be
/// after the drop. From then on, a peer with its metadata can no longer read the memory. Shared memory is an exception:
/// there the peer maps or reads the process directly, and can do so as long as the memory exists.
pub struct Registration(pub(super) Arc<Registered>);

impl Registration {
    /// Address of the first byte, from which peers compute `Piece::remote_address`.
    pub fn address(&self) -> u64 {
        self.0.address as u64
    }

    /// Number of registered bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// True if no bytes are registered.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The owner of the registered memory.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }
}

pub(super) struct Registered {
    pub agent: Arc<LiveAgent>,
    memory: Memory,
    /// Address and length of the memory, read once: NIXL knows these, whatever `as_ref` returns later.
    pub address: usize,
    pub len: usize,
}

impl Registered {
    pub fn new(agent: &Arc<LiveAgent>, memory: Memory) -> Result<Registered> {
        let bytes = (*memory).as_ref();
        let (address, len) = (bytes.as_ptr() as usize, bytes.len());
        if len == 0 {
            bail!(InvalidArgument, "NIXL agent {}: registration of no memory", agent.name);
        }
        agent.with(|functions, raw| {
            let list = List::new(functions, address, len)?;
            // SAFETY: the agent and the list are alive, and the registration keeps `memory`, which owns the bytes.
            let status = unsafe { (functions.register_mem)(raw, list.raw, std::ptr::null_mut()) };
            if status != capi::SUCCESS {
                let why = capi::describe(status);
                bail!(Device, "NIXL agent {}: {len} bytes of memory cannot be registered: {why}", agent.name);
            }
            Ok(())
        })?;
        Ok(Registered { agent: agent.clone(), memory, address, len })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // An agent that was destroyed has already deregistered everything.
        let done = self.agent.with(|functions, raw| {
            let list = List::new(functions, self.address, self.len)?;
            // SAFETY: the agent and the list are alive, and the list equals the registered one.
            Ok(unsafe { (functions.deregister_mem)(raw, list.raw, std::ptr::null_mut()) })
        });
        if let Ok(status) = done
            && status != capi::SUCCESS
        {
            crate::log!(Warn, "nixl", "agent {}: deregistration: {}", self.agent.name, capi::describe(status));
        }
    }
}

/// A descriptor list of one region, for registration and deregistration.
struct List<'a> {
    functions: &'a Functions,
    raw: Handle,
}

impl List<'_> {
    fn new(functions: &Functions, address: usize, len: usize) -> Result<List<'_>> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the call writes the handle to a local.
        let status = unsafe { (functions.create_reg_dlist)(capi::DRAM, &mut raw) };
        if status != capi::SUCCESS {
            bail!(OutOfMemory, "NIXL cannot make a registration list: {}", capi::describe(status));
        }
        let list = List { functions, raw };
        // SAFETY: the list was just made, and the empty metadata is a valid pointer to zero bytes.
        let status = unsafe { (functions.reg_dlist_add_desc)(raw, address, len, 0, c"".as_ptr().cast(), 0) };
        if status != capi::SUCCESS {
            bail!(OutOfMemory, "NIXL cannot fill a registration list: {}", capi::describe(status));
        }
        Ok(list)
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `new` and destroyed once; NIXL keeps its own copies of what it needs.
        unsafe { (self.functions.destroy_reg_dlist)(self.raw) };
    }
}
