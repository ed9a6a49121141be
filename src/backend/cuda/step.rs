//! What the device is told of a step: packed on the host, sent in one copy before the first kernel.

use super::device::Device;
use super::memory::{DeviceMemory, PinnedMemory};
use super::stream::Stream;
use crate::backend::{Batch, RopeRows};
use crate::error::Result;
use std::sync::Arc;

/// Arrays of words are aligned to 16 bytes each.
const ALIGN: usize = 4;

/// Where an array lies in the step's memory, in words, and how long it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    offset: usize,
    pub len: usize,
}

/// The arrays of a step, on their way to the device and there.
pub(super) struct StepData {
    pinned: PinnedMemory,
    memory: DeviceMemory,
    packed: Vec<u32>,
    pub tokens: Part,
    pub slots: Part,
    pub cos: Part,
    pub sin: Part,
    pub spans: Part,
    pub tables: Part,
    pub logit_rows: Part,
}

impl StepData {
    pub fn new(device: &Arc<Device>) -> Result<StepData> {
        const WORDS: usize = 1 << 12;
        Ok(StepData {
            pinned: PinnedMemory::new(device, WORDS)?,
            memory: DeviceMemory::new(device, WORDS * 4)?,
            packed: Vec::new(),
            tokens: Part::default(),
            slots: Part::default(),
            cos: Part::default(),
            sin: Part::default(),
            spans: Part::default(),
            tables: Part::default(),
            logit_rows: Part::default(),
        })
    }

    /// Packs what every step has. The step before is over.
    pub fn pack(&mut self, batch: &Batch, rope: &RopeRows, block_tokens: u32) {
        self.packed.clear();
        self.tokens = self.push(batch.tokens.iter().copied());
        self.cos = self.push(rope.cos.iter().map(|x| x.to_bits()));
        self.sin = self.push(rope.sin.iter().map(|x| x.to_bits()));
        self.tables = self.push(batch.tables.iter().copied());
        self.logit_rows = self.push(batch.logit_rows.iter().copied());
        let spans = batch.spans.iter().flat_map(|s| [s.row, s.rows, s.position, s.table, s.table_len]);
        self.spans = self.push(spans);
        let slots = batch.spans.iter().flat_map(|span| {
            (span.position..span.position + span.rows).map(move |position| {
                let block = batch.tables[(span.table + position / block_tokens) as usize];
                block * block_tokens + position % block_tokens
            })
        });
        self.slots = self.push(slots);
    }

    /// Adds an array.
    pub fn push(&mut self, words: impl Iterator<Item = u32>) -> Part {
        let offset = self.packed.len();
        self.packed.extend(words);
        let len = self.packed.len() - offset;
        self.packed.resize(self.packed.len().next_multiple_of(ALIGN), 0);
        Part { offset, len }
    }

    /// Sends all arrays.
    pub fn send(&mut self, device: &Arc<Device>, stream: &Stream) -> Result<()> {
        let words = self.packed.len();
        if self.pinned.words() < words {
            self.pinned = PinnedMemory::new(device, words.next_power_of_two())?;
            self.memory = DeviceMemory::new(device, words.next_power_of_two() * 4)?;
        }
        self.pinned.as_mut_slice()[..words].copy_from_slice(&self.packed);
        self.pinned.send(words * 4, &self.memory, 0, stream)
    }

    /// Where an array is on the device.
    pub fn address(&self, part: Part) -> u64 {
        self.memory.at(part.offset * 4, part.len * 4)
    }
}
