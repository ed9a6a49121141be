use super::super::{CpuBackend, CpuBuffer, CpuMatrix, Level};
use super::{DTYPES, Random, backend, bits, buffer, levels, matrix, rounded, vector};
use crate::backend::weights::{Bytes, MatrixSource, Shard, TensorSource};
use crate::backend::{Backend, Linear};
use crate::tensor::Dtype;
use std::sync::Arc;

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (3, 5, 7),
    (17, 33, 31),
    (2, 64, 32),
    (70, 100, 129),
    (33, 31, 512),
    (16, 130, 64),
    (5, 16, 1100),
    (1, 300, 96),
];

/// Reference product in f64, with weights rounded to `dtype` and inputs rounded as the kernels do.
fn oracle(x: &[f32], m: usize, w: &[f32], n: usize, k: usize, dtype: Dtype, bias: &[f32]) -> Vec<f64> {
    let input = if dtype == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
    let mut out = Vec::new();
    for row in 0..m {
        for col in 0..n {
            let product = |i: usize| {
                let (x, w) = (rounded(x[row * k + i], input), rounded(w[col * k + i], dtype));
                x as f64 * w as f64
            };
            out.push((0..k).map(product).sum::<f64>() + bias.get(col).copied().unwrap_or(0.0) as f64);
        }
    }
    out
}

#[test]
fn products_match_plain_arithmetic() {
    for level in levels() {
        let mut cpu = backend(level, 2);
        for dtype in DTYPES {
            for (m, n, k) in SHAPES {
                let mut random = Random::new((m * n * k) as u64);
                let (x, w) = (random.floats(m * k), random.floats(n * k));
                let (bias, before) = (random.floats(n), random.floats(m * n));
                let input = buffer(&x, m, k);
                let weight = || matrix(&w, n, k, dtype);
                let both = vec![
                    Linear { weight: weight(), bias: None },
                    Linear { weight: weight(), bias: Some(vector(&bias)) },
                ];
                let (mut a, mut b) = (CpuBuffer::default(), CpuBuffer::default());
                cpu.project(&input, &both, &mut [&mut a, &mut b]).unwrap();
                let mut sum = buffer(&before, m, n);
                cpu.linear_add(&input, &both[1], &mut sum).unwrap();
                let (want_a, want_b) = (oracle(&x, m, &w, n, k, dtype, &[]), oracle(&x, m, &w, n, k, dtype, &bias));
                for i in 0..m * n {
                    let place = format!("{} {dtype} {m}x{n}x{k} at {i}", level.name());
                    let close = |got: f32, want: f64| {
                        let error = (got as f64 - want).abs();
                        assert!(error < 2e-6 * (k as f64).sqrt() * 4.0 + 1e-6, "{place}: {got} for {want}");
                    };
                    close(a.as_slice()[i], want_a[i]);
                    close(b.as_slice()[i], want_b[i]);
                    close(sum.as_slice()[i], want_b[i] + before[i] as f64);
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_notice_its_batch() {
    for level in levels() {
        for dtype in DTYPES {
            for (n, k) in [(70, 100), (33, 1061), (96, 64)] {
                let mut random = Random::new(7 + n as u64);
                let m = 83;
                let x = random.floats(m * k);
                let linear = Linear { weight: matrix(&random.floats(n * k), n, k, dtype), bias: None };
                let mut whole = CpuBuffer::default();
                let input = buffer(&x, m, k);
                backend(level, 1).product(&input, &linear, &mut whole).unwrap();
                for threads in [2, 3] {
                    let mut cpu = backend(level, threads);
                    let mut row = 0;
                    while row < m {
                        let rows = [1, 1 + random.below(8), 1 + random.below(40)][random.below(3)].min(m - row);
                        let input = buffer(&x[row * k..(row + rows) * k], rows, k);
                        let mut part = CpuBuffer::default();
                        cpu.product(&input, &linear, &mut part).unwrap();
                        let want = &whole.as_slice()[row * n..(row + rows) * n];
                        assert_eq!(bits(part.as_slice()), bits(want), "{} {dtype} {rows} rows at {row}", level.name());
                        row += rows;
                    }
                }
            }
        }
    }
}

#[test]
fn empty_and_misaligned() {
    let mut bytes = vec![0u8; 3 + 4 * 6];
    let at = if (bytes.as_ptr() as usize + 3).is_multiple_of(4) { 2 } else { 3 };
    bytes[at..].chunks_exact_mut(4).enumerate().for_each(|(i, b)| b.copy_from_slice(&(i as f32).to_ne_bytes()));
    let owner: Bytes = Arc::new(bytes);
    let apart = CpuMatrix::new(owner.clone(), at, 2, 3, Dtype::F32).unwrap();
    assert!(!(*owner).as_ref().as_ptr_range().contains(&apart.bytes().as_ptr()), "a copy");
    assert!(CpuMatrix::new(owner.clone(), 4, 2, 3, Dtype::F32).is_err());
    assert!(CpuMatrix::new(owner, usize::MAX, usize::MAX, 2, Dtype::F32).is_err());
    let linear = Linear { weight: apart, bias: None };
    for level in levels() {
        let mut cpu = backend(level, 2);
        let mut out = CpuBuffer::default();
        let x = buffer(&[1.0, 10.0, 100.0], 1, 3);
        cpu.product(&x, &linear, &mut out).unwrap();
        assert_eq!(out.as_slice(), [210.0, 543.0]);
        let none = buffer(&[], 0, 3);
        cpu.product(&none, &linear, &mut out).unwrap();
        assert_eq!((out.rows(), out.cols()), (0, 2));
        for dtype in DTYPES {
            // Without inputs all sums are zero. Without outputs nothing is written.
            let no_inputs = Linear { weight: matrix(&[], 2, 0, dtype), bias: None };
            cpu.product(&buffer(&[], 3, 0), &no_inputs, &mut out).unwrap();
            assert_eq!(out.as_slice(), [0.0; 6]);
            let no_outputs = Linear { weight: matrix(&[], 0, 3, dtype), bias: None };
            cpu.product(&x, &no_outputs, &mut out).unwrap();
            assert_eq!((out.rows(), out.cols()), (1, 0));
        }
        assert!(cpu.product(&buffer(&[1.0], 1, 1), &linear, &mut out).is_err());
    }
}

/// With the inputs divided between two devices, the sum of their partial products equals the product on one device.
#[test]
fn partial_products_of_column_shards_add_up() {
    let (m, n, k) = (5, 33, 96);
    let mut random = Random::new(3);
    let (x, before, weight) = (random.floats(m * k), random.floats(m * n), random.floats(n * k));
    let owner: Bytes = Arc::new(weight.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    let part = |shard: Shard| {
        let storage = TensorSource {
            file: "",
            name: "",
            owner: owner.clone(),
            offset: 0,
            len: 4 * n * k,
            dtype: Dtype::F32,
            rows: n,
            cols: k,
        };
        let weight = CpuMatrix::load(&MatrixSource { shard, ..MatrixSource::plain(storage) }).unwrap();
        Linear::<CpuBackend> { weight, bias: None }
    };
    let columns = |range: std::ops::Range<usize>| -> Vec<f32> {
        x.chunks_exact(k).flat_map(|row| row[range.clone()].to_vec()).collect()
    };
    let mut cpu = backend(Level::Portable, 1);
    let mut sum = buffer(&before, m, n);
    for range in [0..40, 40..k] {
        let input = buffer(&columns(range.clone()), m, range.len());
        let mut partial = CpuBuffer::default();
        cpu.product(&input, &part(Shard::Columns(range)), &mut partial).unwrap();
        cpu.add(&partial, &mut sum).unwrap();
    }
    let mut whole = buffer(&before, m, n);
    let mut scratch = CpuBuffer::default();
    let input = buffer(&x, m, k);
    cpu.reduce_add(&input, &part(Shard::Whole), &mut scratch, &mut whole).unwrap();
    assert_eq!(scratch.rows(), 0, "one device adds in one operation");
    for (a, b) in sum.as_slice().iter().zip(whole.as_slice()) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
    assert!(cpu.add(&scratch, &mut whole).is_err());
}
