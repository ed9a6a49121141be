//! Checks of matrix products and of operations that work row by row.

use super::{Check, DTYPES, bytes, host_buffer, host_matrix, host_vector, rounding};
use cleave::backend::cpu::{CpuBackend, CpuBuffer};
use cleave::backend::cuda::{CudaBackend, CudaBuffer, CudaMatrix, CudaProjections, CudaSlab, CudaVector};
use cleave::backend::{Backend, Batch, KvGeometry, Linear, RopeRows};
use cleave::error::Result;
use cleave::tensor::Dtype;

/// A step of `tokens` whose logits are wanted for the given rows.
fn step(
    check: &Check,
    cuda: &mut CudaBackend,
    tokens: &[u32],
    wanted: &[u32],
    body: impl FnMut(&mut CudaBackend) -> Result<()>,
) -> Result<()> {
    let geometry = KvGeometry { layers: 1, kv_heads: 1, head_dim: 64, block_tokens: 16, dtype: Dtype::Bf16, shards: 1 };
    let kv = CudaSlab::new(&check.device, geometry, 1)?;
    let batch = Batch { tokens: tokens.to_vec(), logit_rows: wanted.to_vec(), ..Batch::default() };
    // Without spans no row has a place for its K and V.
    cuda.step(&batch, &RopeRows::default(), &kv, body)
}

/// Checks embeddings, which are copies of rows of the table.
pub fn embed(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (vocab, hidden) in check.pick(vec![(7, 64), (40, 24)], vec![(7, 64), (40, 24), (1000, 4096), (300, 8192)]) {
            for rows in check.pick(vec![1, 5], vec![1, 5, 64, 700]) {
                let values = check.random.values(vocab * hidden, dtype);
                let tokens: Vec<u32> = (0..rows).map(|_| check.random.below(vocab) as u32).collect();
                let mut loader = check.loader()?;
                let table = CudaMatrix::new(&mut loader, &bytes(&values, dtype), vocab, hidden, dtype)?;
                loader.finish()?;
                let (mut cuda, mut found) = (check.plain(dtype)?, CudaBuffer::default());
                // The device already has the tokens of a step.
                step(check, &mut cuda, &tokens, &[], |cuda| cuda.embed(&table, &tokens, &mut found))?;
                let found = cuda.fetch(&found)?;
                let table = host_matrix(&values, vocab, hidden, dtype)?;
                let mut expected = CpuBuffer::default();
                check.cpu.embed(&table, &tokens, &mut expected)?;
                let what = format!("embed {dtype}, {rows} of {vocab} x {hidden}");
                check.same(&found, expected.as_slice(), 0.0, 1e-30, &what);
            }
        }
    }
    Ok(())
}

pub fn rms_norm(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for hidden in check.pick(vec![64, 200, 4096], vec![64, 200, 2048, 4096, 8192]) {
            for rows in check.pick(vec![1, 3], vec![1, 3, 64, 300]) {
                let x = check.random.values(rows * hidden, Dtype::F32);
                let weight = check.random.values(hidden, Dtype::F32);
                let ids: Vec<u32> = (0..rows as u32).step_by(2).collect();
                let mut loader = check.loader()?;
                let on_device = CudaVector::new(&mut loader, &weight)?;
                loader.finish()?;
                let mut cuda = check.plain(dtype)?;
                let input = cuda.upload(&x, rows, hidden, true)?;
                let (mut all, mut some) = (CudaBuffer::default(), CudaBuffer::default());
                let tokens = vec![0; rows];
                step(check, &mut cuda, &tokens, &ids, |cuda| {
                    cuda.rms_norm(&input, None, &on_device, 1e-5, &mut all)?;
                    cuda.rms_norm(&input, Some(&ids), &on_device, 1e-5, &mut some)
                })?;
                let found = [cuda.fetch(&all)?, cuda.fetch(&some)?];
                let (input, weight) = (host_buffer(&x, rows, hidden)?, host_vector(&weight)?);
                for (found, ids) in found.iter().zip([None, Some(&ids[..])]) {
                    let mut expected = CpuBuffer::default();
                    check.cpu.rms_norm(&input, ids, &weight, 1e-5, &mut expected)?;
                    let some = if ids.is_some() { "some of " } else { "" };
                    let what = format!("rms_norm to {dtype}, {some}{rows} x {hidden}");
                    check.same(found, expected.as_slice(), rounding(dtype) + 1e-5, 1e-6, &what);
                }
            }
        }
    }
    Ok(())
}

pub fn silu_mul(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (rows, cols) in check.pick(vec![(1, 16), (3, 200)], vec![(1, 16), (3, 200), (64, 8192), (300, 14336)]) {
            let mut gate = check.random.values(rows * cols, dtype);
            gate.iter_mut().for_each(|x| *x *= 8.0);
            let up = check.random.values(rows * cols, dtype);
            let mut cuda = check.plain(dtype)?;
            let mut found = cuda.upload(&gate, rows, cols, false)?;
            let on_device = cuda.upload(&up, rows, cols, false)?;
            cuda.silu_mul(&mut found, &on_device)?;
            let found = cuda.fetch(&found)?;
            let mut expected = host_buffer(&gate, rows, cols)?;
            check.cpu.silu_mul(&mut expected, &host_buffer(&up, rows, cols)?)?;
            let what = format!("silu_mul {dtype}, {rows} x {cols}");
            check.same(&found, expected.as_slice(), rounding(dtype) + 1e-4, 1e-6, &what);
        }
    }
    Ok(())
}

/// Numbers of rows around the borders between kernels.
const ROWS: [usize; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 63, 64, 65, 128, 300];

pub fn linear(check: &mut Check) -> Result<()> {
    // Outputs and inputs; a row of inputs is a multiple of 16 bytes.
    let shapes = check.pick(
        vec![(33, 72), (128, 200)],
        vec![
            (1, 8),
            (33, 72),
            (127, 40),
            (128, 64),
            (129, 1032),
            (1000, 200),
            (1024, 4096),
            (4096, 1024),
            (2056, 2048),
        ],
    );
    for dtype in DTYPES {
        for &(n, k) in &shapes {
            for m in check.pick(vec![1, 3, 8, 9, 17, 64, 65], ROWS.to_vec()) {
                if check.pick(m > 9 && m != 65 && n > 100, m > 65 && n * k > 1 << 20 && dtype == Dtype::F32) {
                    continue; // slow, and covered by the other cases
                }
                for bias in [false, true] {
                    // Large products are slow, so cases with and without a bias alternate.
                    if n * k > 1 << 20 && bias != (m % 2 == 1) {
                        continue;
                    }
                    product(check, dtype, [m, n, k], bias)?;
                }
            }
        }
    }
    Ok(())
}

/// Checks products that write to activations in two parts, to logits, and onto the residual stream.
fn product(check: &mut Check, dtype: Dtype, [m, n, k]: [usize; 3], bias: bool) -> Result<()> {
    let x = check.random.values(m * k, dtype);
    let mut weight = check.random.values(n * k, Dtype::F32);
    weight.iter_mut().for_each(|w| *w /= (k as f32).sqrt());
    // Products whose type differs from the matrices' do not use cuBLASLt.
    let bias = bias.then(|| check.random.values(n, if m % 2 == 1 { dtype } else { Dtype::F32 }));
    let residual = check.random.values(m * n, Dtype::F32);

    let mut loader = check.loader()?;
    let on_device: Linear<CudaBackend> = Linear {
        weight: CudaMatrix::new(&mut loader, &bytes(&weight, dtype), n, k, dtype)?,
        bias: bias.as_ref().map(|bias| CudaVector::bias(&mut loader, bias, dtype)).transpose()?,
    };
    loader.finish()?;
    let mut cuda = check.plain(dtype)?;
    let input = cuda.upload(&x, m, k, false)?;
    let (mut first, mut second, mut logits) = <(CudaBuffer, CudaBuffer, CudaBuffer)>::default();
    let mut sum = cuda.upload(&residual, m, n, true)?;
    cuda.product(&input, &on_device, &mut logits)?;
    cuda.linear_add(&input, &on_device, &mut sum)?;
    let mut added = cuda.upload(&residual, m, n, true)?;
    cuda.add(&logits, &mut added)?;
    let added = cuda.fetch(&added)?;
    let border = n - n / 3;
    let parts = CudaProjections::new(on_device, vec![border, n - border])?;
    cuda.project(&input, &parts, &mut [&mut first, &mut second])?;
    let found = [joined(&cuda.fetch(&first)?, &cuda.fetch(&second)?, m), cuda.fetch(&logits)?, cuda.fetch(&sum)?];

    let on_cpu: Linear<CpuBackend> = Linear {
        weight: host_matrix(&weight, n, k, dtype)?,
        bias: bias.as_ref().map(|bias| host_vector(bias)).transpose()?,
    };
    let input = host_buffer(&x, m, k)?;
    let (mut out, mut sum) = (CpuBuffer::default(), host_buffer(&residual, m, n)?);
    check.cpu.product(&input, &on_cpu, &mut out)?;
    check.cpu.linear_add(&input, &on_cpu, &mut sum)?;
    // The order of the k products below 1/sqrt(k) differs, and tensor cores truncate where the CPU rounds.
    let sums = 3e-6 * (k as f64).sqrt().max(1.0);
    let what = |name: &str| format!("{name} {dtype}, {m} x {n} x {k}{}", if bias.is_some() { ", bias" } else { "" });
    check.same(&found[0], out.as_slice(), rounding(dtype), sums, &what("project"));
    check.same(&found[1], out.as_slice(), 0.0, sums, &what("logits"));
    check.same(&found[2], sum.as_slice(), 0.0, sums, &what("linear_add"));
    check.same(&added, sum.as_slice(), 0.0, sums, &what("product and add"));
    Ok(())
}

/// Concatenates the rows of two matrices.
fn joined(left: &[f32], right: &[f32], rows: usize) -> Vec<f32> {
    let of = |all: &[f32], row: usize| all[row * all.len() / rows..(row + 1) * all.len() / rows].to_vec();
    (0..rows).flat_map(|row| [of(left, row), of(right, row)].concat()).collect()
}

/// Checks gate, up and their activation onto the residual stream, whose rows may have gaps between them.
pub fn gated(check: &mut Check) -> Result<()> {
    for dtype in DTYPES {
        for (n, k) in check.pick(vec![(40, 72)], vec![(8, 8), (40, 72), (264, 1032), (2816, 1024)]) {
            for m in check.pick(vec![1, 8, 9, 65], ROWS.to_vec()) {
                for bias in [false, true] {
                    gate(check, dtype, [m, n, k], bias)?;
                }
            }
        }
    }
    Ok(())
}

fn gate(check: &mut Check, dtype: Dtype, [m, n, k]: [usize; 3], bias: bool) -> Result<()> {
    let x = check.random.values(m * k, dtype);
    let mut weight = check.random.values(2 * n * k, Dtype::F32);
    weight.iter_mut().for_each(|w| *w *= 4.0 / (k as f32).sqrt());
    let bias = bias.then(|| check.random.values(2 * n, dtype));
    // Each output equals one input.
    let identity: Vec<f32> = (0..n * n).map(|i| f32::from(u8::from(i / n == i % n))).collect();

    let mut loader = check.loader()?;
    let both: Linear<CudaBackend> = Linear {
        weight: CudaMatrix::new(&mut loader, &bytes(&weight, dtype), 2 * n, k, dtype)?,
        bias: bias.as_ref().map(|bias| CudaVector::bias(&mut loader, bias, dtype)).transpose()?,
    };
    let both = CudaProjections::new(both, vec![n, n])?;
    let down = Linear { weight: CudaMatrix::new(&mut loader, &bytes(&identity, dtype), n, n, dtype)?, bias: None };
    loader.finish()?;
    let mut cuda = check.plain(dtype)?;
    let input = cuda.upload(&x, m, k, false)?;
    let (mut found, mut scratch) = <(CudaBuffer, CudaBuffer)>::default();
    let mut sum = cuda.upload(&vec![0.0; m * n], m, n, true)?;
    cuda.project_gated(&input, &both, &mut found, &mut scratch)?;
    cuda.linear_add(&found, &down, &mut sum)?;
    let found = [cuda.fetch(&found)?, cuda.fetch(&sum)?];

    let half = |i: usize| -> Result<Linear<CpuBackend>> {
        let bias = bias.as_ref().map(|bias| host_vector(&bias[i * n..][..n])).transpose()?;
        Ok(Linear { weight: host_matrix(&weight[i * n * k..][..n * k], n, k, dtype)?, bias })
    };
    let (mut expected, mut scratch) = <(CpuBuffer, CpuBuffer)>::default();
    let input = host_buffer(&x, m, k)?;
    check.cpu.project_gated(&input, &vec![half(0)?, half(1)?], &mut expected, &mut scratch)?;
    // Both factors may be rounded before the multiplication.
    let (relative, sums) = (4.0 * rounding(dtype) + 1e-4, 4.0 * rounding(dtype));
    let what = format!("gated {dtype}, {m} x {n} x {k}{}", if bias.is_some() { ", bias" } else { "" });
    check.same(&found[0], expected.as_slice(), relative, sums, &what);
    check.same(&found[1], &found[0], 0.0, 1e-30, &format!("{what}: read as it lies"));
    Ok(())
}
