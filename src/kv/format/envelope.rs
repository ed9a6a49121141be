//! The envelope of tickets and images: fields that a reader of any version can check, and the MAC over the head.

use super::wire::{Reader, Writer};
use crate::bail;
use crate::error::Result;

/// Bytes before the first section, the same in all versions.
pub(in crate::kv) const ENVELOPE: usize = 64;
/// Size in bytes of the MAC that ends a head.
pub(in crate::kv) const MAC: usize = 32;
/// Offset of the checksum, the same in all versions.
const CHECKSUM: std::ops::Range<usize> = 32..64;

/// The wire version that this library reads and writes.
const VERSION: u16 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Image,
    Ticket,
    Address,
}

const KINDS: [Kind; 3] = [Kind::Image, Kind::Ticket, Kind::Address];

impl Kind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Kind::Image => b"CLVKVIMG",
            Kind::Ticket => b"CLVKVTKT",
            Kind::Address => b"CLVKVADR",
        }
    }

    pub(in crate::kv) fn name(self) -> &'static str {
        match self {
            Kind::Image => "KV image",
            Kind::Ticket => "KV ticket",
            Kind::Address => "cache address",
        }
    }
}

/// Keys derived from a cache's secret, one per use.
pub(in crate::kv) struct Keys {
    mac: [u8; 32],
    block: [u8; 32],
    nonce: [u8; 32],
    pub transport: TransportKeys,
}

/// Keys for the connections between caches that have the same secret.
#[derive(Clone, Copy)]
pub(crate) struct TransportKeys {
    /// Key that proves knowledge of the secret and authenticates messages on connections without encryption.
    pub auth: [u8; 32],
    /// Pre-shared key of the Noise handshake on encrypted connections.
    pub psk: [u8; 32],
}

impl Keys {
    pub fn new(secret: &[u8; 32]) -> Keys {
        Keys {
            mac: blake3::derive_key("cleave 2026-11 KV image v2 head", secret),
            block: blake3::derive_key("cleave 2026-11 KV image v2 blocks", secret),
            nonce: blake3::derive_key("cleave 2026-11 KV image v2 nonce", secret),
            transport: TransportKeys {
                auth: blake3::derive_key("cleave 2026-11 KV transport v1 authentication", secret),
                psk: blake3::derive_key("cleave 2026-11 KV transport v1 Noise", secret),
            },
        }
    }

    /// Key of the block tags of the image with this nonce.
    pub fn block_key(&self, nonce: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(&self.block, nonce).as_bytes()
    }

    /// The nonce of a handle's image: a handle has one image, and no other handle has the same.
    pub fn image_nonce(&self, epoch: &[u8; 16], handle: u64) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.nonce);
        hasher.update(epoch).update(&handle.to_le_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Tag of a block record.
pub(in crate::kv) fn block_tag(key: &[u8; 32], index: usize, data: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(data).update(&(index as u64).to_le_bytes());
    hasher.finalize()
}

/// Version-independent fields of a head, not verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub kind: Kind,
    oldest: u16,
    newest: u16,
    pub head_len: usize,
    pub total_len: u64,
}

/// Envelope, sections and MAC as one head; `body_len` bytes of block records are to follow.
pub(in crate::kv) fn seal(kind: Kind, sections: &[u8], body_len: u64, keys: &Keys) -> Vec<u8> {
    let head_len = ENVELOPE + sections.len() + MAC;
    let mut head = Writer(Vec::with_capacity(head_len));
    head.bytes(kind.magic()).u16(VERSION).u16(VERSION).u32(head_len as u32);
    head.u64(head_len as u64 + body_len).u64(0);
    head.bytes(&[0; 32]).bytes(sections);
    let mut head = head.0;
    let mac = mac(&head, keys);
    head.extend_from_slice(mac.as_bytes());
    let sum = checksum(&head);
    head[CHECKSUM].copy_from_slice(sum.as_bytes());
    head
}

/// Writes the MAC and the checksum over the other bytes of a head.
#[cfg(feature = "fuzzing")]
pub(in crate::kv) fn seal_again(head: &mut [u8], keys: &Keys) {
    let signed = head.len() - MAC;
    let mac = mac(&head[..signed], keys);
    head[signed..].copy_from_slice(mac.as_bytes());
    let sum = checksum(head);
    head[CHECKSUM].copy_from_slice(sum.as_bytes());
}

/// MAC over the head, without the checksum and the MAC itself.
fn mac(head: &[u8], keys: &Keys) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(&keys.mac);
    hasher.update(&head[..CHECKSUM.start]).update(&head[CHECKSUM.end..]);
    hasher.finalize()
}

/// Checksum over the head, including the MAC but not the checksum itself.
fn checksum(head: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..CHECKSUM.start]).update(&head[CHECKSUM.end..]);
    hasher.finalize()
}

impl Envelope {
    /// Reads the first [`ENVELOPE`] bytes. Checks only that the lengths are possible.
    pub fn peek(data: &[u8]) -> Result<Envelope> {
        let mut reader = Reader::new("KV image, ticket or address", data);
        let magic = reader.bytes(8, "magic")?;
        let Some(kind) = KINDS.into_iter().find(|kind| kind.magic() == magic) else {
            bail!(
                Corrupt,
                "magic: expected CLVKVIMG, CLVKVTKT or CLVKVADR, found {:?}",
                magic.escape_ascii().to_string()
            );
        };
        let (oldest, newest) = (reader.u16("oldest version")?, reader.u16("newest version")?);
        let head_len = reader.u32("head length")? as usize;
        let total_len = reader.u64("total length")?;
        let _flags = reader.u64("reserved")?;
        reader.bytes(CHECKSUM.len(), "checksum")?;
        if head_len < ENVELOPE + MAC || head_len as u64 > total_len {
            let name = kind.name();
            bail!(Corrupt, "{name}: head length: expected {} to {total_len}, found {head_len}", ENVELOPE + MAC);
        }
        Ok(Envelope { kind, oldest, newest, head_len, total_len })
    }

    /// Checks that the whole has the length that the envelope states.
    pub fn check_len(&self, found: u64) -> Result<()> {
        let (name, expected) = (self.kind.name(), self.total_len);
        match found.cmp(&expected) {
            std::cmp::Ordering::Less => bail!(Corrupt, "{name}: truncated: expected {expected} bytes, found {found}"),
            std::cmp::Ordering::Greater => bail!(Corrupt, "{name}: expected {expected} bytes, found {found}"),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// Verifies a whole head (checksum, then version, then MAC) and returns its sections.
    pub(in crate::kv) fn open<'a>(&self, head: &'a [u8], keys: &Keys) -> Result<&'a [u8]> {
        let name = self.kind.name();
        if head.len() != self.head_len {
            bail!(Corrupt, "{name}: head: expected {} bytes, found {}", self.head_len, head.len());
        }
        if checksum(head) != blake3::Hash::from_bytes(head[CHECKSUM].try_into().unwrap_or_default()) {
            bail!(Corrupt, "{name}: checksum of the head: does not match");
        }
        let (oldest, newest) = (self.oldest, self.newest);
        if oldest > newest {
            bail!(Corrupt, "{name}: wire versions: {oldest} to {newest}");
        }
        if !(oldest..=newest).contains(&VERSION) {
            let found = if oldest == newest { oldest.to_string() } else { format!("{oldest} to {newest}") };
            bail!(Incompatible, "{name}: wire version: this library reads version {VERSION}, found {found}");
        }
        let (signed, found) = head.split_at(head.len() - MAC);
        if mac(signed, keys) != blake3::Hash::from_bytes(found.try_into().unwrap_or_default()) {
            bail!(Permission, "{name}: authority: not signed with this cache's secret");
        }
        if head[24..32] != [0; 8] {
            bail!(Incompatible, "{name}: envelope flags: expected 0, found {:?}", &head[24..32]);
        }
        Ok(&signed[ENVELOPE..])
    }
}
