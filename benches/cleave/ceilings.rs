//! Bounds of the machine, measured in the same run as the figures that are compared with them.

use std::hint::black_box;
use std::time::Instant;

/// GB/s at which `threads` threads read their parts of a buffer larger than the CPU caches, each sequentially.
pub fn read_gb_per_s(threads: usize) -> f64 {
    let words = (1usize << 30) / 8;
    let buffer = vec![1u64; words];
    let mut best = 0f64;
    for _ in 0..3 {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(words.div_ceil(threads)) {
                scope.spawn(move || {
                    let mut sums = [0u64; 32];
                    for line in part.chunks_exact(32) {
                        for (sum, word) in sums.iter_mut().zip(line) {
                            *sum = sum.wrapping_add(*word);
                        }
                    }
                    black_box(sums);
                });
            }
        });
        best = best.max((words * 8) as f64 / begun.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// GB/s at which one thread copies `bytes`, counted once.
pub fn copy_gb_per_s(bytes: usize) -> f64 {
    let from = vec![7u8; bytes];
    let mut to = vec![0u8; bytes];
    let mut best = 0f64;
    for _ in 0..5 {
        let begun = Instant::now();
        to.copy_from_slice(black_box(&from));
        black_box(&to);
        best = best.max(bytes as f64 / begun.elapsed().as_secs_f64() / 1e9);
    }
    best
}
