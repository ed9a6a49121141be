//! Speed of the CPU kernels: `cargo bench --bench kernels [-- level threads filter dtype rows shapes]`. Prints GFLOP/s
//! and the bandwidth at which weights are read, beside that of a plain read of memory in the same run.

use cleave::backend::cpu::{CpuBackend, CpuBuffer, CpuConfig, CpuMatrix, CpuVector, KvSlab, Level};
use cleave::backend::weights::Bytes;
use cleave::backend::{AttentionArgs, Backend, Batch, BlockStore, KvGeometry, Linear, SeqSpan};
use cleave::tensor::Dtype;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let levels = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];
    let named = |name: &String| levels.into_iter().find(|level| level.name() == name);
    let level = args.first().and_then(named).unwrap_or_else(Level::best);
    let machine = || std::thread::available_parallelism().map_or(1, |count| count.get());
    let threads = args.get(1).and_then(|arg| arg.parse().ok()).filter(|n| *n > 0).unwrap_or_else(machine);
    let wanted = |name: &str| args.get(2).is_none_or(|filter| name.contains(filter.as_str()));
    let mut cpu = CpuBackend::new(CpuConfig { threads, cpus: None, level: Some(level) }).unwrap();
    CPU_TIME.store(threads == 1, Ordering::Relaxed);
    let time = if threads == 1 { "CPU" } else { "wall" };
    println!("{}, {} threads, {time} time", level.name(), threads);
    let weights: Bytes = Arc::new(random_bits(1 << 28));
    if wanted("read") {
        println!("plain read: {:.1} GB/s", read(threads, weights.as_ref().as_ref()));
    }
    if wanted("linear") {
        let dtype = if args.get(3).is_some_and(|arg| arg == "f32") { Dtype::F32 } else { Dtype::Bf16 };
        let list = |arg: Option<&String>, all: &[usize]| match arg {
            Some(arg) if arg != "all" => arg.split(',').map(|n| n.parse().unwrap()).collect(),
            _ => all.to_vec(),
        };
        for shape in list(args.get(5), &[2048, 2048, 8192, 2048, 2048, 8192, 32000, 2048]).chunks_exact(2) {
            let (n, k) = (shape[0], shape[1]);
            for m in list(args.get(4), &[1, 8, 16, 32, 64, 128, 512, 2048]) {
                linear(&mut cpu, &weights, m, n, k, dtype);
            }
        }
    }
    if wanted("attention") {
        for dtype in [Dtype::Bf16, Dtype::I8, Dtype::F32] {
            for context in [512, 2048, 8192] {
                attention(&mut cpu, context, context, dtype);
                attention(&mut cpu, context, 1, dtype);
            }
        }
    }
    if wanted("small") {
        small(&mut cpu, 1);
        small(&mut cpu, 512);
    }
}

/// Finite bf16 values of both signs with magnitudes below one.
fn random_bits(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let bits = (state >> 33) as u16;
        out.extend((bits & 0x81ff | 0x3c00).to_le_bytes());
    }
    out
}

/// CPU time of the calling thread in seconds.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes only the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Whether to take CPU times of one thread, which other programs on a shared machine disturb less.
static CPU_TIME: AtomicBool = AtomicBool::new(false);

/// The best time of at least three runs, which take about half a second together.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (begin, mut best) = (Instant::now(), f64::MAX);
    let mut count = 0;
    while count < 3 || begin.elapsed() < Duration::from_millis(400) {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        run();
        let wall = start.elapsed().as_secs_f64();
        best = best.min(if CPU_TIME.load(Ordering::Relaxed) { cpu_seconds() - cpu } else { wall });
        count += 1;
    }
    best
}

fn read(threads: usize, bytes: &[u8]) -> f64 {
    let part = bytes.len() / threads / 64 * 64;
    let seconds = best(|| {
        std::thread::scope(|scope| {
            for chunk in bytes.chunks(part) {
                scope.spawn(move || {
                    let mut sums = [0u64; 32];
                    for line in chunk.chunks_exact(256) {
                        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
                            *sum ^= u64::from_ne_bytes(word.try_into().unwrap());
                        }
                    }
                    std::hint::black_box(sums);
                });
            }
        });
    });
    bytes.len() as f64 / seconds / 1e9
}

fn buffer(values: &[f32], rows: usize, cols: usize) -> CpuBuffer {
    let mut buffer = CpuBuffer::default();
    buffer.resize(rows, cols).unwrap();
    buffer.as_mut_slice().copy_from_slice(values);
    buffer
}

fn linear(cpu: &mut CpuBackend, weights: &Bytes, m: usize, n: usize, k: usize, dtype: Dtype) {
    let bytes = n * k * dtype.size();
    // Several different matrices, so that weights come from memory as they do in a model.
    let linears: Vec<Vec<Linear<CpuBackend>>> = (0..(weights.as_ref().as_ref().len() / bytes).max(1))
        .map(|i| vec![Linear { weight: CpuMatrix::new(weights.clone(), i * bytes, n, k, dtype).unwrap(), bias: None }])
        .collect();
    let x = buffer(&vec![0.5; m * k], m, k);
    let mut out = CpuBuffer::default();
    let mut next = 0;
    let seconds = best(|| {
        cpu.project(&x, &linears[next % linears.len()], &mut [&mut out]).unwrap();
        next += 1;
    });
    let flops = 2.0 * (m * n * k) as f64 / seconds / 1e9;
    let gigabytes = bytes as f64 / seconds / 1e9;
    println!("linear {n:5} x {k:4}, m {m:4}: {flops:7.1} GFLOP/s, {gigabytes:5.1} GB/s, {:8.1} us", seconds * 1e6);
}

fn attention(cpu: &mut CpuBackend, context: usize, rows: usize, dtype: Dtype) {
    let (heads, kv_heads, dim, block_tokens) = (32, 8, 64, 16);
    let geometry =
        KvGeometry { layers: 4, kv_heads: kv_heads as u32, head_dim: dim as u32, block_tokens, dtype, shards: 1 };
    let blocks = context.div_ceil(block_tokens as usize);
    let kv = KvSlab::new(geometry, blocks).unwrap();
    let zeros = vec![0x3cu8; geometry.block_bytes()];
    (0..blocks as u32).for_each(|id| kv.write(id, 0, &zeros).unwrap());
    let span =
        SeqSpan { row: 0, rows: rows as u32, position: (context - rows) as u32, table: 0, table_len: blocks as u32 };
    let tables = (0..blocks as u32).map(|i| (i * 7919) % blocks as u32).collect();
    let batch = Batch { spans: vec![span], tables, ..Batch::default() };
    let q = buffer(&vec![0.5; rows * heads * dim], rows, heads * dim);
    let mut out = CpuBuffer::default();
    let mut layer = 0;
    let seconds = best(|| {
        let args = AttentionArgs { layer: layer % 4, heads, scale: 0.125, window: None, batch: &batch };
        cpu.attention(&q, &args, &kv, &mut out).unwrap();
        layer += 1;
    });
    let seen: usize = (context - rows + 1..=context).sum();
    let flops = 4.0 * (seen * heads * dim) as f64 / seconds / 1e9;
    let gigabytes = (context * 2 * kv_heads * dim * dtype.size()) as f64 / seconds / 1e9;
    println!(
        "attention {dtype} {rows:4} rows of {context:4}: {flops:7.1} GFLOP/s, {gigabytes:5.1} GB/s, {:9.1} us",
        seconds * 1e6
    );
}

fn small(cpu: &mut CpuBackend, rows: usize) {
    let x = buffer(&vec![0.5; rows * 8192], rows, 8192);
    let mut gate = buffer(&vec![0.5; rows * 8192], rows, 8192);
    let weight = CpuVector::new(&1f32.to_le_bytes().repeat(8192), Dtype::F32).unwrap();
    let mut out = CpuBuffer::default();
    let norm = best(|| cpu.rms_norm(&x, None, &weight, 1e-5, &mut out).unwrap());
    let silu = best(|| cpu.silu_mul(&mut gate, &x).unwrap());
    println!("{rows} rows of 8192: norm {:.1} us, silu_mul {:.1} us", norm * 1e6, silu * 1e6);
}
