//! What the device is told of a step: packed on the host, sent in one copy before the first kernel.

use super::device::Device;
use super::memory::{Allocation, PinnedMemory};
use super::stream::Stream;
use crate::backend::{Batch, RopeRows};
use crate::error::Result;
use cleave_kernels::shapes;
use std::sync::Arc;

/// Arrays of words are aligned to 16 bytes each.
const ALIGN: usize = 4;

/// Of a row that is there to fill up the batch: its K and V are stored nowhere.
const NO_SLOT: u32 = shapes::PADDING_SLOT;

/// How much a step has room for, on the device and in the grids of its kernels. Batches with the same room run the same
/// kernels with the same arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepBuffers {
    pub rows: usize,
    pub logit_rows: usize,
    pub tables: usize,
    /// Pieces of attention.
    pub pieces: usize,
}

/// Where an array lies in the step's memory, in words, and how long it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    offset: usize,
    pub len: usize,
}

/// Arrays of words that are sent to the device in one copy.
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

    /// Adds an array with room for `len` words or, if they are more, as many as there are.
    pub fn push(&mut self, words: impl Iterator<Item = u32>, len: usize) -> Part {
        let offset = self.words.len();
        self.words.extend(words);
        let len = len.max(self.words.len() - offset);
        self.words.resize((offset + len).next_multiple_of(ALIGN), 0);
        Part { offset, len }
    }

    /// Sends all arrays. What was sent before is no longer in use. True if they go to another place.
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

    /// Where an array is on the device.
    pub fn address(&self, part: Part) -> u64 {
        self.memory.at(part.offset * 4, part.len * 4)
    }
}

/// The arrays of a step, on their way to the device and there.
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

    /// Packs what every step has, for as many rows and blocks of tables as `room` says: rows beyond the batch's are
    /// computed, and stored nowhere. The step before is over.
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

    /// Where an array is on the device.
    pub fn address(&self, part: Part) -> u64 {
        self.packed.address(part)
    }
}
