//! Import of an image: all of it is verified before its sequence can be used.

use crate::bail;
use crate::error::Result;
use crate::kv::format::{Envelope, Kind, Sections, TAG, block_tag, check_compatible, record_len};
use crate::kv::handles::incoming::Incoming;
use crate::kv::handles::shared::CacheShared;
use crate::kv::pool::{BlockTable, HashChain};
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// An image being imported, record by record. Dropping it returns its blocks to the pool.
pub(super) struct ImageImport {
    incoming: Incoming,
    key: [u8; 32],
    record_len: usize,
    next: usize,
}

impl ImageImport {
    /// Verifies a head, in the order of docs/kv-image-format.md, and reserves the blocks it announces.
    pub fn begin(shared: &Arc<CacheShared>, envelope: &Envelope, head: &[u8]) -> Result<ImageImport> {
        if envelope.kind != Kind::Image {
            bail!(InvalidArgument, "KV image: expected an image, found a ticket");
        }
        let sections = Sections::parse(envelope.open(head, &shared.keys)?)?;
        let from = check_compatible(&sections, &shared.own())?;
        let snapshot = sections.snapshot()?;
        sections.origin()?;
        let (full, head_hash) = sections.chain()?;
        let chain =
            HashChain::of(snapshot.cache_salt, from.block_tokens, &snapshot.tokens[..snapshot.computed as usize]);
        if full as usize != chain.hashes().len() || head_hash != chain.head() {
            bail!(
                Corrupt,
                "hash chain: expected {} blocks up to {:?}, found {full} up to {head_hash:?}",
                chain.hashes().len(),
                chain.head()
            );
        }
        let blocks = sections.blocks()?;
        let count = snapshot.computed.div_ceil(from.block_tokens);
        let record_len = record_len(&from);
        let record = record_len as u64;
        let body = u64::from(count).saturating_mul(record);
        for (field, expected, found) in [
            ("block count", u64::from(count), u64::from(blocks.count)),
            ("cache groups", shared.layout.n_groups() as u64, u64::from(blocks.groups)),
            ("record length", record, blocks.record_len),
            ("length of the block records", body, envelope.total_len - envelope.head_len as u64),
        ] {
            if expected != found {
                bail!(Corrupt, "KV image: {field}: expected {expected}, found {found}");
            }
        }
        let key = shared.keys.block_key(&blocks.nonce);
        Ok(ImageImport { incoming: Incoming::new(shared, snapshot, chain, &from)?, key, record_len, next: 0 })
    }

    /// Number of records that have not been imported yet.
    pub fn missing(&self) -> usize {
        self.incoming.n_source_blocks() - self.next
    }

    /// Bytes of each record. While records are missing, at most the length of the image.
    pub fn record_len(&self) -> usize {
        self.record_len
    }

    /// Verifies the next record and copies its data, unless this cache has the block already.
    pub fn record(&mut self, record: &[u8]) -> Result<()> {
        let index = self.next;
        let Some((data, tag)) = record.split_last_chunk::<TAG>() else {
            bail!(Corrupt, "KV image: block {index}: expected a record, found {} bytes", record.len());
        };
        if block_tag(&self.key, index, data) != blake3::Hash::from_bytes(*tag) {
            bail!(Corrupt, "KV image: block {index}: its tag does not match its bytes");
        }
        if index >= self.incoming.first_needed() {
            self.incoming.write_block(index, data)?;
        }
        self.next += 1;
        Ok(())
    }

    /// Completes the import. CORRUPT unless every record was imported.
    pub fn finish(self) -> Result<(Snapshot, BlockTable)> {
        if self.missing() > 0 {
            bail!(Corrupt, "KV image: truncated: {} block records are missing", self.missing());
        }
        let snapshot = self.incoming.snapshot().clone();
        Ok(self.incoming.finish(snapshot))
    }
}
