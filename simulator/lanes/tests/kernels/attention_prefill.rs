use crate::attention_common::{Batch, Kv, Shape, Span};
use crate::common::{BOTH, Element, arg, assert_close, launch};
use cleave_kernels::shapes;
use half::{bf16, f16};
use simulated_kernels::Lanes;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Work {
    span: u32,
    first_row: u32,
}

/// Number of (query row, head) pairs and of tokens in a tile.
fn tile(head_dim: usize) -> (u32, u32) {
    (shapes::prefill_rows(head_dim as u32), shapes::prefill_tokens(head_dim as u32))
}

/// Outputs of the kernel; NaN where it wrote nothing. `spans` are the batch's spans or parts of them.
fn run<T: Element, K: Kv>(batch: &Batch<T>, spans: &[Span], lanes: Lanes) -> Vec<T> {
    let (heads, dim) = (batch.shape.heads, batch.head_dim);
    let group = heads / batch.shape.kv_heads;
    let step = (tile(dim).0 / group).max(1);
    let mut work: Vec<Work> = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        work.extend((0..span.rows).step_by(step as usize).map(|first_row| Work { span: i as u32, first_row }));
    }
    work.reverse();
    let count = work.len() as u32;
    // The grid is larger than the work list.
    work.push(Work { span: u32::MAX, first_row: u32::MAX });
    let out_stride = heads * dim as u32 + 8;
    let mut out = vec![T::of(f64::NAN); batch.rows * out_stride as usize];
    launch(
        &format!("attention_prefill_{}_{}_{dim}", T::NAME, K::NAME),
        [work.len() as u32, batch.shape.kv_heads * group.div_ceil(tile(dim).0), 1],
        128,
        shapes::prefill_shared(dim as u32) as usize,
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
            arg(&spans.as_ptr()),
            arg(&out.as_mut_ptr()),
            arg(&out_stride),
            arg(&work.as_ptr()),
            arg(&(&raw const count)),
        ],
        lanes,
    );
    let (rows, gaps): (Vec<&[T]>, Vec<&[T]>) =
        out.chunks(out_stride as usize).map(|row| row.split_at(row.len() - 8)).unzip();
    assert!(gaps.concat().iter().all(|x| x.get().is_nan()), "wrote between rows");
    rows.concat()
}

fn check<T: Element, K: Kv>(shape: &Shape, head_dim: usize) {
    let batch = Batch::<T>::new::<K>(shape.clone(), head_dim);
    for lanes in BOTH {
        let out = run::<T, K>(&batch, &batch.spans, lanes);
        let what = format!("attention_prefill_{}_{}_{head_dim} {shape:?} {lanes:?}", T::NAME, K::NAME);
        assert_close(&out, &batch.expected, 1.5 * T::EPSILON, &what);
    }
}

const BASE: Shape = Shape { heads: 4, kv_heads: 2, shards: 1, block_tokens: 16, window: 0, spans: Vec::new(), seed: 1 };

fn head_sizes<T: Element, K: Kv>() {
    for (i, head_dim) in [16, 32, 64, 80, 96, 128, 256].into_iter().enumerate() {
        let shape = Shape { heads: 3, kv_heads: 1, spans: vec![(37, 44)], seed: i as u64, ..BASE };
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
fn prefill_bf16_of_every_kv_and_head_size() {
    kv_types::<bf16>();
}

#[test]
fn prefill_f16_of_every_kv_and_head_size() {
    kv_types::<f16>();
}

/// Covers groups of heads, block sizes, shards, windows, prefixes, and partly filled tiles.
fn shapes<T: Element, K: Kv>() {
    for (heads, kv_heads, shards, block_tokens, window, spans) in [
        (1, 1, 1, 1, 0, vec![(0, 1)]),
        (2, 2, 2, 5, 0, vec![(0, 130), (63, 2)]),
        (7, 1, 1, 256, 0, vec![(250, 20)]),
        (12, 4, 2, 16, 20, vec![(0, 45), (100, 1), (64, 33)]),
        (1, 1, 1, 3, 100, vec![(300, 128)]),
        (4, 1, 1, 16, 1, vec![(61, 70)]),
        (40, 1, 1, 7, 0, vec![(5, 4)]),
        (130, 1, 1, 16, 0, vec![(30, 2)]),
    ] {
        check::<T, K>(&Shape { heads, kv_heads, shards, block_tokens, window, spans, seed: 7 }, 32);
    }
}

#[test]
fn prefill_of_many_shapes() {
    shapes::<bf16, bf16>();
    shapes::<f16, i8>();
}

/// A prompt gives the same bits in one piece and in chunks of any length.
#[test]
fn prefill_does_not_depend_on_chunks() {
    for window in [0, 50] {
        let batch = Batch::<bf16>::new::<bf16>(Shape { window, spans: vec![(10, 150)], ..BASE }, 32);
        let whole = run::<bf16, bf16>(&batch, &batch.spans, Lanes::Ascending);
        let mut chunks = Vec::new();
        let mut row = 0;
        for rows in [1, 70, 2, 64, 13] {
            chunks.push(Span { row, rows, position: 10 + row, ..batch.spans[0] });
            row += rows;
        }
        assert_eq!(row, 150);
        assert!(whole == run::<bf16, bf16>(&batch, &chunks, Lanes::Ascending), "window {window}");
    }
}
