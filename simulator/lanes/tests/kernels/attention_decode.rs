use crate::attention_common::{Batch, Kv, Shape, first_in_window};
use crate::common::{BOTH, Element, Random, arg, assert_close, launch};
use cleave_kernels::shapes;
use half::{bf16, f16};
use simulated_kernels::Lanes;

const SPLIT: u32 = shapes::DECODE_SPLIT;
const NO_SLOT: u32 = shapes::NO_SLOT;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Work {
    row: u32,
    span: u32,
    first: u32,
    slot: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Merge {
    row: u32,
    slot: u32,
    slots: u32,
}

/// Plans the work for every row that `wanted` selects. The last piece comes first, because the lists may have any
/// order.
fn plan<T>(batch: &Batch<T>, wanted: impl Fn(u32) -> bool) -> (Vec<Work>, Vec<Merge>, u32) {
    let (mut work, mut merges, mut slots) = (Vec::new(), Vec::new(), 1);
    for (i, span) in batch.spans.iter().enumerate() {
        for row in (span.row..span.row + span.rows).filter(|row| wanted(*row)) {
            let position = span.position + row - span.row;
            let (low, high) = (first_in_window(position, batch.shape.window) / SPLIT, position / SPLIT);
            if low < high {
                merges.push(Merge { row, slot: slots, slots: high - low + 1 });
            }
            for piece in low..=high {
                let slot = if low == high { NO_SLOT } else { slots + piece - low };
                work.push(Work { row, span: i as u32, first: piece * SPLIT, slot });
            }
            slots += if low == high { 0 } else { high - low + 1 };
        }
    }
    work.reverse();
    merges.reverse();
    (work, merges, slots)
}

/// Outputs of the kernel; NaN where it wrote nothing.
fn run<T: Element, K: Kv>(batch: &Batch<T>, lanes: Lanes, wanted: impl Fn(u32) -> bool) -> Vec<T> {
    let (mut work, mut merges, slots) = plan(batch, wanted);
    let (heads, dim) = (batch.shape.heads, batch.head_dim);
    let out_stride = heads * dim as u32;
    let mut out = vec![T::of(f64::NAN); batch.rows * out_stride as usize];
    let mut sums = vec![f32::NAN; slots as usize * out_stride as usize];
    let mut weights = vec![f32::NAN; slots as usize * heads as usize * 2];
    let (work_count, merge_count) = (work.len() as u32, merges.len() as u32);
    // The grid is larger than the work list.
    work.push(Work { row: u32::MAX, span: u32::MAX, first: u32::MAX, slot: u32::MAX });
    merges.push(Merge { row: u32::MAX, slot: u32::MAX, slots: u32::MAX });
    let tiles = (heads / batch.shape.kv_heads).div_ceil(16);
    let shared = match T::NAME {
        "float" => shapes::decode_float_shared(dim as u32),
        _ => shapes::DECODE_SHARED,
    } as usize;
    launch(
        &format!("attention_decode_{}_{}_{dim}", T::NAME, K::NAME),
        [work.len() as u32, batch.shape.kv_heads * tiles, 1],
        128,
        shared,
        &[
            arg(&batch.q.as_ptr()),
            arg(&batch.q_stride),
            arg(&batch.kv.as_ptr()),
            arg(&batch.layout),
            arg(&batch.layer),
            arg(&heads),
            arg(&batch.scale),
            arg(&batch.shape.window),
            arg(&batch.tables.as_ptr()),
            arg(&batch.spans.as_ptr()),
            arg(&out.as_mut_ptr()),
            arg(&out_stride),
            arg(&work.as_ptr()),
            arg(&(&raw const work_count)),
            arg(&sums.as_mut_ptr()),
            arg(&weights.as_mut_ptr()),
        ],
        lanes,
    );
    launch(
        &format!("attention_merge_{}_{dim}", T::NAME),
        [merges.len() as u32, heads, 1],
        128,
        (128 * 4 + 4 + 128) * 4,
        &[
            arg(&out.as_mut_ptr()),
            arg(&out_stride),
            arg(&heads),
            arg(&merges.as_ptr()),
            arg(&(&raw const merge_count)),
            arg(&sums.as_ptr()),
            arg(&weights.as_ptr()),
        ],
        lanes,
    );
    out
}

fn tolerance<T: Element>() -> f64 {
    if T::NAME == "float" { 16.0 * T::EPSILON } else { 1.5 * T::EPSILON }
}

fn check<T: Element, K: Kv>(shape: &Shape, head_dim: usize) {
    let batch = Batch::<T>::new::<K>(shape.clone(), head_dim);
    for lanes in BOTH {
        let out = run::<T, K>(&batch, lanes, |_| true);
        let what = format!("attention_decode_{}_{}_{head_dim} {shape:?} {lanes:?}", T::NAME, K::NAME);
        assert_close(&out, &batch.expected, tolerance::<T>(), &what);
    }
}

const BASE: Shape = Shape { heads: 4, kv_heads: 2, shards: 1, block_tokens: 16, window: 0, spans: Vec::new(), seed: 1 };

fn head_sizes<T: Element, K: Kv>() {
    for (i, head_dim) in [16, 32, 64, 80, 96, 128, 256].into_iter().enumerate() {
        let shape = Shape { spans: vec![(299, 1), (3, 1)], seed: i as u64, ..BASE };
        check::<T, K>(&shape, head_dim);
    }
}

fn kv_types<T: Element>() {
    head_sizes::<T, f32>();
    head_sizes::<T, bf16>();
    head_sizes::<T, f16>();
    head_sizes::<T, i8>();
}

#[test]
fn decode_float_of_every_kv_and_head_size() {
    kv_types::<f32>();
}

#[test]
fn decode_bf16_of_every_kv_and_head_size() {
    kv_types::<bf16>();
}

#[test]
fn decode_f16_of_every_kv_and_head_size() {
    kv_types::<f16>();
}

/// Covers groups of heads, block sizes, shards, windows, and context lengths around the split.
fn shapes<T: Element, K: Kv>() {
    for (heads, kv_heads, shards, block_tokens, window, spans) in [
        (1, 1, 1, 1, 0, vec![(0, 1)]),
        (6, 2, 2, 5, 0, vec![(63, 1), (64, 2), (15, 1)]),
        (7, 1, 1, 256, 0, vec![(255, 2), (511, 1)]),
        (12, 4, 2, 16, 20, vec![(300, 1), (256, 1), (19, 2)]),
        (16, 1, 1, 3, 300, vec![(700, 2)]),
        (18, 1, 1, 7, 0, vec![(100, 1)]),
        (40, 2, 2, 16, 1, vec![(255, 2)]),
        (2, 1, 1, 100, 0, vec![(1300, 1)]),
    ] {
        check::<T, K>(&Shape { heads, kv_heads, shards, block_tokens, window, spans, seed: 7 }, 64);
    }
}

#[test]
fn decode_of_many_shapes() {
    shapes::<f32, i8>();
    shapes::<f32, f32>();
    shapes::<bf16, bf16>();
    shapes::<f16, i8>();
}

/// A row gives the same bits alone and in a batch.
#[test]
fn decode_does_not_depend_on_neighbours() {
    fn same<T: Element, K: Kv>() {
        let spans = vec![(600, 2), (40, 1), (255, 3)];
        let batch = Batch::<T>::new::<K>(Shape { spans, ..BASE }, 32);
        let all = run::<T, K>(&batch, Lanes::Ascending, |_| true);
        let columns = all.len() / batch.rows;
        for row in 0..batch.rows {
            let alone = run::<T, K>(&batch, Lanes::Ascending, |r| r as usize == row);
            for (i, x) in alone.iter().enumerate() {
                if i / columns == row {
                    assert_eq!(*x, all[i]);
                } else {
                    assert!(x.get().is_nan(), "row {} was written", i / columns);
                }
            }
        }
    }
    same::<f32, f32>();
    same::<bf16, bf16>();
    same::<f16, i8>();
}

/// Covers more pieces than groups of threads, and more pieces than threads.
fn merge<T: Element>() {
    let (heads, row, slot) = (2, 1, 3);
    for (head_dim, slots) in [(32, 40), (64, 9), (80, 7), (96, 6), (128, 2), (256, 300)] {
        let mut random = Random(head_dim as u64);
        let sums: Vec<f32> = random.vector((slot + slots) * heads * head_dim);
        // The largest scores differ widely; the sums are positive.
        let weights: Vec<f32> = (0..(slot + slots) * heads)
            .flat_map(|_| [40.0 * random.signed() as f32, 1.5 + random.signed() as f32])
            .collect();
        let mut expected = vec![f64::NAN; 3 * heads * head_dim];
        for head in 0..heads {
            let pieces: Vec<usize> = (slot..slot + slots).map(|piece| piece * heads + head).collect();
            let most = pieces.iter().fold(f32::NEG_INFINITY, |most, i| most.max(weights[2 * i]));
            let factor = |i: usize| f64::from(weights[2 * i] - most).exp2();
            let sum: f64 = pieces.iter().map(|i| factor(*i) * f64::from(weights[2 * i + 1])).sum();
            for dim in 0..head_dim {
                let value: f64 = pieces.iter().map(|i| factor(*i) * f64::from(sums[i * head_dim + dim])).sum();
                expected[(row * heads + head) * head_dim + dim] = value / sum;
            }
        }
        let item = Merge { row: row as u32, slot: slot as u32, slots: slots as u32 };
        let count = 1u32;
        for lanes in BOTH {
            let mut out = vec![T::of(f64::NAN); 3 * heads * head_dim];
            launch(
                &format!("attention_merge_{}_{head_dim}", T::NAME),
                [1, heads as u32, 1],
                128,
                (128 * 4 + 4 + 128) * 4,
                &[
                    arg(&out.as_mut_ptr()),
                    arg(&((heads * head_dim) as u32)),
                    arg(&(heads as u32)),
                    arg(&(&raw const item)),
                    arg(&(&raw const count)),
                    arg(&sums.as_ptr()),
                    arg(&weights.as_ptr()),
                ],
                lanes,
            );
            let columns = heads * head_dim;
            assert_close(&out[columns..2 * columns], &expected[columns..2 * columns], tolerance::<T>(), "merge");
            assert!(out[..columns].iter().chain(&out[2 * columns..]).all(|x| x.get().is_nan()));
        }
    }
}

#[test]
fn merge_of_many_pieces() {
    merge::<f32>();
    merge::<bf16>();
    merge::<f16>();
}
