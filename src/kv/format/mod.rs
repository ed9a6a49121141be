//! The formats of docs/kv-image-format.md: images, tickets and addresses as bytes.
//!
//! Knows keys, sequences, layouts and the hash chain. Knows no cache and no handle: it gets what it needs of them as [`Own`].

mod compatible;
mod endpoint;
mod envelope;
mod identity;
mod layout;
mod record;
#[cfg(feature = "fuzzing")]
mod reseal;
mod sections;
mod sequence;
mod ticket;
mod wire;
mod writing;

pub(crate) use compatible::hex;
pub(in crate::kv) use compatible::{Own, check_compatible};
pub(crate) use endpoint::{Endpoint, MAX_ENDPOINTS, ProcessId, UnixName};
#[cfg(test)]
pub(in crate::kv) use envelope::seal;
pub(in crate::kv) use envelope::{ENVELOPE, Keys, MAC, block_tag};
pub(crate) use envelope::{Envelope, Kind, TransportKeys};
pub use identity::{CacheIdentity, KvId};
pub(in crate::kv) use identity::{LIBRARY_TEXT, MAX_GENERATION, MAX_NONCE, MAX_SLOTS};
pub use layout::LayerKind;
pub(crate) use layout::Layout;
pub(in crate::kv) use record::{Records, TAG, encode_head, head_len, record_len};
#[cfg(feature = "fuzzing")]
pub(in crate::kv) use reseal::reseal;
pub(in crate::kv) use sections::{Origin, Sections};
pub(in crate::kv) use sequence::validate;
pub(crate) use sequence::{decode as decode_sequence, encode as encode_sequence};
pub(crate) use ticket::{Address, Ticket};
pub(in crate::kv) use ticket::{digest, encode_address, encode_ticket, ticket_len};
pub(crate) use wire::{Reader, Writer};
