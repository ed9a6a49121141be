use super::super::{CpuBackend, CpuBuffer, KvSlab, Level};
use super::{KV_DTYPES, Random, backend, bits, buffer, levels, rounded, vector};
use crate::backend::{AttentionArgs, Backend, Batch, BlockStore, KvGeometry, RopeRows, SeqSpan};
use crate::tensor::Dtype;

struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<u32>,
    norms: bool,
}

/// Sequences of q, k and v with their rotation angles, and the other inputs of a step.
struct Sequence {
    len: usize,
    table: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    angles: Vec<f32>,
}

const LAYER: usize = 1;

impl Shape {
    fn sequence(&self, random: &mut Random, len: usize, free: &mut Vec<u32>) -> Sequence {
        let take = len.div_ceil(16);
        let table = (0..take).map(|_| free.swap_remove(random.below(free.len()))).collect();
        let (q, k) = (random.floats(len * self.heads * self.dim), random.floats(len * self.kv_heads * self.dim));
        let v = random.floats(len * self.kv_heads * self.dim);
        let mut angles = random.floats(len * (self.dim / 2));
        angles.iter_mut().for_each(|angle| *angle *= 3.0);
        Sequence { len, table, q, k, v, angles }
    }

    /// Runs rows `start..end` of each sequence as one step.
    fn step(&self, cpu: &mut CpuBackend, kv: &KvSlab, parts: &[(&Sequence, usize, usize)]) -> Vec<f32> {
        let mut batch = Batch::default();
        let (mut q, mut k, mut v, mut angles) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut rows = 0;
        for &(sequence, start, end) in parts {
            batch.spans.push(SeqSpan {
                row: rows as u32,
                rows: (end - start) as u32,
                position: start as u32,
                table: batch.tables.len() as u32,
                table_len: sequence.table.len() as u32,
            });
            batch.tables.extend(&sequence.table);
            let cut = |from: &[f32], cols: usize, to: &mut Vec<f32>| to.extend(&from[start * cols..end * cols]);
            cut(&sequence.q, self.heads * self.dim, &mut q);
            cut(&sequence.k, self.kv_heads * self.dim, &mut k);
            cut(&sequence.v, self.kv_heads * self.dim, &mut v);
            cut(&sequence.angles, self.dim / 2, &mut angles);
            rows += end - start;
        }
        let mut q = buffer(&q, rows, self.heads * self.dim);
        let mut k = buffer(&k, rows, self.kv_heads * self.dim);
        let v = buffer(&v, rows, self.kv_heads * self.dim);
        let rope =
            RopeRows { cos: angles.iter().map(|a| a.cos()).collect(), sin: angles.iter().map(|a| a.sin()).collect() };
        let args = AttentionArgs { layer: LAYER, heads: self.heads, scale: 0.4, window: self.window, batch: &batch };
        let norm = vector(&self.norm());
        let norms = self.norms.then_some((&norm, &norm, 1e-6));
        let mut out = CpuBuffer::default();
        cpu.rope_store(&mut q, &mut k, &v, norms, &rope, &args, kv).unwrap();
        cpu.attention(&q, &args, kv, &mut out).unwrap();
        out.as_slice().to_vec()
    }

    fn norm(&self) -> Vec<f32> {
        (0..self.dim).map(|i| 0.5 + i as f32 / self.dim as f32).collect()
    }

    fn slab(&self, blocks: usize, dtype: Dtype) -> KvSlab {
        let (kv_heads, head_dim) = (self.kv_heads as u32, self.dim as u32);
        self.slab_of(blocks, KvGeometry { layers: 3, kv_heads, head_dim, block_tokens: 16, dtype, shards: 1 })
    }

    fn slab_of(&self, blocks: usize, geometry: KvGeometry) -> KvSlab {
        let kv = KvSlab::new(geometry, blocks).unwrap();
        // All bits set is a NaN in every float dtype, and in the scale of an int8 row.
        let garbage = vec![0xffu8; kv.geometry().block_bytes()];
        (0..blocks as u32).for_each(|id| kv.write(id, 0, &garbage).unwrap());
        kv
    }

    fn turned(&self, sequence: &Sequence, from: &[f32], heads: usize, token: usize, head: usize) -> Vec<f64> {
        let (dim, half) = (self.dim, self.dim / 2);
        let mut x: Vec<f64> = from[(token * heads + head) * dim..][..dim].iter().map(|&x| x as f64).collect();
        if self.norms {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            let norm = self.norm();
            x = x.iter().zip(&norm).map(|(x, &w)| x / (mean + 1e-6).sqrt() * w as f64).collect();
        }
        let mut out = x.clone();
        for i in 0..half {
            let angle = sequence.angles[token * half + i];
            let (cos, sin) = (angle.cos() as f64, angle.sin() as f64);
            out[i] = x[i] * cos - x[half + i] * sin;
            out[half + i] = x[half + i] * cos + x[i] * sin;
        }
        out
    }

    /// Attention of one row in f64, with K and V rounded as they are stored.
    fn oracle(&self, sequence: &Sequence, token: usize, head: usize, dtype: Dtype) -> Vec<f64> {
        let kv_head = head / (self.heads / self.kv_heads);
        let q = self.turned(sequence, &sequence.q, self.heads, token, head);
        let first = self.window.map_or(0, |window| (token + 1).saturating_sub(window as usize));
        let mut out = vec![0.0; self.dim];
        let mut total = 0.0;
        for seen in first..=token {
            let k = self.turned(sequence, &sequence.k, self.kv_heads, seen, kv_head);
            let score: f64 = q.iter().zip(stored(&k, dtype)).map(|(q, k)| q * k).sum();
            let weight = (score * 0.4).exp();
            total += weight;
            let v = &sequence.v[(seen * self.kv_heads + kv_head) * self.dim..][..self.dim];
            let v: Vec<f64> = v.iter().map(|&v| v as f64).collect();
            out.iter_mut().zip(stored(&v, dtype)).for_each(|(out, v)| *out += weight * v);
        }
        out.iter_mut().for_each(|out| *out /= total);
        out
    }
}

/// Values of a row after rounding to the stored dtype.
fn stored(row: &[f64], dtype: Dtype) -> Vec<f64> {
    if dtype != Dtype::I8 {
        return row.iter().map(|&x| rounded(x as f32, dtype) as f64).collect();
    }
    let scale = row.iter().fold(0.0f64, |most, x| most.max(x.abs())) / 127.0;
    row.iter().map(|x| (x / scale).round() * scale).collect()
}

const SHAPES: [Shape; 5] = [
    Shape { heads: 4, kv_heads: 2, dim: 16, window: None, norms: false },
    Shape { heads: 3, kv_heads: 1, dim: 10, window: Some(37), norms: true },
    Shape { heads: 2, kv_heads: 2, dim: 64, window: None, norms: true },
    Shape { heads: 8, kv_heads: 1, dim: 80, window: Some(3), norms: false },
    Shape { heads: 20, kv_heads: 1, dim: 128, window: Some(100), norms: false },
];

#[test]
fn attention_matches_plain_arithmetic() {
    for level in levels() {
        for shape in &SHAPES {
            for dtype in KV_DTYPES {
                let mut random = Random::new(5);
                let kv = shape.slab(40, dtype);
                let sequence = shape.sequence(&mut random, 150, &mut (0..40).collect());
                let out = shape.step(&mut backend(level, 2), &kv, &[(&sequence, 0, 150)]);
                // bf16 and int8 KV may be multiplied as bf16, with queries and weights rounded too. For int8, a value
                // near the middle between two steps may also be rounded the other way in f64.
                let bound = if matches!(dtype, Dtype::Bf16 | Dtype::I8) { 2e-2 } else { 2e-3 };
                for token in [0, 1, 2, 15, 16, 63, 64, 65, 127, 128, 149] {
                    for head in 0..shape.heads {
                        let got = &out[(token * shape.heads + head) * shape.dim..][..shape.dim];
                        for (got, want) in got.iter().zip(shape.oracle(&sequence, token, head, dtype)) {
                            let place = format!("{} {dtype} dim {} token {token}", level.name(), shape.dim);
                            assert!((*got as f64 - want).abs() < bound, "{place}: {got} for {want}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn chunks_batches_and_threads_change_no_bit() {
    for level in levels() {
        for shape in &SHAPES {
            for dtype in KV_DTYPES {
                let mut random = Random::new(11);
                let kv = shape.slab(60, dtype);
                let free = &mut (0..60).collect();
                let sequences: Vec<_> = [130, 71, 5].map(|len| shape.sequence(&mut random, len, free)).into();
                let cols = shape.heads * shape.dim;
                let one = &mut backend(level, 1);
                let alone: Vec<_> = sequences.iter().map(|s| shape.step(one, &kv, &[(s, 0, s.len)])).collect();
                for threads in [2, 3] {
                    let mut cpu = backend(level, threads);
                    let kv = shape.slab(60, dtype);
                    let mut done = vec![0; sequences.len()];
                    while done.iter().zip(&sequences).any(|(&done, sequence)| done < sequence.len) {
                        let mut parts = Vec::new();
                        for (index, sequence) in sequences.iter().enumerate() {
                            let most = [1, 3, 20, 70][random.below(4)];
                            let end = (done[index] + random.below(most + 1)).min(sequence.len);
                            if end > done[index] {
                                parts.push((index, done[index], end));
                                done[index] = end;
                            }
                        }
                        let step: Vec<_> = parts.iter().map(|&(i, start, end)| (&sequences[i], start, end)).collect();
                        let out = shape.step(&mut cpu, &kv, &step);
                        let mut row = 0;
                        for (index, start, end) in parts {
                            let want = &alone[index][start * cols..end * cols];
                            let got = &out[row * cols..][..want.len()];
                            let place = format!("{} {dtype} {start}..{end} dim {}", level.name(), shape.dim);
                            assert_eq!(bits(got), bits(want), "{place}");
                            row += end - start;
                        }
                    }
                }
            }
        }
    }
}

/// Results are bit-identical for every block size and every number of shards.
#[test]
fn layouts_change_no_bit() {
    for level in levels() {
        for (shape, shards) in SHAPES.iter().zip([2, 1, 2, 1, 1]) {
            for dtype in KV_DTYPES {
                let mut random = Random::new(17);
                let sequence = shape.sequence(&mut random, 150, &mut (0..40).collect());
                let cpu = &mut backend(level, 2);
                let plain = shape.slab(40, dtype);
                let want = shape.step(cpu, &plain, &[(&sequence, 0, 150)]);
                for block_tokens in [16, 19, 64] {
                    let kv = shape.slab_of(40, KvGeometry { block_tokens, shards, ..*plain.geometry() });
                    let mut got = shape.step(cpu, &kv, &[(&sequence, 0, 90)]);
                    got.extend(shape.step(cpu, &kv, &[(&sequence, 90, 150)]));
                    let place = format!("{} {dtype} {block_tokens} tokens, {shards} shards", level.name());
                    assert_eq!(bits(&got), bits(&want), "{place}");
                }
            }
        }
    }
}

#[test]
fn wrong_tables_are_errors() {
    let shape = &SHAPES[0];
    let kv = shape.slab(4, Dtype::F32);
    let mut cpu = backend(Level::Portable, 1);
    let q = buffer(&vec![0.0; 64 * 20], 20, 64);
    let span = SeqSpan { row: 0, rows: 20, position: 0, table: 0, table_len: 1 };
    let batch = Batch { spans: vec![span], tables: vec![0, 1], ..Batch::default() };
    let args = |layer, heads| AttentionArgs { layer, heads, scale: 1.0, window: None, batch: &batch };
    let mut out = CpuBuffer::default();
    assert!(cpu.attention(&q, &args(0, 4), &kv, &mut out).is_err());
    assert!(cpu.attention(&q, &args(3, 4), &kv, &mut out).is_err());
    assert!(cpu.attention(&q, &args(0, 3), &kv, &mut out).is_err());
}
