//! The data of a step: packed on the host and sent to the device in one copy before the first kernel.

use super::device::Device;
use super::memory::{Allocation, PinnedMemory};
use super::stream::Stream;
use crate::backend::{Batch, RopeRows};
use crate::error::Result;
use cleave_kernels::shapes;
use std::sync::Arc;

/// Alignment of arrays in words: 16 bytes.
const ALIGN: usize = 4;

/// Slot of a padding row, whose K and V are not stored.
const NO_SLOT: u32 = shapes::PADDING_SLOT;

/// Padded sizes of a step, which fix its memory and the grids of its kernels. Batches of equal sizes run the same kernels with
/// the same arguments, so one recorded graph serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepBuffers {
    pub rows: usize,
    pub logit_rows: usize,
    pub tables: usize,
    /// Pieces of attention work.
    pub pieces: usize,
}

/// Position and length of an array in the step's memory, in words.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    offset: usize,
    pub len: usize,
}

/// Arrays of words that go to the device in one copy.
pub(super) struct Packed {
    pinned: PinnedMemory,
    memory: Allocation,
    words: Vec<u32>,
}

impl Packed {
    pub fn new(device: &Arc<Device>) -> Result<Packed> {
        const WORDS: usize = 1 << 12;
        Ok(Packed {
            pinned: PinnedMemory::new(device, WORDS)?,
            memory: Allocation::new(device, WORDS * 4)?,
            words: Vec::new(),
        })
    }

    pub fn clear(&mut self) {
        self.words.clear();
    }

    /// Adds an array, padded with zeros to at least `len` words.
    pub fn push(&mut self, words: impl Iterator<Item = u32>, len: usize) -> Part {
        let offset = self.words.len();
        self.words.extend(words);
        let len = len.max(self.words.len() - offset);
        self.words.resize((offset + len).next_multiple_of(ALIGN), 0);
        Part { offset, len }
    }

    /// Sends all arrays; earlier ones must no longer be in use. True if their addresses have changed.
    pub fn send(&mut self, device: &Arc<Device>, stream: &Stream) -> Result<bool> {
        let words = self.words.len();
        let grows = self.pinned.words() < words;
        if grows {
            // Both, or neither if there is no memory for one.
            let words = words.next_power_of_two();
            let (pinned, memory) = (PinnedMemory::new(device, words)?, Allocation::new(device, words * 4)?);
            (self.pinned, self.memory) = (pinned, memory);
        }
        self.pinned.as_mut_slice()[..words].copy_from_slice(&self.words);
        self.pinned.send(words * 4, &self.memory, 0, stream)?;
        Ok(grows)
    }

    /// Address of an array on the device.
    pub fn address(&self, part: Part) -> u64 {
        self.memory.at(part.offset * 4, part.len * 4)
    }
}

/// The arrays of a step, on the host and on the device.
pub(super) struct StepData {
    pub packed: Packed,
    pub rows: u32,
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
        Ok(StepData {
            packed: Packed::new(device)?,
            rows: 0,
            tokens: Part::default(),
            slots: Part::default(),
            cos: Part::default(),
            sin: Part::default(),
            spans: Part::default(),
            tables: Part::default(),
            logit_rows: Part::default(),
        })
    }

    /// Packs the arrays that every step has, padded to `room`: padding rows are computed but not stored. The previous step
    /// must be over.
    pub fn pack(&mut self, batch: &Batch, rope: &RopeRows, block_tokens: u32, room: &StepBuffers) {
        self.packed.clear();
        let angles = rope.cos.len() / batch.tokens.len().max(1) * room.rows;
        let logit_rows = if batch.logit_rows.is_empty() { 0 } else { batch.logit_rows.len().max(room.logit_rows) };
        self.rows = room.rows as u32;
        self.tokens = self.packed.push(batch.tokens.iter().copied(), room.rows);
        self.cos = self.packed.push(rope.cos.iter().map(|x| x.to_bits()), angles);
        self.sin = self.packed.push(rope.sin.iter().map(|x| x.to_bits()), angles);
        self.tables = self.packed.push(batch.tables.iter().copied(), room.tables);
        self.logit_rows = self.packed.push(batch.logit_rows.iter().copied(), logit_rows);
        let spans = batch.spans.iter().flat_map(|s| [s.row, s.rows, s.position, s.table, s.table_len]);
        self.spans = self.packed.push(spans, room.rows * 5);
        let slots = batch.spans.iter().flat_map(|span| {
            (span.position..span.position + span.rows).map(move |position| {
                let block = batch.tables[(span.table + position / block_tokens) as usize];
                block * block_tokens + position % block_tokens
            })
        });
        let nowhere = std::iter::repeat_n(NO_SLOT, room.rows - batch.tokens.len());
        self.slots = self.packed.push(slots.chain(nowhere), room.rows);
    }

    /// Address of an array on the device.
    pub fn address(&self, part: Part) -> u64 {
        self.packed.address(part)
    }
}
