//! Requests to read a peer's memory: descriptor lists, posting and completion.

use super::capi::{self, Functions};
use super::loader::Handle;
use super::memory::Registered;
use super::pieces::Piece;
use crate::bail;
use crate::error::{Error, Result};
use std::ffi::CStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A posted request. The agent keeps it until it has ended, even if the transfer was dropped.
pub(super) struct Request {
    state: Mutex<RequestState>,
    pub peer: String,
    pub bytes: usize,
    /// Keeps the destination alive until the request is dropped, which is after the read ends.
    _memory: Arc<Registered>,
}

enum RequestState {
    Active(Handle),
    Ended(Result<()>),
}

// SAFETY: the handle is used only under the mutex, and NIXL accepts it from any thread.
unsafe impl Send for Request {}
// SAFETY: for the same reason as Send.
unsafe impl Sync for Request {}

impl Request {
    /// Creates and posts a read of `pieces`, which must lie in `memory` and not be empty.
    pub fn post(
        functions: &Functions,
        agent: Handle,
        peer: &CStr,
        memory: Arc<Registered>,
        pieces: &[Piece],
    ) -> Result<Request> {
        let name = peer.to_string_lossy().into_owned();
        let bytes = pieces.iter().map(|piece| piece.len).sum();
        let local = List::new(functions, pieces.iter().map(|piece| (memory.address + piece.offset, piece.len)))?;
        let remote = List::new(functions, pieces.iter().map(|piece| (piece.remote_address as usize, piece.len)))?;
        let mut handle = std::ptr::null_mut();
        let none = std::ptr::null_mut();
        // SAFETY: the agent, both lists (of the same shape) and the C string are alive; the handle goes to a local.
        let status = unsafe {
            (functions.create_xfer_req)(agent, capi::READ, local.raw, remote.raw, peer.as_ptr(), &mut handle, none)
        };
        if status != capi::SUCCESS {
            // SAFETY: the agent and the C string are alive; a null list asks about the peer as a whole.
            if unsafe { (functions.check_remote_md)(agent, peer.as_ptr(), none) } != capi::SUCCESS {
                bail!(Peer, "NIXL agent {name} is gone");
            }
            let (first, why) = (pieces[0].remote_address, capi::describe(status));
            bail!(
                InvalidArgument,
                "NIXL agent {name} has not registered all of the {} pieces ({bytes} bytes) to read, of which the first \
                 is at {first:#x}: {why}",
                pieces.len()
            );
        }
        // SAFETY: the request was just made.
        let status = unsafe { (functions.post_xfer_req)(agent, handle, none) };
        let request = Request { state: Mutex::new(RequestState::Active(handle)), peer: name, bytes, _memory: memory };
        request.end_by(functions, agent, status);
        match &*request.state() {
            RequestState::Ended(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }?;
        Ok(request)
    }

    fn state(&self) -> MutexGuard<'_, RequestState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result, if the read has ended.
    pub fn ended(&self) -> Option<Result<()>> {
        match &*self.state() {
            RequestState::Active(_) => None,
            RequestState::Ended(result) => Some(result.clone()),
        }
    }

    /// Updates the state from NIXL.
    pub fn poll(&self, functions: &Functions, agent: Handle) {
        let mut state = self.state();
        if let RequestState::Active(handle) = *state {
            // SAFETY: the agent is alive, and the request is released only in `end` and `abandon`, under the same lock.
            let status = unsafe { (functions.get_xfer_status)(agent, handle) };
            self.end(&mut state, functions, agent, status);
        }
    }

    /// Ends the request because its agent is about to be destroyed.
    pub fn abandon(&self, functions: &Functions, agent: Handle, error: Error) {
        let mut state = self.state();
        if let RequestState::Active(handle) = *state {
            release(functions, agent, handle);
            *state = RequestState::Ended(Err(error));
        }
    }

    fn end_by(&self, functions: &Functions, agent: Handle, status: i32) {
        self.end(&mut self.state(), functions, agent, status);
    }

    fn end(&self, state: &mut RequestState, functions: &Functions, agent: Handle, status: i32) {
        let RequestState::Active(handle) = *state else { return };
        if status == capi::IN_PROGRESS {
            return;
        }
        release(functions, agent, handle);
        *state = RequestState::Ended(match status {
            capi::SUCCESS => Ok(()),
            // NIXL forgets a peer whose connection broke, so its other requests fail with a lookup error.
            _ => Err(crate::error!(
                Peer,
                "NIXL read of {} bytes from agent {} failed: {}",
                self.bytes,
                self.peer,
                capi::describe(status)
            )),
        });
    }
}

fn release(functions: &Functions, agent: Handle, handle: Handle) {
    // SAFETY: the agent and the request are alive, and nothing uses the request afterwards.
    let status = unsafe { (functions.release_xfer_req)(agent, handle) };
    if status != capi::SUCCESS {
        crate::log!(Warn, "nixl", "a request cannot be released: {}", capi::describe(status));
        return;
    }
    // SAFETY: the request was released, so only the C API's wrapper is left.
    unsafe { (functions.destroy_xfer_req)(handle) };
}

/// A descriptor list.
struct List<'a> {
    functions: &'a Functions,
    raw: Handle,
}

impl List<'_> {
    fn new(functions: &Functions, parts: impl Iterator<Item = (usize, usize)>) -> Result<List<'_>> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the call writes the handle to a local.
        let status = unsafe { (functions.create_xfer_dlist)(capi::DRAM, &mut raw) };
        if status != capi::SUCCESS {
            bail!(OutOfMemory, "NIXL cannot make a descriptor list: {}", capi::describe(status));
        }
        let list = List { functions, raw };
        for (address, len) in parts {
            // SAFETY: the list was just made, and the call does not dereference the address.
            let status = unsafe { (functions.xfer_dlist_add_desc)(raw, address, len, 0) };
            if status != capi::SUCCESS {
                bail!(OutOfMemory, "NIXL cannot fill a descriptor list: {}", capi::describe(status));
            }
        }
        Ok(list)
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `new` and destroyed once; NIXL keeps its own copies of what it needs.
        unsafe { (self.functions.destroy_xfer_dlist)(self.raw) };
    }
}
