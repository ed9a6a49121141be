//! Whether a cache can use KV that another one has written.

use super::identity::CacheIdentity;
use super::layout::Layout;
use super::sections::Sections;
use crate::backend::KvGeometry;
use crate::bail;
use crate::error::Result;

/// The cache that writes a ticket, an image or an address, or checks one against itself.
#[derive(Clone, Copy)]
pub(in crate::kv) struct Own<'a> {
    pub identity: &'a CacheIdentity,
    pub layout: &'a Layout,
    /// Refuses KV of another layout instead of converting it.
    pub no_convert: bool,
}

/// Geometry of the writer's KV, checked against `cache`. INCOMPATIBLE if model or tokenizer differ, if the KV cannot be
/// converted, or if it differs from the cache's and the cache refuses to convert.
pub(in crate::kv) fn check_compatible(sections: &Sections<'_>, cache: &Own<'_>) -> Result<KvGeometry> {
    let (own, peer) = (cache.identity, sections.identity()?);
    if peer.fingerprint != own.fingerprint {
        let expected = format!("{} ({})", hex(&own.fingerprint), own.name);
        return differ(sections, "model fingerprint", expected, hex(&peer.fingerprint));
    }
    if peer.tokenizer_digest != own.tokenizer_digest {
        return differ(sections, "tokenizer digest", hex(&own.tokenizer_digest), hex(&peer.tokenizer_digest));
    }
    let layout = sections.layout()?;
    let (own, found) = (&cache.layout.geometry, layout.geometry);
    let strict = cache.no_convert;
    if strict && own.dtype != found.dtype {
        return differ(sections, "KV dtype", own.dtype.to_string(), found.dtype.to_string());
    }
    for (field, checked, expected, found) in [
        ("layers", true, own.layers, found.layers),
        ("KV heads", true, own.kv_heads, found.kv_heads),
        ("head dimension", true, own.head_dim, found.head_dim),
        ("block tokens", strict, own.block_tokens, found.block_tokens),
        ("tensor-parallel shards", strict, own.shards, found.shards),
    ] {
        if checked && expected != found {
            return differ(sections, field, expected.to_string(), found.to_string());
        }
    }
    let mut kinds = cache.layout.kinds.iter().zip(&layout.kinds).enumerate();
    if let Some((layer, (own, found))) = kinds.find(|(_, (own, found))| own != found) {
        return differ(sections, &format!("layer {layer}"), own.to_string(), found.to_string());
    }
    Ok(found)
}

fn differ<T>(sections: &Sections<'_>, field: &str, expected: String, found: String) -> Result<T> {
    let (name, wrote) = (sections.identity().map_or_else(|_| "unknown".into(), |id| id.name), sections.library());
    bail!(Incompatible, "{field}: expected {expected}, found {found} (KV of {name:?}, written by {wrote})")
}

/// First eight bytes of a digest in hexadecimal, for messages.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>() + "…"
}
