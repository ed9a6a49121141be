//! Import of an image: all of it is verified before its sequence can be used.

use super::import::Incoming;
use super::shared::CacheShared;
use super::slots::KvId;
use crate::bail;
use crate::error::Result;
use crate::kv::format::{Envelope, Kind, Sections, TAG, block_tag, record_len};
use crate::kv::pool::{BlockTable, HashChain};
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// An image being imported, record by record. Dropping it returns its blocks to the pool.
pub(in crate::kv) struct Landing {
    incoming: Incoming,
    key: [u8; 32],
    record_len: usize,
    next: usize,
}

impl Landing {
    /// Verifies a head, in the order of docs/kv-image-format.md, and reserves the blocks it announces.
    pub fn begin(cache: &Arc<CacheShared>, envelope: &Envelope, head: &[u8]) -> Result<Landing> {
        let shared = cache;
        if envelope.kind != Kind::Image {
            bail!(InvalidArgument, "KV image: expected an image, found a ticket");
        }
        let sections = Sections::parse(envelope.open(head, &shared.keys)?)?;
        let from = sections.check_compatible(&shared.own())?;
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
        let chain = if from.block_tokens == shared.geometry.block_tokens { chain } else { cache.chain(&snapshot) };
        Ok(Landing { incoming: Incoming::new(cache, snapshot, chain, &from)?, key, record_len, next: 0 })
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

    pub fn finish(self) -> Result<(Snapshot, BlockTable)> {
        if self.missing() > 0 {
            bail!(Corrupt, "KV image: truncated: {} block records are missing", self.missing());
        }
        let snapshot = self.incoming.snapshot().clone();
        Ok(self.incoming.finish(snapshot))
    }
}

impl CacheShared {
    /// Verifies an image and imports its sequence.
    pub(crate) fn take_image(self: &Arc<Self>, data: &[u8]) -> Result<(Snapshot, BlockTable)> {
        let envelope = Envelope::peek(data)?;
        envelope.check_len(data.len() as u64)?;
        let (head, records) = data.split_at(envelope.head_len);
        let mut landing = Landing::begin(self, &envelope, head)?;
        for record in records.chunks(landing.record_len()) {
            landing.record(record)?;
        }
        landing.finish()
    }

    /// Makes a handle of the sequence in an image. Nothing of the image is used unless all of it is valid.
    pub fn import_image(self: &Arc<Self>, data: &[u8]) -> Result<KvId> {
        let (snapshot, table) = self.take_image(data)?;
        self.export(snapshot, table, None)
    }
}
