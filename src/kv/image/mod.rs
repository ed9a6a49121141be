//! KV images: a snapshot with its blocks, for any wire or a file. docs/kv-image-format.md has every byte.

mod envelope;
mod file;
mod landing;
mod layout;
#[cfg(feature = "fuzzing")]
mod reseal;
mod sections;
mod sequence;
mod source;
mod wire;

use super::cache::CacheIdentity;
use crate::backend::KvGeometry;
use crate::sequence::Snapshot;

pub(super) use envelope::{ENVELOPE, Keys, MAC, seal};
pub(crate) use envelope::{Envelope, Kind, TransportKeys};
pub use layout::LayerKind;
pub(crate) use layout::Layout;
#[cfg(feature = "fuzzing")]
pub(crate) use reseal::reseal;
pub(crate) use sections::hex;
pub(super) use sections::{
    ENDPOINTS, Origin, SEQUENCE, Sections, common_len, ticket_len, write_address, write_common, write_ticket,
};
pub(super) use sequence::validate;
pub(crate) use sequence::{decode as decode_sequence, encode as encode_sequence};
pub(crate) use source::mask;
pub(crate) use wire::{Reader, Writer};

#[cfg(test)]
pub(super) use source::{Records, encode_head};

/// Bytes of a block record's tag.
const TAG: usize = 32;

/// Who wrote it, for people.
pub(super) const LIBRARY_TEXT: &str = concat!("cleave ", env!("CARGO_PKG_VERSION"));

/// Bytes of a block record.
pub(super) fn record_len(geometry: &KvGeometry) -> usize {
    geometry.block_bytes() + TAG
}

/// Bytes of an image before its block records.
pub(super) fn head_len(identity: &CacheIdentity, layout: &Layout, snapshot: &Snapshot) -> usize {
    ENVELOPE + common_len(identity, layout) + sections::image_len(snapshot, layout) + MAC
}
