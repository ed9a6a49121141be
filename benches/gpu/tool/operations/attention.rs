//! Checks of KV and attention: the content of blocks after K and V are stored, and the output of attention over them.

use super::{Check, DTYPES, KV_DTYPES, host_buffer, host_vector, rounding};
use cleave::backend::cpu::{CpuBuffer, KvSlab};
use cleave::backend::cuda::{CudaBackend, CudaBuffer, CudaSlab, CudaVector};
use cleave::backend::{AttentionArgs, Backend, Batch, BlockStore, KvGeometry, RopeRows, SeqSpan};
use cleave::error::Result;
use cleave::tensor::Dtype;

const LAYERS: u32 = 2;
const LAYER: usize = 1;
const EPS: f32 = 1e-6;

/// Attention of a model, and the lengths of its sequences.
#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    kv: Dtype,
    head_dim: u32,
    heads: u32,
    kv_heads: u32,
    block_tokens: u32,
    window: Option<u32>,
    norms: bool,
    /// For each sequence: tokens in the context, and tokens of the step under test.
    sequences: Vec<(usize, usize)>,
}

const HEAD_SIZES: [u32; 7] = [16, 32, 64, 80, 96, 128, 256];

/// Decode: one new token after contexts of many lengths.
pub fn decode(check: &mut Check) -> Result<()> {
    let lengths = check.pick(vec![0, 260], vec![0, 1, 15, 16, 255, 256, 257, 700, 2049]);
    each(check, &lengths.iter().map(|&n| (n, 1)).collect::<Vec<_>>())
}

/// Prefill: chunks at the beginning and in the middle of prompts, and a single token between them.
pub fn prefill(check: &mut Check) -> Result<()> {
    let sequences = check.pick(
        vec![(0, 17), (30, 1), (17, 20)],
        vec![(0, 2), (0, 300), (40, 1), (17, 129), (500, 64), (1000, 257), (255, 2)],
    );
    each(check, &sequences)
}

fn each(check: &mut Check, sequences: &[(usize, usize)]) -> Result<()> {
    let ratios = check
        .pick([(2, 2), (4, 1), (4, 2), (3, 1), (6, 3), (17, 1)], [(4, 4), (8, 2), (6, 3), (5, 1), (32, 1), (40, 1)]);
    let windows = [None, Some(3), Some(64), Some(300)];
    let blocks = [16, 5, 1, 64];
    let mut n = 0;
    for dtype in DTYPES {
        for kv in KV_DTYPES {
            for head_dim in HEAD_SIZES {
                // All combinations would be too many. Each value meets each kernel.
                let every = check.pick(1, 2);
                for _ in 0..every {
                    let (heads, kv_heads) = ratios[n % ratios.len()];
                    let case = Case {
                        dtype,
                        kv,
                        head_dim,
                        heads,
                        kv_heads,
                        block_tokens: blocks[(n / 2) % blocks.len()],
                        window: windows[(n + n / 4) % windows.len()],
                        norms: n % 3 == 0,
                        sequences: sequences.to_vec(),
                    };
                    n += 1;
                    run(check, &case)?;
                }
            }
        }
    }
    Ok(())
}

/// Computes the contexts, in chunks on both sides, then the step under test.
fn run(check: &mut Check, case: &Case) -> Result<()> {
    let Case { dtype, kv, head_dim, kv_heads, block_tokens, .. } = *case;
    let mut geometry = KvGeometry { layers: LAYERS, kv_heads, head_dim, block_tokens, dtype: kv, shards: 1 };
    if CudaBackend::check(&geometry).is_err() {
        geometry.block_tokens = 16; // the device does not support such blocks
    }
    let tables: Vec<usize> =
        case.sequences.iter().map(|(old, new)| (old + new).div_ceil(geometry.block_tokens as usize)).collect();
    let n_blocks = tables.iter().sum::<usize>() + 2;
    // Blocks are scattered.
    let mut free: Vec<u32> = (0..n_blocks as u32).collect();
    let tables: Vec<Vec<u32>> =
        tables.iter().map(|n| (0..*n).map(|_| free.swap_remove(check.random.below(free.len()))).collect()).collect();

    let on_device = CudaSlab::new(&check.device, geometry, n_blocks)?;
    let on_cpu = KvSlab::new(geometry, n_blocks)?;
    // Memory that was never written holds NaN, which must not reach any result.
    let garbage = vec![0xff; geometry.block_bytes()];
    for id in 0..n_blocks as u32 {
        on_device.write(id, 0, &garbage)?;
        on_cpu.write(id, 0, &garbage)?;
    }
    let mut cuda =
        CudaBackend::new(&check.device, dtype, case.heads, [case.window, None, Some(7)].into_iter(), &on_device)?;
    let norm: Vec<f32> = (0..head_dim).map(|i| 0.5 + i as f32 / head_dim as f32).collect();

    let old: Vec<(usize, usize)> = case.sequences.iter().map(|(old, _)| (0, *old)).collect();
    for (spans, last) in [(old, false), (case.sequences.clone(), true)] {
        let parts: Vec<(usize, usize, &[u32])> =
            spans.iter().zip(&tables).map(|((at, n), table)| (*at, *n, &table[..])).filter(|part| part.1 > 0).collect();
        if parts.is_empty() {
            continue;
        }
        let step = Step::new(check, case, &parts);
        step.run(check, case, &mut cuda, &on_device, &on_cpu, &norm, last)?;
    }
    compare_blocks(check, case, &geometry, &tables, &on_device, &on_cpu)?;
    Ok(())
}

/// Inputs of one step.
struct Step {
    batch: Batch,
    rope: RopeRows,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Step {
    fn new(check: &mut Check, case: &Case, parts: &[(usize, usize, &[u32])]) -> Step {
        let mut batch = Batch::default();
        for (at, n, table) in parts {
            batch.spans.push(SeqSpan {
                row: batch.tokens.len() as u32,
                rows: *n as u32,
                position: *at as u32,
                table: batch.tables.len() as u32,
                table_len: table.len() as u32,
            });
            batch.tables.extend(*table);
            batch.tokens.extend((0..*n).map(|_| 0));
            batch.positions.extend((*at..at + n).map(|position| position as u32));
        }
        let (rows, dim) = (batch.tokens.len(), case.head_dim as usize);
        let angles = check.random.values(rows * dim / 2, Dtype::F32);
        let turned = |f: fn(f32) -> f32| angles.iter().map(|angle| f(3.0 * angle)).collect();
        let cols = |heads: u32| rows * heads as usize * dim;
        Step {
            batch,
            rope: RopeRows { cos: turned(f32::cos), sin: turned(f32::sin) },
            q: check.random.values(cols(case.heads), case.dtype),
            k: check.random.values(cols(case.kv_heads), case.dtype),
            v: check.random.values(cols(case.kv_heads), case.dtype),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        check: &mut Check,
        case: &Case,
        cuda: &mut CudaBackend,
        on_device: &CudaSlab,
        on_cpu: &KvSlab,
        norm: &[f32],
        compare: bool,
    ) -> Result<()> {
        let Step { batch, rope, q, k, v } = self;
        let (rows, dim) = (batch.tokens.len(), case.head_dim as usize);
        let (cols, kv_cols) = (case.heads as usize * dim, case.kv_heads as usize * dim);
        let scale = 1.0 / (dim as f32).sqrt();
        let args = AttentionArgs { layer: LAYER, heads: case.heads as usize, scale, window: case.window, batch };

        let mut loader = check.loader()?;
        let weight = CudaVector::new(&mut loader, norm)?;
        loader.finish()?;
        let norms = case.norms.then_some((&weight, &weight, EPS));
        let (mut q_there, mut k_there) = (cuda.upload(q, rows, cols, false)?, cuda.upload(k, rows, kv_cols, false)?);
        let (v_there, mut out) = (cuda.upload(v, rows, kv_cols, false)?, CudaBuffer::default());
        cuda.step(batch, rope, on_device, |cuda| {
            cuda.rope_store(&mut q_there, &mut k_there, &v_there, norms, rope, &args, on_device)?;
            if compare { cuda.attention(&q_there, &args, on_device, &mut out) } else { Ok(()) }
        })?;
        cuda.wait()?;

        let weight = host_vector(norm)?;
        let norms = case.norms.then_some((&weight, &weight, EPS));
        let (mut q, mut k) = (host_buffer(q, rows, cols)?, host_buffer(k, rows, kv_cols)?);
        let v = host_buffer(v, rows, kv_cols)?;
        check.cpu.rope_store(&mut q, &mut k, &v, norms, rope, &args, on_cpu)?;
        if !compare {
            return Ok(());
        }
        let mut expected = CpuBuffer::default();
        check.cpu.attention(&q, &args, on_cpu, &mut expected)?;
        // Results are averages of values below 1. Their weights carry the rounding of q and of the weights; norms make
        // q, k and the scores larger.
        let large = if case.norms { 4.0 } else { 2.0 };
        let tolerance = large * rounding(case.dtype) + rounding(case.kv) + 4e-6;
        check.same(&cuda.fetch(&out)?, expected.as_slice(), 0.0, tolerance, &format!("attention of {case:?}"));
        Ok(())
    }
}

/// Compares stored K and V as floats, and checks that nothing else was written.
fn compare_blocks(
    check: &mut Check,
    case: &Case,
    geometry: &KvGeometry,
    tables: &[Vec<u32>],
    on_device: &CudaSlab,
    on_cpu: &KvSlab,
) -> Result<()> {
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    let mut strays = 0;
    for (table, (old, new)) in tables.iter().zip(&case.sequences) {
        for (i, id) in table.iter().enumerate() {
            let tokens = geometry.block_tokens as usize;
            let valid = (old + new - i * tokens).min(tokens);
            let (mut a, mut b) = (vec![0; geometry.block_bytes()], vec![0; geometry.block_bytes()]);
            on_device.read(*id, 0, &mut a)?;
            on_cpu.read(*id, 0, &mut b)?;
            strays += stray(geometry, valid, &a);
            for (block, out) in [(&a, &mut found), (&b, &mut expected)] {
                for value in [false, true] {
                    for head in 0..geometry.kv_heads as usize {
                        let stripe = &block[geometry.stripe_offset(LAYER, value, head)..][..geometry.stripe_bytes()];
                        (0..valid).for_each(|token| stored(geometry, stripe, token, out));
                    }
                }
            }
        }
    }
    // A value between two representable ones may be rounded either way; norms and rotation enlarge 1 to at most 3.
    let unit = 2.0 * rounding(geometry.dtype) * if geometry.dtype == Dtype::I8 { 1.3 } else { 1.0 };
    let norms = if case.norms && geometry.dtype == Dtype::I8 { 3.0 } else { 1.0 };
    let (relative, absolute) = if geometry.dtype == Dtype::I8 { (0.0, unit * norms) } else { (unit, 3e-6) };
    check.same(&found, &expected, relative + 1e-6, absolute, &format!("K and V stored by {case:?}"));
    if strays > 0 {
        check.failures.push(format!("{case:?} wrote {strays} bytes that are nobody's"));
    }
    Ok(())
}

/// Counts changed bytes of the other layer and of tokens beyond the end of the sequences.
fn stray(geometry: &KvGeometry, valid: usize, block: &[u8]) -> usize {
    let mut wrong = 0;
    for layer in 0..LAYERS as usize {
        let valid = if layer == LAYER { valid } else { 0 };
        for value in [false, true] {
            for head in 0..geometry.kv_heads as usize {
                let stripe = &block[geometry.stripe_offset(layer, value, head)..][..geometry.stripe_bytes()];
                let (rows, scales) = (geometry.row_bytes(), geometry.scales_offset());
                let end = rows * geometry.block_tokens as usize;
                let unused = stripe[valid * rows..end].iter().chain(&stripe[scales + valid * geometry.scale_bytes()..]);
                wrong += unused.filter(|byte| **byte != 0xff).count();
            }
        }
    }
    wrong
}

fn stored(geometry: &KvGeometry, stripe: &[u8], token: usize, out: &mut Vec<f32>) {
    let row = &stripe[token * geometry.row_bytes()..][..geometry.row_bytes()];
    let pairs = row.chunks_exact(2).map(|b| [b[0], b[1]]);
    match geometry.dtype {
        Dtype::F32 => out.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        Dtype::F16 => out.extend(pairs.map(|b| half::f16::from_le_bytes(b).to_f32())),
        Dtype::Bf16 => out.extend(pairs.map(|b| half::bf16::from_le_bytes(b).to_f32())),
        Dtype::I8 => {
            let at = geometry.scales_offset() + token * geometry.scale_bytes();
            let scale = f32::from_le_bytes([stripe[at], stripe[at + 1], stripe[at + 2], stripe[at + 3]]);
            out.extend(row.iter().map(|byte| f32::from(*byte as i8) * scale));
        }
    }
}
