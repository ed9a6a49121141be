//! The devices that a pool's blocks lie on: one shard each.

use std::fmt;

use crate::backend::{BlockStore, KvGeometry};
use crate::bail;
use crate::error::Result;
use crate::sync::Arc;

/// The part of a sequence's KV that one device has. Every range is half open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardRange {
    /// Layers of the model.
    pub layers: (u32, u32),
    /// KV heads of each of these layers.
    pub heads: (u32, u32),
    /// Tokens of the sequence; an end of `u32::MAX` stands for all from the first on.
    pub tokens: (u32, u32),
}

impl ShardRange {
    /// Part `index` of `n` equal parts of the heads, with all layers and tokens. `n` divides the heads of `geometry`.
    pub fn of_heads(geometry: &KvGeometry, index: u32, n: u32) -> ShardRange {
        let heads = geometry.kv_heads / n;
        let tokens = (0, u32::MAX);
        ShardRange { layers: (0, geometry.layers), heads: (index * heads, (index + 1) * heads), tokens }
    }

    /// Heads times layers, or None where a range is empty or reaches outside of `geometry`.
    fn area(&self, geometry: &KvGeometry) -> Option<u64> {
        let length = |(begin, end): (u32, u32), most: u32| (begin < end && end <= most).then(|| u64::from(end - begin));
        Some(length(self.layers, geometry.layers)? * length(self.heads, geometry.kv_heads)?)
    }

    fn overlaps(&self, other: &ShardRange) -> bool {
        let both = |a: (u32, u32), b: (u32, u32)| a.0 < b.1 && b.0 < a.1;
        both(self.layers, other.layers) && both(self.heads, other.heads)
    }
}

impl fmt::Display for ShardRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ShardRange { layers, heads, tokens } = self;
        write!(f, "layers {}..{}, heads {}..{}, ", layers.0, layers.1, heads.0, heads.1)?;
        match tokens {
            (0, u32::MAX) => write!(f, "all tokens"),
            (begin, end) => write!(f, "tokens {begin}..{end}"),
        }
    }
}

/// One device's part of every block.
#[derive(Clone)]
pub struct Shard {
    /// The layers and heads that the device has.
    pub range: ShardRange,
    /// The device's memory for them.
    pub store: Arc<dyn BlockStore>,
}

/// The memory of a pool on one or more devices. Block `n` of the pool is block `n` of every shard.
pub struct Shards {
    geometry: KvGeometry,
    /// Not empty.
    list: Vec<Shard>,
}

impl Shards {
    /// One shard: whole blocks in `store`.
    pub fn on_one_device(store: Arc<dyn BlockStore>) -> Result<Shards> {
        let geometry = *store.geometry();
        Shards::new(geometry, vec![Shard { range: ShardRange::of_heads(&geometry, 0, 1), store }])
    }

    /// Shards that together hold blocks of `geometry`: every layer and head on exactly one of them, as many blocks on
    /// each. INVALID_ARGUMENT otherwise, UNSUPPORTED for more than one shard.
    pub fn new(geometry: KvGeometry, list: Vec<Shard>) -> Result<Shards> {
        geometry.validate().map_err(|error| error.context("KV pool"))?;
        let mut area = 0;
        for (index, Shard { range, store }) in list.iter().enumerate() {
            let Some(own) = range.area(&geometry).filter(|_| range.tokens == (0, u32::MAX)) else {
                let all = ShardRange::of_heads(&geometry, 0, 1);
                bail!(InvalidArgument, "shard {index}: expected a part of {all}, found {range}");
            };
            if let Some(other) = list[..index].iter().position(|other| other.range.overlaps(range)) {
                bail!(InvalidArgument, "shard {index}: {range}: overlaps with shard {other}");
            }
            area += own;
            let (layers, kv_heads) = (range.layers.1 - range.layers.0, range.heads.1 - range.heads.0);
            let found = *store.geometry();
            let expected = KvGeometry { layers, kv_heads, shards: found.shards, ..geometry };
            if found != expected {
                bail!(InvalidArgument, "shard {index}: expected blocks of {expected:?}, found {found:?}");
            }
            if store.n_blocks() != list[0].store.n_blocks() {
                let (expected, found) = (list[0].store.n_blocks(), store.n_blocks());
                bail!(InvalidArgument, "shard {index}: expected {expected} blocks as in shard 0, found {found}");
            }
        }
        // Parts within the whole that do not overlap fill it exactly if they are as large together.
        let whole = u64::from(geometry.layers) * u64::from(geometry.kv_heads);
        if area != whole {
            bail!(InvalidArgument, "{} shards hold {area} of {whole} heads of all layers", list.len());
        }
        // The only place that knows this limit: `store` below is what it is for.
        if list.len() > 1 {
            bail!(Unsupported, "a KV pool in {} shards: this library copies blocks of one device only", list.len());
        }
        let found = list[0].store.geometry().shards;
        if found != geometry.shards {
            bail!(InvalidArgument, "shard 0: expected blocks of {} shards, found {found}", geometry.shards);
        }
        Ok(Shards { geometry, list })
    }

    /// Layout of whole blocks.
    pub fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }

    /// The memory of whole blocks: that of the one shard there is. A block in several shards is their parts one after
    /// the other ([`KvGeometry`]), so that a store over several stores can stand here.
    pub fn store(&self) -> &Arc<dyn BlockStore> {
        &self.list[0].store
    }
}
