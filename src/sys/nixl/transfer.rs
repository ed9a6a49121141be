//! Reads of a peer's memory: descriptor lists, requests and their completion.

use super::agent::Core;
use super::capi::{self, Functions, Handle};
use super::memory::Registered;
use crate::bail;
use crate::error::{Error, Result};
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes to read, from an address in the peer's registered memory to an offset in the local registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the local registration, in bytes.
    pub offset: usize,
    /// Address in the peer's process.
    pub remote_address: u64,
    /// Number of bytes.
    pub len: usize,
}

/// A read in progress. **The destination must not be used for anything else until `poll` reports the end of the
/// read**, with success or an error. There is no cancel, because UCX may still write after NIXL accepts a cancellation.
/// Dropping a transfer leaves it to its agent, which keeps the memory until the read ends.
///
/// Dropping the agent ends all its reads for certain, even if a peer hangs rather than dies. Use one agent per peer, so
/// that this does not affect other peers.
pub struct Transfer {
    core: Arc<Core>,
    request: Arc<Request>,
}

impl Transfer {
    pub(super) fn new(core: Arc<Core>, request: Arc<Request>) -> Transfer {
        Transfer { core, request }
    }

    /// Whether all bytes have arrived. An error means that the read ended without them: PEER if the peer is gone,
    /// SHUTDOWN if the agent is. Later calls return the same result. A call may do work, up to copying everything (see
    /// the module).
    pub fn poll(&self) -> Result<bool> {
        self.core.poll(&self.request)
    }

    /// Number of bytes to read.
    pub fn bytes(&self) -> usize {
        self.request.bytes
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // If the read has ended, its memory is released now. Otherwise later calls of the agent take care of it.
        let _ = self.poll();
    }
}

/// A posted request. The agent keeps it until it has ended, even if the transfer was dropped.
pub(super) struct Request {
    state: Mutex<TransferState>,
    pub peer: String,
    bytes: usize,
    /// Keeps the destination alive until the request is dropped, which is after the read ends.
    _memory: Arc<Registered>,
}

enum TransferState {
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
        let request = Request { state: Mutex::new(TransferState::Active(handle)), peer: name, bytes, _memory: memory };
        request.end_by(functions, agent, status);
        match &*request.state() {
            TransferState::Ended(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }?;
        Ok(request)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, TransferState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result, if the read has ended.
    pub fn ended(&self) -> Option<Result<()>> {
        match &*self.state() {
            TransferState::Active(_) => None,
            TransferState::Ended(result) => Some(result.clone()),
        }
    }

    /// Updates the state from NIXL.
    pub fn poll(&self, functions: &Functions, agent: Handle) {
        let mut state = self.state();
        if let TransferState::Active(handle) = *state {
            // SAFETY: the agent is alive, and the request is released only in `end` and `abandon`, under the same lock.
            let status = unsafe { (functions.get_xfer_status)(agent, handle) };
            self.end(&mut state, functions, agent, status);
        }
    }

    /// Ends the request because its agent is about to be destroyed.
    pub fn abandon(&self, functions: &Functions, agent: Handle, error: Error) {
        let mut state = self.state();
        if let TransferState::Active(handle) = *state {
            release(functions, agent, handle);
            *state = TransferState::Ended(Err(error));
        }
    }

    fn end_by(&self, functions: &Functions, agent: Handle, status: i32) {
        self.end(&mut self.state(), functions, agent, status);
    }

    fn end(&self, state: &mut TransferState, functions: &Functions, agent: Handle, status: i32) {
        let TransferState::Active(handle) = *state else { return };
        if status == capi::IN_PROGRESS {
            return;
        }
        release(functions, agent, handle);
        *state = TransferState::Ended(match status {
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

/// Checks `pieces` against a registration of `len` bytes, and merges pieces that are neighbours on both sides: every
/// descriptor has a cost, and consecutive blocks are common.
pub(super) fn coalesce(pieces: &[Piece], len: usize) -> Result<Vec<Piece>> {
    let mut out: Vec<Piece> = Vec::with_capacity(pieces.len());
    for (i, &piece) in pieces.iter().enumerate() {
        let Piece { offset, remote_address, len: size } = piece;
        if size == 0 || offset.checked_add(size).is_none_or(|end| end > len) {
            bail!(InvalidArgument, "NIXL read: piece {i} ({size} bytes at {offset}) is not in the {len} registered");
        }
        if remote_address.checked_add(size as u64).is_none() {
            bail!(InvalidArgument, "NIXL read: piece {i} ({size} bytes at {remote_address:#x}) is beyond any memory");
        }
        match out.last_mut() {
            Some(last)
                if last.offset + last.len == offset && last.remote_address + last.len as u64 == remote_address =>
            {
                last.len += size;
            }
            _ => out.push(piece),
        }
    }
    if out.is_empty() {
        bail!(InvalidArgument, "NIXL read: no pieces");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: usize, remote_address: u64, len: usize) -> Piece {
        Piece { offset, remote_address, len }
    }

    #[test]
    fn neighbours_on_both_sides_become_one() {
        let pieces = [piece(0, 100, 10), piece(10, 110, 5), piece(15, 200, 5), piece(30, 205, 5)];
        assert_eq!(coalesce(&pieces, 35).unwrap(), [piece(0, 100, 15), piece(15, 200, 5), piece(30, 205, 5)]);
    }

    #[test]
    fn pieces_out_of_bounds_are_named() {
        let text = |piece| coalesce(&[piece], 100).unwrap_err().message;
        assert!(text(piece(91, 0, 10)).contains("piece 0 (10 bytes at 91) is not in the 100"));
        assert!(text(piece(usize::MAX, 0, 2)).contains("is not in"));
        assert!(text(piece(0, 0, 0)).contains("is not in"));
        assert!(text(piece(0, u64::MAX, 2)).contains("beyond any memory"));
        assert!(coalesce(&[], 100).unwrap_err().message.contains("no pieces"));
    }
}
