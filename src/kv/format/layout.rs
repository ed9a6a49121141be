//! The layout section: kind of KV of each layer, its arrangement in blocks, and the part that this shard holds.

use super::wire::{Reader, Writer};
use crate::backend::KvGeometry;
use crate::bail;
use crate::error::Result;
use crate::kv::pool::ShardRange;
use crate::tensor::Dtype;

/// Kind of KV that a layer keeps. Layers of one kind form a cache group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Keys and values of every token.
    Full,
    /// Keys and values of every token. Only those of the last so many tokens are read again.
    Window(u32),
    /// A recurrent state: so many bytes per sequence, whatever its length.
    Recurrent(u32),
}

impl std::fmt::Display for LayerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LayerKind::Full => write!(f, "full attention"),
            LayerKind::Window(tokens) => write!(f, "a sliding window of {tokens} tokens"),
            LayerKind::Recurrent(bytes) => write!(f, "a recurrent state of {bytes} bytes"),
        }
    }
}

impl LayerKind {
    fn code(self) -> (u32, u32) {
        match self {
            LayerKind::Full => (0, 0),
            LayerKind::Window(tokens) => (1, tokens),
            LayerKind::Recurrent(bytes) => (2, bytes),
        }
    }

    fn from_code(code: (u32, u32)) -> Option<LayerKind> {
        match code {
            (0, 0) => Some(LayerKind::Full),
            (1, tokens @ 1..) => Some(LayerKind::Window(tokens)),
            (2, bytes @ 1..) => Some(LayerKind::Recurrent(bytes)),
            _ => None,
        }
    }
}

/// Arrangement of KV in the blocks of a cache, and the kind of KV of each layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub geometry: KvGeometry,
    /// Kind of each layer.
    pub kinds: Vec<LayerKind>,
}

/// Largest accepted block, in bytes: bounds what a reader allocates for one.
const MAX_BLOCK_TOKENS: u32 = 4096;
/// Largest number of groups. A layer names its group in one byte.
const MAX_GROUPS: u32 = 255;

const HEADER: usize = 16;
const GROUP: usize = 24;
const SHARD: usize = 24;

impl Layout {
    /// A layout with a kind for each layer. Empty `kinds` mean full attention in all layers.
    pub fn new(geometry: KvGeometry, kinds: &[LayerKind]) -> Result<Layout> {
        let kinds = match kinds.len() {
            0 => vec![LayerKind::Full; geometry.layers as usize],
            n if n == geometry.layers as usize => kinds.to_vec(),
            n => bail!(InvalidArgument, "kinds of layers: expected {}, found {n}", geometry.layers),
        };
        if let Some(kind) = kinds.iter().find(|kind| matches!(kind, LayerKind::Recurrent(_))) {
            bail!(Unsupported, "a layer with {kind}: this library keeps keys and values only");
        }
        let layout = Layout { geometry, kinds };
        match layout.n_groups() {
            n if n > MAX_GROUPS as usize => {
                bail!(Unsupported, "cache groups: expected at most {MAX_GROUPS}, found {n}")
            }
            _ => Ok(layout),
        }
    }

    /// Distinct kinds of layers, in the order of their first layers.
    fn groups(&self) -> Vec<LayerKind> {
        let mut groups = Vec::new();
        for kind in &self.kinds {
            if !groups.contains(kind) {
                groups.push(*kind);
            }
        }
        groups
    }

    /// Number of groups that the layers form.
    pub fn n_groups(&self) -> usize {
        self.groups().len()
    }

    /// Bytes that [`Layout::encode`] writes.
    pub fn encoded_len(&self) -> usize {
        HEADER + GROUP * self.n_groups() + self.kinds.len() + SHARD * self.geometry.shards as usize
    }

    /// Writes the section's payload.
    pub fn encode(&self) -> Vec<u8> {
        let (g, groups) = (&self.geometry, self.groups());
        let mut w = Writer::default();
        w.u32(g.layers).u32(g.block_tokens).u32(groups.len() as u32).u32(g.shards);
        for group in &groups {
            let (kind, size) = group.code();
            w.u32(kind).u32(size).u32(g.kv_heads).u32(g.head_dim).u32(g.dtype as u32).u32(0);
        }
        for kind in &self.kinds {
            w.bytes(&[groups.iter().position(|group| group == kind).unwrap_or(0) as u8]);
        }
        for index in 0..g.shards {
            let ShardRange { layers, heads, tokens } = ShardRange::of_heads(g, index, g.shards);
            w.u32(layers.0).u32(layers.1).u32(heads.0).u32(heads.1).u32(tokens.0).u32(tokens.1);
        }
        w.0
    }

    /// Reads the section. INCOMPATIBLE if this version cannot store such KV: recurrent states, groups of different shapes,
    /// and shards that do not divide all of a sequence's KV into equal parts.
    pub fn decode(section: &[u8]) -> Result<Layout> {
        let mut r = Reader::new("layout", section);
        let (layers, block_tokens) = (r.u32("layers")?, r.u32("block tokens")?);
        let (n_groups, shards) = (r.u32("cache groups")?, r.u32("shards")?);
        if n_groups == 0 || n_groups > MAX_GROUPS {
            bail!(Incompatible, "cache groups: expected 1 to {MAX_GROUPS}, found {n_groups}");
        }
        let (mut groups, mut shape) = (Vec::new(), None);
        for index in 0..n_groups {
            let code = (r.u32("group kind")?, r.u32("group size")?);
            let found = (r.u32("KV heads")?, r.u32("head dimension")?, r.u32("dtype")?);
            let reserved = r.u32("reserved")?;
            let Some(kind) = LayerKind::from_code(code).filter(|_| reserved == 0) else {
                let (kind, size) = code;
                bail!(Incompatible, "cache group {index}: kind {kind} of size {size}: unknown to this library");
            };
            if let LayerKind::Recurrent(_) = kind {
                bail!(Incompatible, "cache group {index}: {kind}: this library keeps keys and values only");
            }
            if *shape.get_or_insert(found) != found {
                bail!(Incompatible, "cache group {index}: expected the heads and dtype of group 0, found {found:?}");
            }
            groups.push(kind);
        }
        let (kv_heads, head_dim, code) = shape.unwrap_or_default();
        let Some(dtype) = Dtype::from_code(code) else {
            bail!(Incompatible, "KV dtype: expected one that this library knows, found code {code}");
        };
        let mut kinds = Vec::new();
        for (layer, &group) in r.bytes(layers as usize, "groups of the layers")?.iter().enumerate() {
            let Some(kind) = groups.get(group as usize) else {
                bail!(Corrupt, "layer {layer}: expected a cache group below {n_groups}, found {group}");
            };
            kinds.push(*kind);
        }
        if block_tokens > MAX_BLOCK_TOKENS {
            bail!(Incompatible, "block tokens: expected at most {MAX_BLOCK_TOKENS}, found {block_tokens}");
        }
        let geometry = KvGeometry { layers, kv_heads, head_dim, block_tokens, dtype, shards };
        geometry.validate().map_err(|error| crate::error!(Incompatible, "{error}"))?;
        for index in 0..shards {
            let found = ShardRange {
                layers: (r.u32("first layer")?, r.u32("end of the layers")?),
                heads: (r.u32("first head")?, r.u32("end of the heads")?),
                tokens: (r.u32("first token")?, r.u32("end of the tokens")?),
            };
            let expected = ShardRange::of_heads(&geometry, index, shards);
            if found != expected {
                bail!(Incompatible, "shard {index} of {shards}: expected {expected}, found {found}");
            }
        }
        r.end()?;
        Ok(Layout { geometry, kinds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn layout() -> Layout {
        let geometry =
            KvGeometry { layers: 5, kv_heads: 4, head_dim: 8, block_tokens: 16, dtype: Dtype::Bf16, shards: 2 };
        let (full, window) = (LayerKind::Full, LayerKind::Window(128));
        Layout { geometry, kinds: vec![window, full, window, LayerKind::Window(64), full] }
    }

    #[test]
    fn groups_come_back_with_their_layers() {
        let bytes = layout().encode();
        assert_eq!((bytes.len(), layout().n_groups()), (layout().encoded_len(), 3));
        assert_eq!(Layout::decode(&bytes).unwrap(), layout());
        assert_eq!(bytes[HEADER + 3 * GROUP..][..5], [0, 1, 0, 2, 1]);
        for cut in 0..bytes.len() {
            assert!(Layout::decode(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn what_there_are_no_blocks_for_is_refused_by_name() {
        let (groups, map) = (HEADER, HEADER + 3 * GROUP);
        let shards = map + 5;
        for (at, value, status, text) in [
            (8, 0, Status::Incompatible, "cache groups: expected 1 to 255, found 0"),
            (groups, 2, Status::Incompatible, "cache group 0: a recurrent state of 128 bytes"),
            (groups, 7, Status::Incompatible, "cache group 0: kind 7 of size 128: unknown"),
            (groups + 4, 0, Status::Incompatible, "cache group 0: kind 1 of size 0: unknown"),
            (groups + GROUP + 8, 1, Status::Incompatible, "cache group 1: expected the heads and dtype of group 0"),
            (map, 3, Status::Corrupt, "layer 0: expected a cache group below 3, found 3"),
            (shards, 1, Status::Incompatible, "shard 0 of 2: expected layers 0..5, heads 0..2, all tokens"),
            (shards + 8, 1, Status::Incompatible, "found layers 0..5, heads 1..2, all tokens"),
            (shards + 20, 9, Status::Incompatible, "found layers 0..5, heads 0..2, tokens 0..9"),
            (12, 3, Status::Incompatible, "tensor-parallel shards: expected a divisor of 4 KV heads, found 3"),
        ] {
            let mut bytes = layout().encode();
            bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            if at == map {
                bytes[map + 1..map + 4].copy_from_slice(&[1, 0, 2]);
            }
            let error = Layout::decode(&bytes).unwrap_err();
            assert_eq!(error.status, status, "{error}");
            assert!(error.message.contains(text), "{text:?} in {error}");
        }
    }
}
