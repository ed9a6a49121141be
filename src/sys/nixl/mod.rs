//! NIXL, which moves bytes between processes and hosts over whatever its UCX backend finds: RDMA, TCP or shared memory.
//!
//! Nothing is linked. [`Library::get`] loads NIXL's C API at run time; without it, everything here is UNSUPPORTED. Only
//! registration, metadata blobs and one-sided reads are used. Blobs travel over the caller's own connection, so there
//! is no discovery, no listener and no etcd.
//!
//! Effects on the host's process:
//! - **No environment variable is set.** Variables that UCX and NIXL read are honoured. Where the host sets nothing,
//!   `quiet.rs` turns off their printing and one UCX module through their own functions.
//! - **UCX patches `mmap`, `munmap`, `brk` and similar functions in libc** when it is loaded, to notice unmapped
//!   memory. Only the environment can prevent this, before the load: `UCX_MEM_MMAP_HOOK_MODE=none`. Nothing here needs
//!   the patches.
//! - Each agent has two threads (progress, and UCX's `async`), with every signal blocked.
//! - Nothing is ever unloaded, because the destructors of NIXL and abseil do not support it.
//!
//! UCX chooses the transport and does not report its choice. On one host it reads the peer's memory with
//! `process_vm_readv`. If the kernel forbids that for the two processes, UCX silently uses a transport as slow as TCP.
//! Measure the bandwidth when pairing. A host that sets `UCX_TLS` must leave TCP in it (`shm,tcp,self`): with shared
//! memory alone, the backend cannot be created.
//!
//! A read is **work on the calling thread**: over shared memory, `read` and `poll` copy the bytes themselves, for as
//! long as the whole transfer takes. Do not call them on a thread that must not block.

mod agent;
mod capi;
mod find;
mod library;
mod live;
mod loader;
mod memory;
mod metadata;
mod pieces;
mod quiet;
mod request;
mod transfer;

pub use agent::Agent;
pub use library::Library;
pub use memory::{Memory, Registration};
pub use pieces::Piece;
pub use transfer::Transfer;
