//! NIXL as the mover of blocks: the exporter's agent says where its pool is, and the importer's agent reads from it. The
//! connection settles who may read what and when a handle ends, as with every other transport.

use super::source::Destination;
use crate::backend::{BlockId, BlockStore};
use crate::bail;
use crate::error::Result;
use crate::kv::Cache;
use crate::sys::bytes::ByteSource;
use crate::sys::nixl::{Agent, Memory, Piece, Registration, Transfer};
use crate::sys::random_bytes;
use std::ops::Range;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most bytes of one read.
const MOST: usize = 64 << 20;
/// Bytes of the buffer for blocks that have to be converted and so cannot land in the pool.
const BOUNCE: usize = 8 << 20;

/// The whole pool of a cache.
struct Pool(Arc<dyn BlockStore>);

impl AsRef<[AtomicU8]> for Pool {
    fn as_ref(&self) -> &[AtomicU8] {
        self.0.pool().unwrap_or_default()
    }
}

struct StagedBlocks(Box<[AtomicU8]>);

impl AsRef<[AtomicU8]> for StagedBlocks {
    fn as_ref(&self) -> &[AtomicU8] {
        &self.0
    }
}

fn agent() -> Result<Agent> {
    let random: [u8; 8] = random_bytes()?;
    Agent::new(&format!("cleave-{}-{:016x}", std::process::id(), u64::from_le_bytes(random)))
}

fn pool(store: &Arc<dyn BlockStore>) -> Result<Memory> {
    if store.pool().is_none() {
        bail!(Unsupported, "NIXL: the pool is not in host memory");
    }
    Ok(Arc::new(Pool(store.clone())))
}

/// The exporter's agent, made when the first peer asks for it.
#[derive(Default)]
pub(super) struct OwnAgent(Mutex<Option<Arc<Exposed>>>);

pub(super) struct Exposed {
    // Dropped before the agent, which has to deregister it.
    pub pool: Registration,
    pub agent: Agent,
}

impl OwnAgent {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Exposed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn agent(&self, cache: &Cache) -> Result<Arc<Exposed>> {
        let mut own = self.lock();
        if let Some(exposed) = &*own {
            return Ok(exposed.clone());
        }
        let memory = pool(cache.store_handle())?;
        let agent = agent()?;
        let exposed = Arc::new(Exposed { pool: agent.register(memory)?, agent });
        *own = Some(exposed.clone());
        Ok(exposed)
    }

    pub fn end(&self) {
        let own = self.lock().take();
        drop(own);
    }
}

/// The importer's agent before it has met the peer's.
pub(super) struct Prepared {
    agent: Agent,
    pool: Registration,
    bounce: Registration,
}

/// The importer's agent for one peer.
pub(super) struct Reader {
    /// None once the peer was given up.
    agent: Mutex<Option<Agent>>,
    pool: Registration,
    /// Locked by the batch that uses the buffer.
    bounce: Mutex<Registration>,
    peer: String,
    base: u64,
}

/// A read in progress.
pub(super) struct Batch<'a> {
    transfer: Transfer,
    pub blocks: Range<usize>,
    block_bytes: usize,
    bounced: Option<MutexGuard<'a, Registration>>,
}

impl Reader {
    pub fn prepare(store: &Arc<dyn BlockStore>) -> Result<Prepared> {
        let memory = pool(store)?;
        let agent = agent()?;
        let room = StagedBlocks((0..BOUNCE).map(|_| AtomicU8::new(0)).collect());
        Ok(Prepared { pool: agent.register(memory)?, bounce: agent.register(Arc::new(room))?, agent })
    }

    fn agent(&self) -> MutexGuard<'_, Option<Agent>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to read the first of `blocks`, as many as one read may have.
    pub fn start(
        &self,
        ids: &[BlockId],
        blocks: Range<usize>,
        block_bytes: usize,
        into: &dyn Destination,
    ) -> Result<Batch<'_>> {
        let inside = |index: usize| {
            let at = into.direct(index)?.address().checked_sub(self.pool.address() as usize)?;
            (at + block_bytes <= self.pool.len()).then_some(at)
        };
        let (most, bounced) = match inside(blocks.start) {
            Some(_) => (MOST, None),
            None => (BOUNCE, Some(self.bounce.lock().unwrap_or_else(PoisonError::into_inner))),
        };
        let n = (most / block_bytes).min(blocks.len());
        if n == 0 {
            bail!(Unsupported, "NIXL: blocks of {block_bytes} bytes that have to be converted: {BOUNCE} at most");
        }
        let blocks = blocks.start..blocks.start + n;
        let mut pieces = Vec::with_capacity(n);
        for (i, index) in blocks.clone().enumerate() {
            let offset = match &bounced {
                Some(_) => i * block_bytes,
                None => match inside(index) {
                    Some(offset) => offset,
                    None => bail!(Internal, "block {index} lies elsewhere than its neighbours"),
                },
            };
            let remote_address = self.base + u64::from(ids[index]) * block_bytes as u64;
            pieces.push(Piece { offset, remote_address, len: block_bytes });
        }
        let agent = self.agent();
        let Some(agent) = &*agent else { bail!(Peer, "the peer was given up") };
        let transfer = agent.read(&self.peer, bounced.as_deref().unwrap_or(&self.pool), &pieces)?;
        Ok(Batch { transfer, blocks, block_bytes, bounced })
    }

    /// Gives the peer up: its reads end now.
    pub fn end(&self) {
        let agent = self.agent().take();
        drop(agent);
    }
}

impl Prepared {
    pub fn meet(self, metadata: &[u8], base: u64) -> Result<Reader> {
        let peer = self.agent.add_peer(metadata)?;
        let (agent, bounce) = (Mutex::new(Some(self.agent)), Mutex::new(self.bounce));
        Ok(Reader { agent, pool: self.pool, bounce, peer, base })
    }
}

impl Batch<'_> {
    /// True if all blocks have arrived. Does the work of the copy, where NIXL leaves that to the caller.
    pub fn poll(&self) -> Result<bool> {
        self.transfer.poll()
    }

    /// Stores the blocks that have arrived, if they did not land in the pool.
    pub fn finish(self, into: &dyn Destination) -> Result<()> {
        let Some(bounce) = &self.bounced else {
            into.count(self.blocks.len() * self.block_bytes);
            return Ok(());
        };
        let room = ByteSource::of_atomic((**bounce.memory()).as_ref());
        let mut block = vec![0; self.block_bytes];
        for (i, index) in self.blocks.enumerate() {
            room.slice(i * self.block_bytes, self.block_bytes).read(&mut block);
            into.write_block(index, &block)?;
        }
        Ok(())
    }
}
