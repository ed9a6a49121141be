//! Tests of the tiles that AMX attention makes from int8 KV. Making them needs only AVX-512, so the tests run
//! without AMX too.

use super::parts::Kv;
use super::tiles::load_kv;
use super::{Call, Item, TILE};
use crate::backend::cpu::memory::Aligned;
use crate::backend::cpu::simd::bf16_bits;
use crate::backend::cpu::{CpuBuffer, KvSlab, Level};
use crate::backend::{AttentionArgs, Batch, BlockStore, KvGeometry, SeqSpan, int8};
use crate::tensor::Dtype;

/// Keys and values of the tile at `tile`, after they are laid out as AMX operands.
fn laid_out(kv: &KvSlab, tile: usize, seen: std::ops::Range<usize>) -> Vec<f32> {
    let geometry = *kv.geometry();
    let dim = geometry.head_dim as usize;
    let span = SeqSpan { row: 0, rows: 1, position: 0, table: 0, table_len: 8 };
    let batch = Batch { spans: vec![span], tables: vec![3, 1, 0, 2, 7, 6, 5, 4], ..Batch::default() };
    let args = AttentionArgs { layer: 0, heads: 2, scale: 1.0, window: None, batch: &batch };
    let (q, out) = (CpuBuffer::default(), std::ptr::null_mut());
    let call = Call { q: &q, out, args: &args, kv, geometry, dim, group: 1 };
    let item = Item { span: &span, rows: 0..1, kv_head: 1 };
    let (dims, mut space) = (dim.div_ceil(32), Aligned::<f32>::new(4 * TILE * dim.div_ceil(32) * 16).unwrap());
    let part = TILE * dims * 16;
    let at = space.as_mut_ptr();
    let kv = Kv { keys: at.cast(), values: at.wrapping_add(part).cast(), rows: at.wrapping_add(2 * part).cast(), dims };
    // SAFETY: the caller checked for AVX-512, the block table covers the tile, and the space is divided like a scratch.
    unsafe { load_kv(&call, &item, &kv, tile, seen) };
    space.as_slice()[..2 * part].to_vec()
}

#[test]
fn int8_tiles_are_those_of_the_same_numbers_in_bf16() {
    if Level::best() < Level::Avx512 {
        return;
    }
    for (head_dim, block_tokens) in [(10, 19), (64, 16), (80, 32), (128, 17)] {
        let dtype = Dtype::I8;
        let int8 = KvGeometry { layers: 1, kv_heads: 2, head_dim, block_tokens, dtype, shards: 2 };
        let bf16 = KvGeometry { dtype: Dtype::Bf16, ..int8 };
        let slabs = [int8, bf16].map(|geometry| KvSlab::new(geometry, 8).unwrap());
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        for block in 0..8 {
            for (value, token) in (0..2 * block_tokens).map(|i| (i % 2 == 1, i as usize / 2)) {
                let row: Vec<f32> = (0..head_dim).map(|_| next()).collect();
                let (mut q, mut back) = (vec![0; row.len()], vec![0.0; row.len()]);
                let scale = int8::quantise(&row, &mut q);
                int8::dequantise(&q, scale, &mut back);
                let stripe = int8.stripe_offset(0, value, 1);
                slabs[0].write(block, stripe + token * int8.row_bytes(), &q).unwrap();
                slabs[0].write(block, stripe + int8.scales_offset() + 4 * token, &scale.to_le_bytes()).unwrap();
                let back: Vec<u8> = back.iter().flat_map(|&x| bf16_bits(x).to_le_bytes()).collect();
                slabs[1].write(block, bf16.stripe_offset(0, value, 1) + token * bf16.row_bytes(), &back).unwrap();
            }
        }
        for (tile, seen) in [(0, 0..64), (64, 3..50), (64, 0..1), (0, 63..64)] {
            let [a, b] = [0, 1].map(|slab| laid_out(&slabs[slab], tile, seen.clone()));
            let bits = |tile: Vec<f32>| tile.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(a) == bits(b), "dimension {head_dim}, {block_tokens} tokens, {seen:?} at {tile}");
        }
    }
}
