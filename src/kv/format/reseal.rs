//! For fuzzers: corrects the lengths, tags, MAC and checksum of a mutated image or ticket, so that the code behind these
//! checks is reached.

use super::envelope::{ENVELOPE, Keys, MAC, block_tag, seal_again};
use super::record::TAG;
use super::sections::Sections;
use super::wire;

const HEAD_LEN: std::ops::Range<usize> = 12..16;
const TOTAL_LEN: std::ops::Range<usize> = 16..24;

/// Leaves data too short for a head as it is. Replaces an impossible head length by the length of the data.
pub(crate) fn reseal(keys: &Keys, data: &mut [u8]) {
    let total = data.len();
    if total < ENVELOPE + MAC {
        return;
    }
    let found = wire::Reader::new("head", &data[HEAD_LEN]).u32("length").unwrap_or(0) as usize;
    let head_len = if (ENVELOPE + MAC..=total).contains(&found) { found } else { total };
    data[HEAD_LEN].copy_from_slice(&(head_len as u32).to_le_bytes());
    data[TOTAL_LEN].copy_from_slice(&(total as u64).to_le_bytes());
    let (head, records) = data.split_at_mut(head_len);
    let blocks = Sections::parse(&head[ENVELOPE..head_len - MAC]).and_then(|sections| sections.blocks());
    if let Ok(blocks) = blocks {
        let key = keys.block_key(&blocks.nonce);
        let len = usize::try_from(blocks.record_len).unwrap_or(usize::MAX).max(TAG);
        for (index, record) in records.chunks_exact_mut(len).enumerate() {
            let (bytes, tag) = record.split_at_mut(len - TAG);
            tag.copy_from_slice(block_tag(&key, index, bytes).as_bytes());
        }
    }
    seal_again(head, keys);
}
