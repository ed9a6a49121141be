//! A block store in plain memory, shared with `tests/kv_image.rs`.

use std::sync::Mutex;

use super::{BlockId, BlockStore, KvGeometry, Result};

pub struct MemoryStore {
    geometry: KvGeometry,
    blocks: Vec<Mutex<Vec<u8>>>,
}

impl MemoryStore {
    /// Blocks full of what other sequences may have left there.
    pub fn new(geometry: KvGeometry, n_blocks: usize) -> MemoryStore {
        let blocks = (0..n_blocks).map(|_| Mutex::new(vec![0xA5; geometry.block_bytes()])).collect();
        MemoryStore { geometry, blocks }
    }
}

impl BlockStore for MemoryStore {
    fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.blocks[id as usize].lock().unwrap()[offset..offset + out.len()]);
        Ok(())
    }

    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()> {
        self.blocks[id as usize].lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<()> {
        let data = self.blocks[from as usize].lock().unwrap().clone();
        self.write(to, 0, &data)
    }
}
