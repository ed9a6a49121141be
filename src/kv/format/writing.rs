//! Writing the sections of a head, and their sizes.

use super::identity::{CacheIdentity, LIBRARY_TEXT};
use super::layout::Layout;
use super::sections::{
    BLOCKS, BlocksSection, CHAIN, CRITICAL, ENDPOINTS, HOST_DATA, IDENTITY, LAYOUT, LIBRARY, ORIGIN, Origin, SEQUENCE,
    STATE, STREAMING,
};
use super::sequence;
use super::wire::Writer;
use crate::kv::pool::BlockHash;
use crate::sequence::Snapshot;

const SECTION_HEADER: usize = 8;
/// Payload sizes in bytes of the sections of fixed size.
const CHAIN_LEN: usize = 36;
const ORIGIN_LEN: usize = 28;
/// Without the first block of each group.
const BLOCKS_LEN: usize = 48;
const STATE_LEN: usize = 4;

/// Writes the sections that tickets and images have in common.
pub(in crate::kv) fn write_common(
    w: &mut Writer,
    library: &str,
    identity: &CacheIdentity,
    layout: &Layout,
    origin: &Origin,
) {
    w.section(LIBRARY, 0, clip(library).as_bytes());
    let mut section = Writer::default();
    let name = clip(&identity.name);
    section.bytes(&identity.fingerprint).bytes(&identity.tokenizer_digest);
    section.u16(name.len() as u16).bytes(name.as_bytes());
    w.section(IDENTITY, CRITICAL, &section.0);
    w.section(LAYOUT, CRITICAL, &layout.encode());
    let mut section = Writer::default();
    section.bytes(&origin.epoch).u64(origin.handle).u32(origin.lease_ms);
    w.section(ORIGIN, CRITICAL, &section.0);
}

/// Bytes of [`write_common`] for the text of this library version.
pub(in crate::kv) fn common_len(identity: &CacheIdentity, layout: &Layout) -> usize {
    let texts = clip(LIBRARY_TEXT).len() + 66 + clip(&identity.name).len();
    4 * SECTION_HEADER + texts + layout.encoded_len() + ORIGIN_LEN
}

/// Bytes of the sections about a sequence.
fn sequence_len(snapshot: &Snapshot) -> usize {
    let host_data = match snapshot.host_data.len() {
        0 => 0,
        n => SECTION_HEADER + n,
    };
    2 * SECTION_HEADER + sequence::encoded_len(snapshot) + CHAIN_LEN + host_data
}

/// Bytes of the sections that only an image has, those about its sequence included.
pub(in crate::kv) fn image_len(snapshot: &Snapshot, layout: &Layout) -> usize {
    sequence_len(snapshot) + SECTION_HEADER + BLOCKS_LEN + 4 * layout.n_groups()
}

/// Bytes of the sections that only a ticket has, those about its sequence included.
pub(in crate::kv) fn ticket_len(snapshot: &Snapshot, endpoints: usize) -> usize {
    sequence_len(snapshot) + 2 * SECTION_HEADER + STATE_LEN + endpoints
}

fn write_sequence(w: &mut Writer, snapshot: &Snapshot, chain: (u32, BlockHash)) {
    w.section(SEQUENCE, CRITICAL, &sequence::encode(snapshot));
    let mut section = Writer::default();
    section.u32(chain.0).bytes(&chain.1.0);
    w.section(CHAIN, CRITICAL, &section.0);
    if !snapshot.host_data.is_empty() {
        w.section(HOST_DATA, 0, &snapshot.host_data);
    }
}

pub(in crate::kv) fn write_image(w: &mut Writer, snapshot: &Snapshot, chain: (u32, BlockHash), blocks: &BlocksSection) {
    write_sequence(w, snapshot, chain);
    let mut section = Writer::default();
    section.bytes(&blocks.nonce).u32(blocks.count).u32(blocks.groups).u64(blocks.record_len);
    // Each group has its KV from the first block on.
    (0..blocks.groups).for_each(|_| _ = section.u32(0));
    w.section(BLOCKS, CRITICAL, &section.0);
}

pub(in crate::kv) fn write_ticket(
    w: &mut Writer,
    snapshot: &Snapshot,
    chain: (u32, BlockHash),
    streaming: bool,
    endpoints: &[u8],
) {
    write_sequence(w, snapshot, chain);
    w.section(STATE, CRITICAL, &(if streaming { STREAMING } else { 0 }).to_le_bytes());
    w.section(ENDPOINTS, CRITICAL, endpoints);
}

pub(in crate::kv) fn write_address(w: &mut Writer, endpoints: &[u8]) {
    w.section(ENDPOINTS, CRITICAL, endpoints);
}

/// First 255 bytes of a text at most, cut between characters.
fn clip(text: &str) -> &str {
    let end = (0..=text.len().min(255)).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}
