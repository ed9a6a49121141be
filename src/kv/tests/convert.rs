//! Conversions between random layouts, against plain arithmetic on single elements.

use proptest::prelude::*;

use super::store::MemoryStore;
use super::{BlockId, BlockStore, Dtype, KvGeometry};
use crate::kv::pool::Conversion;

const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];
/// Filler of source blocks in the slots of tokens that are not computed.
const GARBAGE: u8 = 0x5B;

/// A store and the blocks of one sequence in it, in no particular order.
struct Side {
    geometry: KvGeometry,
    store: MemoryStore,
    table: Vec<BlockId>,
}

/// A stored row: its bytes and its scale's, and the numbers they stand for.
#[derive(Debug, PartialEq)]
struct Row {
    bytes: Vec<u8>,
    scale: Vec<u8>,
    values: Vec<f32>,
}

impl Side {
    fn new(geometry: KvGeometry, tokens: u32) -> Side {
        let n = tokens.div_ceil(geometry.block_tokens);
        Side { geometry, store: MemoryStore::new(geometry, n as usize + 1), table: (0..n).rev().collect() }
    }

    /// Where the row of a token begins, and its scale.
    fn place(&self, token: usize, stripe: (usize, bool, usize)) -> (BlockId, usize, usize) {
        let g = &self.geometry;
        let (block, at) = (token / g.block_tokens as usize, token % g.block_tokens as usize);
        let stripe = g.stripe_offset(stripe.0, stripe.1, stripe.2);
        (self.table[block], stripe + at * g.row_bytes(), stripe + g.scales_offset() + at * g.scale_bytes())
    }

    fn stripes(&self) -> Vec<(usize, bool, usize)> {
        let (layers, heads) = (self.geometry.layers as usize, self.geometry.kv_heads as usize);
        let parts = (0..layers).flat_map(|layer| [(layer, false), (layer, true)]);
        parts.flat_map(|(layer, value)| (0..heads).map(move |head| (layer, value, head))).collect()
    }

    fn row(&self, token: usize, stripe: (usize, bool, usize)) -> Row {
        let g = &self.geometry;
        let (block, row, scale_at) = self.place(token, stripe);
        let (mut bytes, mut scale) = (vec![0; g.row_bytes()], vec![0; g.scale_bytes()]);
        self.store.read(block, row, &mut bytes).unwrap();
        self.store.read(block, scale_at, &mut scale).unwrap();
        let value = |b: &[u8]| match g.dtype {
            Dtype::F32 => f32::from_le_bytes(b.try_into().unwrap()),
            Dtype::F16 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
            Dtype::Bf16 => half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32(),
            Dtype::I8 => f32::from(b[0] as i8) * f32::from_le_bytes(scale.clone().try_into().unwrap()),
        };
        let values = bytes.chunks(g.dtype.size()).map(value).collect();
        Row { bytes, scale, values }
    }

    /// Random rows for tokens up to `computed`; everything else is garbage.
    fn fill(&self, computed: u32, seed: u64) {
        let g = &self.geometry;
        let garbage = vec![GARBAGE; g.block_bytes()];
        self.table.iter().for_each(|&block| self.store.write(block, 0, &garbage).unwrap());
        let mut state = seed | 1;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        };
        for token in 0..computed as usize {
            for stripe in self.stripes() {
                let (block, row, scale_at) = self.place(token, stripe);
                let mut bytes = Vec::new();
                for _ in 0..g.head_dim {
                    match g.dtype {
                        Dtype::F32 => bytes.extend(random().to_le_bytes()),
                        Dtype::F16 => bytes.extend(half::f16::from_f32(random()).to_le_bytes()),
                        Dtype::Bf16 => bytes.extend(half::bf16::from_f32(random()).to_le_bytes()),
                        Dtype::I8 => bytes.push((random() * 63.0) as i8 as u8),
                    }
                }
                self.store.write(block, row, &bytes).unwrap();
                if g.dtype == Dtype::I8 {
                    self.store.write(block, scale_at, &random().abs().to_le_bytes()).unwrap();
                }
            }
        }
    }

    /// Its sequence from token `first` on in another layout.
    fn convert(&self, to: KvGeometry, first: u32, computed: u32) -> Side {
        let to = Side::new(to, computed);
        let conversion = Conversion::new(&self.geometry, &to.geometry).unwrap();
        assert_eq!(conversion.is_exact(), self.geometry.dtype == to.geometry.dtype);
        let mut block = vec![0; self.geometry.block_bytes()];
        for (index, &id) in self.table.iter().enumerate() {
            self.store.read(id, 0, &mut block).unwrap();
            conversion.write(index, &block, computed, first, &to.store, &to.table).unwrap();
        }
        to
    }
}

fn layout() -> impl Strategy<Value = (Dtype, u32, u32)> {
    let block_tokens = prop_oneof![1..40u32, Just(16), Just(32), Just(64)];
    (prop::sample::select(&DTYPES[..]), block_tokens, 0..4u32)
}

/// Two layouts of one model.
fn pair() -> impl Strategy<Value = (KvGeometry, KvGeometry)> {
    (1..3u32, prop::sample::select(vec![1, 2, 4, 6]), 1..6u32, layout(), layout()).prop_map(
        |(layers, kv_heads, half_dim, a, b)| {
            let geometry = |(dtype, block_tokens, shards): (Dtype, u32, u32)| {
                let divisors: Vec<u32> = (1..=kv_heads).filter(|n| kv_heads % n == 0).collect();
                let shards = divisors[shards as usize % divisors.len()];
                KvGeometry { layers, kv_heads, head_dim: 2 * half_dim, block_tokens, dtype, shards }
            };
            (geometry(a), geometry(b))
        },
    )
}

fn check_row(source: &Row, found: &Row, from: Dtype, to: Dtype) {
    if from == to {
        assert_eq!((&source.bytes, &source.scale), (&found.bytes, &found.scale));
        return;
    }
    let absmax = source.values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (&x, &y) in source.values.iter().zip(&found.values) {
        match to {
            Dtype::F32 => assert_eq!(x, y),
            Dtype::F16 => assert_eq!(half::f16::from_f32(x).to_f32(), y),
            Dtype::Bf16 => assert_eq!(half::bf16::from_f32(x).to_f32(), y),
            Dtype::I8 => assert!((x - y).abs() <= absmax / 127.0 * 0.5001, "{x} became {y} of {absmax}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_token_arrives_and_nothing_else((from, to) in pair(), computed in 1..90u32, skip in 0..3u32, seed: u64) {
        let source = Side::new(from, computed);
        source.fill(computed, seed);
        // The part that is already here is a number of whole blocks of the destination.
        let first = (skip * to.block_tokens).min(computed / to.block_tokens * to.block_tokens);
        let landed = source.convert(to, first, computed);
        let mut written = vec![vec![false; to.block_bytes()]; landed.table.len() + 1];
        for token in first as usize..computed as usize {
            for stripe in source.stripes() {
                let found = landed.row(token, stripe);
                check_row(&source.row(token, stripe), &found, from.dtype, to.dtype);
                let (block, row, scale) = landed.place(token, stripe);
                let blocks = &mut written[block as usize];
                blocks[row..row + to.row_bytes()].fill(true);
                blocks[scale..scale + to.scale_bytes()].fill(true);
            }
        }
        // Everything else is what the store's own past left there, or zero.
        for (block, written) in written.iter().enumerate() {
            let mut bytes = vec![0; to.block_bytes()];
            landed.store.read(block as BlockId, 0, &mut bytes).unwrap();
            let strange = bytes.iter().zip(written).any(|(&byte, &written)| !written && byte != 0xA5 && byte != 0);
            // An identity copies whole blocks: padding between elements and scales holds nothing of a sequence.
            let padded = from == to && to.scales_offset() != to.row_bytes() * to.block_tokens as usize;
            prop_assert!(padded || !strange, "block {} of {:?}", block, to);
        }
    }

    #[test]
    fn there_and_back_is_where_it_was((from, to) in pair(), computed in 1..90u32, seed: u64) {
        let to = KvGeometry { dtype: from.dtype, ..to };
        let source = Side::new(from, computed);
        source.fill(computed, seed);
        let back = source.convert(to, 0, computed).convert(from, 0, computed);
        for token in 0..computed as usize {
            for stripe in source.stripes() {
                prop_assert_eq!(source.row(token, stripe), back.row(token, stripe));
            }
        }
    }
}

#[test]
fn other_models_are_refused_by_name() {
    let base = KvGeometry { layers: 2, kv_heads: 4, head_dim: 8, block_tokens: 16, dtype: Dtype::Bf16, shards: 1 };
    for (other, text) in [
        (KvGeometry { layers: 3, ..base }, "layers: expected 2, found 3"),
        (KvGeometry { kv_heads: 2, ..base }, "KV heads: expected 4, found 2"),
        (KvGeometry { head_dim: 6, ..base }, "head dimension: expected 8, found 6"),
    ] {
        let error = Conversion::new(&other, &base).unwrap_err();
        assert_eq!((error.status, error.message.as_str()), (crate::error::Status::Incompatible, text));
    }
    let sharded = KvGeometry { shards: 2, ..base };
    let conversion = Conversion::new(&sharded, &base).unwrap();
    assert!(conversion.is_exact() && !conversion.is_identity());
    assert!(Conversion::new(&base, &base).unwrap().is_identity());
    assert!(!Conversion::new(&KvGeometry { dtype: Dtype::I8, ..base }, &base).unwrap().is_exact());
}
