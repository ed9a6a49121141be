//! NIXL as a mover of bytes between processes and hosts: RDMA, TCP or shared memory, whatever its UCX backend finds.
//!
//! Nothing is linked: [`Library::get`] loads NIXL's C API at run time, and without it everything here is UNSUPPORTED.
//! Of NIXL only registration, metadata blobs and one-sided reads are used; blobs travel over the caller's own
//! connection, so there is no discovery, no listener and no etcd.
//!
//! What this does to the host's process, and does not:
//! - **No environment variable is set.** What UCX and NIXL read from the environment is honoured; where the host says
//!   nothing, `quiet.rs` turns off their printing and one UCX module through their own functions.
//! - **UCX patches `mmap`, `munmap`, `brk` and their like in libc** when it is loaded, to hear of memory that goes away.
//!   Only the environment can forbid it, before the load: `UCX_MEM_MMAP_HOOK_MODE=none`, at no loss for this use.
//! - Two threads for each agent (progress, and UCX's `async`), with every signal blocked.
//! - Nothing is ever unloaded: NIXL's and abseil's destructors are not made for it.
//!
//! UCX chooses the way and does not say which. On one host it reads the peer's memory with `process_vm_readv`; where
//! the kernel forbids that to the two processes, it quietly takes one that is as slow as TCP. So measure at pairing.
//! A host that sets `UCX_TLS` has to leave TCP in it (`shm,tcp,self`): shared memory alone makes no backend.
//!
//! A read is **work on the calling thread**: over shared memory `read` and `poll` do the copying themselves, for as
//! long as the whole transfer takes. Keep them off a thread that may not wait.

mod agent;
mod capi;
mod find;
mod library;
mod memory;
mod metadata;
mod quiet;
mod transfer;

pub use agent::Agent;
pub use library::Library;
pub use memory::{Memory, Registration};
pub use transfer::{Piece, Transfer};
