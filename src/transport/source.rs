//! The importer's view of one transfer: the trait that every transport implements, and where its blocks go.

use crate::backend::{BlockId, DeviceMemory};
use crate::error::Result;
use crate::kv::Incoming;
use crate::sequence::Snapshot;
use crate::sys::bytes::ByteTarget;
use std::ops::Range;
use std::time::Duration;

/// Ways in which KV gets from one cache to another. The numbers are `CLEAVE_TRANSPORT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Transport {
    /// Both caches are in this process.
    Process = 1,
    /// Both are on this machine: the exporter's pool is mapped and copied from.
    SharedMemory = 2,
    /// Over one or several TCP connections.
    Tcp = 3,
    /// NVIDIA's NIXL, loaded at run time.
    Nixl = 4,
    /// Both caches are on this machine and the exporter's pool is in device memory, which is mapped and copied from.
    DeviceMemory = 5,
}

impl Transport {
    /// All transports, in the order of their numbers.
    pub const ALL: [Transport; 5] =
        [Transport::Process, Transport::SharedMemory, Transport::Tcp, Transport::Nixl, Transport::DeviceMemory];

    /// The transport with this `CLEAVE_TRANSPORT_*` number.
    pub fn from_code(code: u32) -> Option<Transport> {
        Self::ALL.into_iter().find(|transport| *transport as u32 == code)
    }

    /// A name for reports and errors.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Process => "process",
            Transport::SharedMemory => "shared memory",
            Transport::Tcp => "TCP",
            Transport::Nixl => "NIXL",
            Transport::DeviceMemory => "CUDA memory",
        }
    }
}

/// How far the exporter is with a transfer.
pub(super) struct Progress {
    /// Blocks that can be fetched, counted from the sequence's first.
    pub available: usize,
    /// The sequence, once all of its blocks can be fetched. None while its prompt is being computed.
    pub whole: Option<Snapshot>,
}

/// Whether a transfer is still wanted, and how long it may wait. The threads of a transfer share it.
pub(super) trait Want: Sync {
    /// Fails once the transfer is no longer wanted. Called between its pieces.
    fn check(&self) -> Result<()>;

    /// Fails once the transfer may no longer wait for a peer that has been silent for this long. Called while it waits.
    fn check_silence(&self, _silence: Duration) -> Result<()> {
        self.check()
    }

    /// Notes that something has arrived from the peer.
    fn heard(&self) {}

    /// True if it should go on waiting for free blocks in this cache after this time.
    fn waits_for_blocks(&self, _waited: Duration) -> bool {
        false
    }
}

impl<F: Fn() -> Result<()> + Sync> Want for F {
    fn check(&self) -> Result<()> {
        self()
    }
}

pub(super) type Wanted<'a> = &'a dyn Want;

/// The place where blocks of a transfer land. Blocks are counted from the sequence's first.
pub(super) trait Destination: Sync {
    /// Memory for a block that is stored as it is sent. None if it has to be converted, or lies on a device.
    fn direct(&self, index: usize) -> Option<ByteTarget<'_>>;
    /// Stores a block that is in the exporter's layout, and converts it if necessary.
    fn write_block(&self, index: usize, data: &[u8]) -> Result<()>;
    /// Copies blocks that lie on a device without a way through the host; `ids` has the exporter's numbers of all blocks
    /// of the sequence. False, with nothing done, where that is impossible.
    fn take_from_device(&self, pool: &dyn DeviceMemory, ids: &[BlockId], blocks: Range<usize>) -> Result<bool>;
    /// Counts bytes that were written to memory from [`Destination::direct`].
    fn count(&self, bytes: usize);
}

impl Destination for Incoming {
    fn direct(&self, index: usize) -> Option<ByteTarget<'_>> {
        Incoming::direct(self, index)
    }

    fn write_block(&self, index: usize, data: &[u8]) -> Result<()> {
        Incoming::write_block(self, index, data)
    }

    fn take_from_device(&self, pool: &dyn DeviceMemory, ids: &[BlockId], blocks: Range<usize>) -> Result<bool> {
        Incoming::take_from_device(self, pool, ids, blocks)
    }

    fn count(&self, bytes: usize) {
        Incoming::count(self, bytes);
    }
}

/// An open transfer. Dropping it ends it, and the exporter's handle stays unless it was committed.
pub(super) trait TransferSource {
    /// Waits until there are more blocks than it reported before, or all of them. May return early without more.
    /// The importer may have more blocks in its own prefix cache than the exporter has computed yet.
    fn more(&mut self, wanted: Wanted<'_>) -> Result<Progress>;

    /// Copies the exporter's blocks of this range, which must be available, to `into`.
    fn fetch(&mut self, blocks: Range<usize>, into: &dyn Destination, wanted: Wanted<'_>) -> Result<()>;

    /// Tells the exporter that this transfer goes on, if it has not heard of it for a while.
    fn keep_alive(&mut self, wanted: Wanted<'_>) -> Result<()>;

    /// Ends the exporter's handle as consumed. Only after this has succeeded may the sequence be used.
    fn commit(&mut self, wanted: Wanted<'_>) -> Result<()>;
}
