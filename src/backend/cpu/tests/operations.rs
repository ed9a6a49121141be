use super::super::CpuBuffer;
use super::{DTYPES, Random, backend, bits, buffer, levels, matrix, rounded, vector};
use crate::backend::Backend;

#[test]
fn norm_of_all_or_some_rows() {
    for level in levels() {
        for (rows, cols) in [(1, 1), (5, 19), (40, 257), (3, 2048)] {
            let mut random = Random::new(rows as u64);
            let (x, weight) = (random.floats(rows * cols), random.floats(cols));
            let input = buffer(&x, rows, cols);
            let mut out = CpuBuffer::default();
            let mut cpu = backend(level, 2);
            let vector = vector(&weight);
            cpu.rms_norm(&input, None, &vector, 1e-5, &mut out).unwrap();
            for row in 0..rows {
                let x = &x[row * cols..][..cols];
                let mean = x.iter().map(|&x| x as f64 * x as f64).sum::<f64>() / cols as f64;
                for (col, &got) in out.row(row).iter().enumerate() {
                    let want = x[col] as f64 / (mean + 1e-5).sqrt() * weight[col] as f64;
                    assert!((got as f64 - want).abs() < 1e-5, "{} {got} for {want}", level.name());
                }
            }
            let last = [rows as u32 - 1];
            let mut one = CpuBuffer::default();
            cpu.rms_norm(&input, Some(&last), &vector, 1e-5, &mut one).unwrap();
            assert_eq!(bits(one.as_slice()), bits(out.row(rows - 1)));
            assert!(cpu.rms_norm(&input, Some(&[rows as u32]), &vector, 1e-5, &mut one).is_err());
        }
    }
}

#[test]
fn embedding_rows() {
    for level in levels() {
        for dtype in DTYPES {
            let mut random = Random::new(3);
            let table = random.floats(11 * 21);
            let matrix = matrix(&table, 11, 21, dtype);
            let tokens: Vec<u32> = (0..50).map(|_| random.below(11) as u32).collect();
            let mut out = CpuBuffer::default();
            let mut cpu = backend(level, 2);
            cpu.embed(&matrix, &tokens, &mut out).unwrap();
            for (row, &token) in tokens.iter().enumerate() {
                let want: Vec<f32> = table[token as usize * 21..][..21].iter().map(|&v| rounded(v, dtype)).collect();
                assert_eq!(bits(out.row(row)), bits(&want));
            }
            assert!(cpu.embed(&matrix, &[11], &mut out).is_err());
        }
    }
}

#[test]
fn gated_activation() {
    for level in levels() {
        let mut gate: Vec<f32> = (-400..400).map(|i| i as f32 * 0.31).collect();
        gate.extend([-1e30, 1e30, 0.0, -0.0, 89.0, -89.0, f32::MIN_POSITIVE]);
        let up: Vec<f32> = (0..gate.len()).map(|i| 1.0 + (i % 3) as f32).collect();
        let mut out = buffer(&gate, 1, gate.len());
        backend(level, 2).silu_mul(&mut out, &buffer(&up, 1, up.len())).unwrap();
        for i in 0..gate.len() {
            let x = gate[i] as f64;
            let want = x / (1.0 + (-x).exp()) * up[i] as f64;
            let got = out.as_slice()[i] as f64;
            assert!((got - want).abs() <= 3e-7 * want.abs() + 1e-35, "{} {x}: {got} for {want}", level.name());
        }
        // A value's result must not depend on its lane, or on whether it is in the partial vector at the end.
        for len in [1, 7, 15, 17, 33] {
            let x: Vec<f32> = (0..len).map(|_| 0.37).collect();
            let ones = buffer(&vec![1.0; len], 1, len);
            let mut out = buffer(&x, 1, len);
            backend(level, 1).silu_mul(&mut out, &ones).unwrap();
            assert!(bits(out.as_slice()).windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}
