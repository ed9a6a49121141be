use crate::common::{BOTH, Random, arg, launch};
use crate::geometry::{Bytes, KvLayout, Stored};
use half::{bf16, f16};
use std::ptr;

#[test]
fn blocks_to_and_from_lists() {
    // Covers words of 16 bytes and of 4, fewer words than threads, and more words than the grid takes at once.
    for block_bytes in [16usize, 4, 1040, 20, 4096 + 4] {
        let ids: [u32; 4] = [5, 0, 6, 3];
        let others: [u32; 4] = [1, 2, 4, 7];
        let mut slab = Bytes::new(8 * block_bytes);
        let block = |slab: &Bytes, id: u32| slab[id as usize * block_bytes..][..block_bytes].to_vec();
        for lanes in BOTH {
            let (grid, count, bytes) = ([2, 3, 1], 4u32, block_bytes as u64);
            let mut staging = Bytes::new(5 * block_bytes);
            let mut expected = staging.clone();
            for (i, &id) in ids.iter().enumerate() {
                expected[i * block_bytes..][..block_bytes].copy_from_slice(&block(&slab, id));
            }
            let (of_slab, of_staging) = (slab.pointer(), staging.pointer());
            launch(
                "kv_gather",
                grid,
                32,
                0,
                &[arg(&of_staging), arg(&of_slab), arg(&ids.as_ptr()), arg(&bytes), arg(&count)],
                lanes,
            );
            assert!(staging == expected, "gathered {block_bytes}");

            let mut target = Bytes::new(8 * block_bytes + 16);
            let mut expected = target.clone();
            for (&to, &from) in others.iter().zip(&ids) {
                expected[to as usize * block_bytes..][..block_bytes].copy_from_slice(&block(&slab, from));
            }
            let mut scattered = target.clone();
            launch(
                "kv_scatter",
                grid,
                32,
                0,
                &[arg(&scattered.pointer()), arg(&others.as_ptr()), arg(&of_staging), arg(&bytes), arg(&count)],
                lanes,
            );
            assert!(scattered == expected, "scattered {block_bytes}");
            let copy = |to: *mut u8, to_ids: *const u32, from: *mut u8| {
                let from_ids = ids.as_ptr();
                launch(
                    "kv_copy",
                    grid,
                    64,
                    0,
                    &[arg(&to), arg(&to_ids), arg(&from), arg(&from_ids), arg(&bytes), arg(&count)],
                    lanes,
                );
            };
            copy(target.pointer(), others.as_ptr(), of_slab);
            assert!(target == expected, "copied {block_bytes}");
            let mut within = slab.clone();
            let mut expected = slab.clone();
            for (&to, &from) in others.iter().zip(&ids) {
                expected[to as usize * block_bytes..][..block_bytes].copy_from_slice(&block(&slab, from));
            }
            let pointer = within.pointer();
            copy(pointer, others.as_ptr(), pointer);
            assert!(within == expected, "within a slab {block_bytes}");
        }
        let nothing = (slab.pointer(), ptr::null::<u32>());
        launch(
            "kv_copy",
            [1, 1, 1],
            32,
            0,
            &[
                arg(&nothing.0),
                arg(&nothing.1),
                arg(&nothing.0),
                arg(&nothing.1),
                arg(&(block_bytes as u64)),
                arg(&0u32),
            ],
            BOTH[0],
        );
    }
}

/// Converts the same tokens to blocks of another layout.
struct Case {
    layers: u32,
    kv_heads: u32,
    head_dim: u32,
    block_tokens: (u32, u32),
    shards: (u32, u32),
    tokens: (u32, u32),
}

/// Rows of many magnitudes, some with special values.
fn row(random: &mut Random, index: usize, dim: u32) -> Vec<f32> {
    let magnitude = [1.0, 1e-5, 500.0, 1e-38, 0.0, 3e38][index % 6];
    let mut row: Vec<f32> = (0..dim).map(|_| random.signed() as f32 * magnitude).collect();
    if index % 11 == 7 {
        row[index % dim as usize] = f32::NEG_INFINITY;
    }
    row
}

fn convert<From: Stored, To: Stored>(case: &Case) {
    let Case { layers, kv_heads, head_dim, block_tokens, shards, tokens } = *case;
    let what = format!("kv_convert_{}_{}", From::NAME, To::NAME);
    let mut random = Random(u64::from(head_dim + tokens.1));
    let from = KvLayout::new::<From>(layers, kv_heads, head_dim, block_tokens.0, shards.0);
    let to = KvLayout::new::<To>(layers, kv_heads, head_dim, block_tokens.1, shards.1);
    // The blocks are in descending order and use every other block of the slab.
    let table =
        |block_tokens: u32| -> Vec<u32> { (0..tokens.1.div_ceil(block_tokens)).rev().map(|i| 2 * i + 1).collect() };
    let (from_table, to_table) = (table(block_tokens.0), table(block_tokens.1));
    let slab = |layout: &KvLayout, table: &[u32]| Bytes::new((2 * table.len() + 1) * layout.block_bytes as usize);
    let mut source = slab(&from, &from_table);
    let before = slab(&to, &to_table);
    let mut expected = before.clone();
    let mut index = 0;
    for token in 0..tokens.1 {
        let (block, to_block) =
            (from_table[(token / from.block_tokens) as usize], to_table[(token / to.block_tokens) as usize]);
        for layer in 0..layers {
            for value in 0..2 {
                for head in 0..kv_heads {
                    let at = from.place::<From>(block, layer, value, head, token % from.block_tokens);
                    from.write::<From>(&mut source, at, &row(&mut random, index, head_dim));
                    index += 1;
                    if token < tokens.0 {
                        continue;
                    }
                    let place = to.place::<To>(to_block, layer, value, head, token % to.block_tokens);
                    if From::NAME == To::NAME {
                        for (to, from, n) in [
                            (place.0, at.0, head_dim as usize * To::BYTES),
                            (place.1, at.1, if To::SCALED { 4 } else { 0 }),
                        ] {
                            expected[to..][..n].copy_from_slice(&source[from..][..n]);
                        }
                    } else {
                        to.write::<To>(&mut expected, place, &from.read::<From>(&source, at));
                    }
                }
            }
        }
    }
    for lanes in BOTH {
        let mut out = before.clone();
        launch(
            &what,
            [2, 3, 1],
            64,
            0,
            &[
                arg(&source.pointer()),
                arg(&from_table.as_ptr()),
                arg(&from),
                arg(&out.pointer()),
                arg(&to_table.as_ptr()),
                arg(&to),
                arg(&tokens.0),
                arg(&tokens.1),
            ],
            lanes,
        );
        compare(&out, &expected, To::BYTES, &what);
    }
}

/// Compares bits, but treats all float NaNs as equal.
fn compare(found: &[u8], expected: &[u8], bytes: usize, what: &str) {
    // Scales of int8 are floats at multiples of four bytes.
    let width = if bytes == 1 { 4 } else { bytes };
    for (at, (found, expected)) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
        let nan = |x: &[u8]| match bytes {
            2 if what.ends_with("bf16") => bf16::from_le_bytes(x.try_into().unwrap()).is_nan(),
            2 => f16::from_le_bytes(x.try_into().unwrap()).is_nan(),
            _ => f32::from_le_bytes(x.try_into().unwrap()).is_nan(),
        };
        assert!(
            found == expected || nan(found) && nan(expected),
            "{what}: {found:?} for {expected:?} at {}",
            at * width
        );
    }
}

fn every_pair(case: Case) {
    fn of<From: Stored>(case: &Case) {
        convert::<From, f32>(case);
        convert::<From, bf16>(case);
        convert::<From, f16>(case);
        convert::<From, i8>(case);
    }
    of::<f32>(&case);
    of::<bf16>(&case);
    of::<f16>(&case);
    of::<i8>(&case);
}

#[test]
fn conversion_of_every_pair() {
    let case = |head_dim, block_tokens, shards, tokens| Case {
        layers: 2,
        kv_heads: 4,
        head_dim,
        block_tokens,
        shards,
        tokens,
    };
    every_pair(case(8, (4, 4), (1, 1), (0, 9)));
    every_pair(case(64, (5, 3), (1, 2), (4, 13)));
    every_pair(case(6, (1, 16), (4, 1), (3, 17)));
    every_pair(case(16, (16, 1), (2, 4), (7, 7))); // no tokens
}

#[test]
fn conversion_of_wide_and_odd_rows() {
    let case = |head_dim, block_tokens, tokens| Case {
        layers: 1,
        kv_heads: 2,
        head_dim,
        block_tokens,
        shards: (1, 2),
        tokens,
    };
    every_pair(case(128, (2, 3), (1, 5)));
    every_pair(case(260, (3, 2), (0, 4))); // more than four elements per lane
    every_pair(case(7, (3, 8), (2, 8)));
    every_pair(case(1, (2, 1), (1, 3)));
}
