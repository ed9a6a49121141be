//! Per-head norms, rotation of q and k, and storing k and v in their blocks.

use super::level::Level;
use super::matrix::{CpuBuffer, CpuVector};
use super::norm::Norm;
use super::pool::Pool;
use super::simd::{Bf16, Element, F16, Kernel, Simd, dispatch};
use super::slab::KvSlab;
use crate::backend::{AttentionArgs, BlockStore, KvGeometry, RopeRows, SeqSpan, int8};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;

/// Kernel that rotates one head in place, on pairs `(x[i], x[i + half])`.
struct Rotate {
    x: *mut f32,
    cos: *const f32,
    sin: *const f32,
    half: usize,
}

impl Kernel for Rotate {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rotate { x, cos, sin, half } = self;
        let whole = half - half % S::LANES;
        // SAFETY: x is valid for 2 * half elements, and cos and sin for half.
        unsafe {
            let rotate = |a: S, b: S, cos: S, sin: S| (a.mul(cos).sub(b.mul(sin)), b.mul(cos).add(a.mul(sin)));
            let mut at = 0;
            while at < whole {
                let (low, high) = (S::load(x.add(at)), S::load(x.add(half + at)));
                let (low, high) = rotate(low, high, S::load(cos.add(at)), S::load(sin.add(at)));
                low.store(x.add(at));
                high.store(x.add(half + at));
                at += S::LANES;
            }
            if whole < half {
                let n = half - whole;
                let (low, high) = (S::load_part(x.add(at), n), S::load_part(x.add(half + at), n));
                let (low, high) = rotate(low, high, S::load_part(cos.add(at), n), S::load_part(sin.add(at), n));
                low.store_part(x.add(at), n);
                high.store_part(x.add(half + at), n);
            }
        }
    }
}

/// Kernel that rounds `len` elements to E.
struct Narrow<E> {
    from: *const f32,
    to: *mut E,
    len: usize,
}

impl<E: Element> Kernel for Narrow<E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.len - self.len % S::LANES;
        // SAFETY: both pointers are valid for len elements.
        unsafe {
            let mut at = 0;
            while at < whole {
                E::store(S::load(self.from.add(at)), self.to.add(at));
                at += S::LANES;
            }
            for at in whole..self.len {
                *self.to.add(at) = E::from_f32(*self.from.add(at));
            }
        }
    }
}

/// Kernel that rounds `len` elements to int8 and writes their scale.
struct Quantise {
    from: *const f32,
    to: *mut u8,
    scale: *mut f32,
    len: usize,
}

impl Kernel for Quantise {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: both pointers are valid for len elements, and `scale` for one.
        unsafe {
            let from = std::slice::from_raw_parts(self.from, self.len);
            let to = std::slice::from_raw_parts_mut(self.to, self.len);
            self.scale.write(int8::quantise(from, to));
        }
    }
}

/// Stores a row as token `token` of a stripe.
///
/// # Safety
/// The level is available. `from` is valid for head_dim elements. `stripe` is a stripe of this geometry, and no other
/// thread accesses the token's slot in it.
unsafe fn store(level: Level, geometry: &KvGeometry, from: *const f32, stripe: *mut u8, token: usize) {
    let len = geometry.head_dim as usize;
    // SAFETY: the caller upholds the same contract.
    unsafe {
        let to = stripe.add(token * geometry.row_bytes());
        match geometry.dtype {
            Dtype::F32 => dispatch(level, Narrow { from, to: to.cast::<f32>(), len }),
            Dtype::F16 => dispatch(level, Narrow { from, to: to.cast::<F16>(), len }),
            Dtype::Bf16 => dispatch(level, Narrow { from, to: to.cast::<Bf16>(), len }),
            Dtype::I8 => {
                let scale = stripe.add(geometry.scales_offset()).cast::<f32>().add(token);
                dispatch(level, Quantise { from, to, scale, len });
            }
        }
    }
}

/// Checks that the arguments of an attention operation fit together: shapes, spans and block tables.
pub(super) fn check(rows: usize, q_cols: usize, args: &AttentionArgs<'_>, geometry: &KvGeometry) -> Result<()> {
    let (heads, kv_heads) = (args.heads, geometry.kv_heads as usize);
    if kv_heads == 0 || heads % kv_heads != 0 || q_cols != heads * geometry.head_dim as usize {
        bail!(Internal, "{heads} heads of {q_cols} columns over {kv_heads} KV heads of {}", geometry.head_dim);
    }
    if args.layer >= geometry.layers as usize {
        bail!(Internal, "layer {} of {}", args.layer, geometry.layers);
    }
    let mut row = 0;
    for span in &args.batch.spans {
        let table_end = span.table as usize + span.table_len as usize;
        let covered = span.table_len as u64 * geometry.block_tokens as u64;
        if span.row as usize != row || table_end > args.batch.tables.len() {
            bail!(Internal, "span at row {} of {row}, table to {table_end}", span.row);
        }
        if covered < span.position as u64 + span.rows as u64 {
            bail!(Internal, "block table of {covered} tokens for {} + {}", span.position, span.rows);
        }
        row += span.rows as usize;
    }
    if row != rows {
        bail!(Internal, "{rows} rows, spans of {row}");
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub(super) fn rope_store(
    pool: &mut Pool,
    level: Level,
    q: &mut CpuBuffer,
    k: &mut CpuBuffer,
    v: &CpuBuffer,
    norms: Option<(&CpuVector, &CpuVector, f32)>,
    rope: &RopeRows,
    args: &AttentionArgs<'_>,
    kv: &KvSlab,
) -> Result<()> {
    let geometry = *kv.geometry();
    let (heads, kv_heads, dim) = (args.heads, geometry.kv_heads as usize, geometry.head_dim as usize);
    let (rows, half) = (q.rows(), dim / 2);
    check(rows, q.cols(), args, &geometry)?;
    for x in [&*k, v] {
        if (x.rows(), x.cols()) != (rows, kv_heads * dim) {
            bail!(Internal, "k or v of {} x {} for {kv_heads} heads of {dim}", x.rows(), x.cols());
        }
    }
    if rope.cos.len() != rows * half || rope.sin.len() != rows * half {
        bail!(Internal, "rotation of {} angles for {rows} rows of {half}", rope.cos.len());
    }
    if norms.is_some_and(|(q, k, _)| q.values.len() != dim || k.values.len() != dim) {
        bail!(Internal, "head norms do not have {dim} elements");
    }
    let (q, k) = (q.as_mut_slice().as_mut_ptr() as usize, k.as_mut_slice().as_mut_ptr() as usize);
    let block_tokens = geometry.block_tokens as usize;
    let work = |span: &SeqSpan, row: usize| {
        let (cos, sin) = (rope.cos[row * half..].as_ptr(), rope.sin[row * half..].as_ptr());
        let position = span.position as usize + row - span.row as usize;
        let block = args.batch.tables[span.table as usize + position / block_tokens];
        let token = position % block_tokens;
        // SAFETY: the level is available. Only this call accesses row `row` of q and k and the row's slot in the slab.
        // All shapes were checked above, and the slab checks block, layer and head.
        unsafe {
            let turn = |base: usize, count: usize, norm: Option<&CpuVector>, eps: f32| {
                for head in 0..count {
                    let x = (base as *mut f32).add((row * count + head) * dim);
                    if let Some(norm) = norm {
                        dispatch(level, Norm { x, weight: norm.values.as_ptr(), out: x, len: dim, eps });
                    }
                    dispatch(level, Rotate { x, cos, sin, half });
                }
            };
            turn(q, heads, norms.map(|norms| norms.0), norms.map_or(0.0, |norms| norms.2));
            turn(k, kv_heads, norms.map(|norms| norms.1), norms.map_or(0.0, |norms| norms.2));
            for head in 0..kv_heads {
                let from = (row * kv_heads + head) * dim;
                let stripe = |value| kv.head(block, args.layer, value, head);
                store(level, &geometry, (k as *const f32).add(from), stripe(false), token);
                store(level, &geometry, v.as_slice().as_ptr().add(from), stripe(true), token);
            }
        }
    };
    pool.chunks(rows, 4, |_, range| {
        let spans = &args.batch.spans;
        let mut at = spans.partition_point(|span| (span.row + span.rows) as usize <= range.start);
        for row in range {
            while (spans[at].row + spans[at].rows) as usize <= row {
                at += 1;
            }
            work(&spans[at], row);
        }
    });
    Ok(())
}
