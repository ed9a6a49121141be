//! Sampling on the device: parameters are sent there behind the step, and a token per row comes back.

use super::device::Device;
use super::memory::{Allocation, PinnedMemory};
use super::step::Packed;
use super::stream::{Shape, Stream, arg};
use super::tensors::CudaBuffer;
use crate::backend::{DeviceSample, DeviceSamplingBatch, DeviceSamplingRow};
use crate::bail;
use crate::error::Result;
use cleave_kernels::shapes::{SAMPLING_SHARED, SAMPLING_THREADS};
use std::sync::Arc;

pub(super) struct DeviceSampler {
    packed: Packed,
    /// Tokens, then their statuses.
    results: Allocation,
    fetched: PinnedMemory,
}

impl DeviceSampler {
    pub fn new(device: &Arc<Device>) -> Result<DeviceSampler> {
        const ROWS: usize = 256;
        Ok(DeviceSampler {
            packed: Packed::new(device)?,
            results: Allocation::new(device, 2 * ROWS * 4)?,
            fetched: PinnedMemory::new(device, 2 * ROWS)?,
        })
    }

    /// Samples from rows of `logits`, and waits.
    pub fn run(
        &mut self,
        device: &Arc<Device>,
        stream: &Stream,
        logits: &CudaBuffer,
        draws: &DeviceSamplingBatch,
        out: &mut Vec<DeviceSample>,
    ) -> Result<()> {
        let n = draws.rows.len();
        // Compared with the memory, not with the number of rows: a repeated graph did not set that.
        let held = logits.memory().map_or(0, Allocation::bytes);
        let rows = draws.rows.iter().map(|draw| draw.row as usize + 1).max().unwrap_or(0);
        if rows * logits.cols as usize * 4 > held {
            bail!(Internal, "sampling from {rows} rows of logits in {held} bytes");
        }
        if self.fetched.words() < 2 * n {
            self.results = Allocation::new(device, 2 * n.next_power_of_two() * 4)?;
            self.fetched = PinnedMemory::new(device, 2 * n.next_power_of_two())?;
        }
        self.packed.clear();
        let rows = self.packed.push(draws.rows.iter().flat_map(words), 0);
        let biases = self.packed.push(draws.biases.iter().flat_map(|(token, bias)| [*token, bias.to_bits()]), 0);
        let counts = self.packed.push(draws.counts.iter().flat_map(|(token, count)| [*token, *count]), 0);
        let masked = self.packed.push(draws.masked.iter().copied(), 0);
        self.packed.send(device, stream)?;
        let vocab = logits.cols;
        let threads = (vocab.div_ceil(32).max(1) * 32).min(SAMPLING_THREADS);
        stream.launch(
            "sample_float",
            Shape { grid: [n as u32, 1, 1], threads, shared: SAMPLING_SHARED },
            &mut [
                arg(&logits.address()),
                arg(&logits.cols),
                arg(&vocab),
                arg(&self.packed.address(rows)),
                arg(&self.packed.address(biases)),
                arg(&self.packed.address(counts)),
                arg(&self.packed.address(masked)),
                arg(&self.results.at(0, n * 4)),
                arg(&self.results.at(n * 4, n * 4)),
            ],
        )?;
        self.fetched.fetch(2 * n, &self.results, stream)?;
        stream.synchronize()?;
        let (tokens, statuses) = self.fetched.as_slice()[..2 * n].split_at(n);
        out.clear();
        out.extend(tokens.iter().zip(statuses).map(|(token, status)| match status {
            0 => DeviceSample::Token(*token),
            1 => DeviceSample::Broken(*token),
            _ => DeviceSample::Nothing,
        }));
        Ok(())
    }
}

/// The words of a SamplingRow in kernels/include/sampling_params.cuh.
fn words(draw: &DeviceSamplingRow) -> [u32; 18] {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let ([seed, seed_high], [position, position_high]) = (halves(draw.seed), halves(draw.position));
    [
        seed,
        seed_high,
        position,
        position_high,
        draw.row,
        draw.temperature.to_bits(),
        draw.top_p.to_bits(),
        draw.min_p.to_bits(),
        draw.top_k,
        draw.repetition_penalty.to_bits(),
        draw.presence_penalty.to_bits(),
        draw.frequency_penalty.to_bits(),
        draw.biases.0,
        draw.biases.1,
        draw.counts.0,
        draw.counts.1,
        draw.masked.0,
        draw.masked.1,
    ]
}
