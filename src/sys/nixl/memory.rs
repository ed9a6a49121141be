//! Memory that peers may read and that reads land in.

use super::agent::Core;
use super::capi::{self, Functions, Handle};
use crate::bail;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

/// The owner of memory to register: it lives at least as long as NIXL knows the memory. Atomic bytes, because others
/// write and read them at any time.
pub type Memory = Arc<dyn AsRef<[AtomicU8]> + Send + Sync>;

/// Memory registered with an agent. Dropping it ends the registration as soon as the reads into it have ended, which may be
/// after the drop. A peer that holds metadata of it can no longer read it then; over shared memory, where the peer maps or
/// reads the process directly, it can as long as the memory exists.
pub struct Registration(pub(super) Arc<Registered>);

impl Registration {
    /// The address that peers count from: the first byte here, for a `Piece::remote_address` there.
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
    pub core: Arc<Core>,
    memory: Memory,
    /// Address and length of the memory, taken once: NIXL knows these, whatever `as_ref` returns later.
    pub address: usize,
    pub len: usize,
}

impl Registered {
    pub fn new(core: &Arc<Core>, memory: Memory) -> Result<Registered> {
        let bytes = (*memory).as_ref();
        let (address, len) = (bytes.as_ptr() as usize, bytes.len());
        if len == 0 {
            bail!(InvalidArgument, "NIXL agent {}: registration of no memory", core.name);
        }
        core.with(|functions, agent| {
            let list = List::new(functions, address, len)?;
            // SAFETY: a live agent and list; the memory is owned by `memory`, which the registration keeps.
            let status = unsafe { (functions.register_mem)(agent, list.raw, std::ptr::null_mut()) };
            if status != capi::SUCCESS {
                let why = capi::describe(status);
                bail!(Device, "NIXL agent {}: {len} bytes of memory cannot be registered: {why}", core.name);
            }
            Ok(())
        })?;
        Ok(Registered { core: core.clone(), memory, address, len })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // An agent that is gone has deregistered everything.
        let done = self.core.with(|functions, agent| {
            let list = List::new(functions, self.address, self.len)?;
            // SAFETY: as registered.
            Ok(unsafe { (functions.deregister_mem)(agent, list.raw, std::ptr::null_mut()) })
        });
        if let Ok(status) = done
            && status != capi::SUCCESS
        {
            crate::log!(Warn, "nixl", "agent {}: deregistration: {}", self.core.name, capi::describe(status));
        }
    }
}

/// A list of one region, for (de)registration.
struct List<'a> {
    functions: &'a Functions,
    raw: Handle,
}

impl List<'_> {
    fn new(functions: &Functions, address: usize, len: usize) -> Result<List<'_>> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        let status = unsafe { (functions.create_reg_dlist)(capi::DRAM, &mut raw) };
        if status != capi::SUCCESS {
            bail!(OutOfMemory, "NIXL cannot make a registration list: {}", capi::describe(status));
        }
        let list = List { functions, raw };
        // SAFETY: the list just made; the (empty) metadata is a valid pointer to zero bytes.
        let status = unsafe { (functions.reg_dlist_add_desc)(raw, address, len, 0, c"".as_ptr().cast(), 0) };
        if status != capi::SUCCESS {
            bail!(OutOfMemory, "NIXL cannot fill a registration list: {}", capi::describe(status));
        }
        Ok(list)
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once; NIXL copies what it needs of lists.
        unsafe { (self.functions.destroy_reg_dlist)(self.raw) };
    }
}
