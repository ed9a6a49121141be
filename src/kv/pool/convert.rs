//! Conversion of KV between layouts (block sizes, element types, shards), stripe by stripe in runs of tokens.

use crate::backend::{BlockId, BlockStore, DeviceMemory, ForeignBlocks, KvGeometry, int8};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use std::ops::Range;

/// Conversion of blocks of one layout into blocks of another. Values pass through f32, which represents every dtype exactly,
/// and are rounded once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    from: KvGeometry,
    to: KvGeometry,
}

/// Run of tokens that are consecutive both in a source block and in a destination block.
struct Run {
    /// Slot of the first token in its source block.
    from: usize,
    /// Slot of the first token in its destination block.
    to: usize,
    count: usize,
}

/// Scratch memory for rows, reused from run to run.
#[derive(Default)]
struct Scratch {
    values: Vec<f32>,
    rows: Vec<u8>,
    scales: Vec<u8>,
}

impl Conversion {
    /// A conversion between two geometries that have passed `validate`. INCOMPATIBLE if layers, heads or head dimensions
    /// differ.
    pub fn new(from: &KvGeometry, to: &KvGeometry) -> Result<Conversion> {
        for (field, expected, found) in [
            ("layers", to.layers, from.layers),
            ("KV heads", to.kv_heads, from.kv_heads),
            ("head dimension", to.head_dim, from.head_dim),
        ] {
            if expected != found {
                bail!(Incompatible, "{field}: expected {expected}, found {found}");
            }
        }
        Ok(Conversion { from: *from, to: *to })
    }

    /// Layout of the source blocks.
    pub fn source(&self) -> &KvGeometry {
        &self.from
    }

    /// Whether both layouts are equal, so that blocks can be copied as they are.
    pub fn is_identity(&self) -> bool {
        self.from == self.to
    }

    /// Whether values keep their bits, even if their places change.
    pub fn is_exact(&self) -> bool {
        self.from.dtype == self.to.dtype
    }

    /// Writes the part of tokens `first_token..computed` that is in block `index` of a sequence into the blocks of `table`.
    /// `source` is that whole block; its other tokens are ignored.
    pub fn write(
        &self,
        index: usize,
        source: &[u8],
        computed: u32,
        first_token: u32,
        store: &dyn BlockStore,
        table: &[BlockId],
    ) -> Result<()> {
        let begin = index * self.from.block_tokens as usize;
        let end = (begin + self.from.block_tokens as usize).min(computed as usize);
        let first = begin.max(first_token as usize);
        if first >= end {
            return Ok(());
        }
        if self.is_identity() && first == begin {
            if end - begin == self.from.block_tokens as usize {
                return store.write(table[index], 0, source);
            }
            let mut masked = source.to_vec();
            mask(&self.from, index, computed, 0, &mut masked);
            return store.write(table[index], 0, &masked);
        }
        if let Some(pool) = store.device_memory() {
            let tokens = first as u32..end as u32;
            return pool.convert(&self.from, &self.to, &ForeignBlocks::Host(index, source), table, tokens).map(|_| ());
        }
        let block_tokens = self.to.block_tokens as usize;
        let mut scratch = Scratch::default();
        let mut token = first;
        while token < end {
            let to = token % block_tokens;
            let run = Run { from: token - begin, to, count: (block_tokens - to).min(end - token) };
            for stripe in 0..2 * self.from.layers as usize * self.from.kv_heads as usize {
                let (head, part) = (stripe % self.from.kv_heads as usize, stripe / self.from.kv_heads as usize);
                let from = self.from.stripe_offset(part / 2, part % 2 == 1, head);
                let stripe = &source[from..from + self.from.stripe_bytes()];
                let at = self.to.stripe_offset(part / 2, part % 2 == 1, head);
                self.write_run(&run, stripe, at, store, table[token / block_tokens], &mut scratch)?;
            }
            token += run.count;
        }
        Ok(())
    }

    /// Does the work of [`Conversion::write`] for blocks `range` of a sequence, on the device that holds them and `table`. `ids`
    /// are the sequence's blocks there from the first on. Returns false, having done nothing, if the device cannot do that.
    pub fn write_on_device(
        &self,
        range: Range<usize>,
        tokens: Range<u32>,
        from: (&dyn DeviceMemory, &[BlockId]),
        into: (&dyn DeviceMemory, &[BlockId]),
    ) -> Result<bool> {
        let ((source, ids), (pool, table)) = (from, into);
        if self.is_identity() {
            return pool.copy_from(source, &ids[range.clone()], &table[range]);
        }
        let of = |block: usize| (block as u64 * u64::from(self.from.block_tokens)).min(u64::from(u32::MAX)) as u32;
        let tokens = tokens.start.max(of(range.start))..tokens.end.min(of(range.end));
        if tokens.is_empty() {
            return Ok(true);
        }
        pool.convert(&self.from, &self.to, &ForeignBlocks::Device(source, ids), table, tokens)
    }

    /// Converts one stripe's part of a run. The destination's stripe begins at byte `at`.
    fn write_run(
        &self,
        run: &Run,
        stripe: &[u8],
        at: usize,
        store: &dyn BlockStore,
        block: BlockId,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (from, to) = (&self.from, &self.to);
        let mut rows = &stripe[run.from * from.row_bytes()..][..run.count * from.row_bytes()];
        let mut scales = &stripe[from.scales_offset() + run.from * from.scale_bytes()..];
        scales = &scales[..run.count * from.scale_bytes()];
        if !self.is_exact() {
            widen(from, rows, scales, &mut scratch.values);
            scratch.narrow(to);
            (rows, scales) = (&scratch.rows, &scratch.scales);
        }
        store.write(block, at + run.to * to.row_bytes(), rows)?;
        if scales.is_empty() {
            return Ok(());
        }
        store.write(block, at + to.scales_offset() + run.to * to.scale_bytes(), scales)
    }
}

/// Zeroes the slots of tokens that are not computed, and the padding of stripes, in a piece at byte `at` of block `index`.
pub(crate) fn mask(geometry: &KvGeometry, index: usize, computed: u32, at: usize, piece: &mut [u8]) {
    let begin = index as u64 * u64::from(geometry.block_tokens);
    let valid = u64::from(computed).saturating_sub(begin).min(u64::from(geometry.block_tokens)) as usize;
    let unused = geometry.unused(valid);
    if unused.iter().all(|range| range.is_empty()) {
        return;
    }
    let stripe = geometry.stripe_bytes();
    let end = at + piece.len();
    for start in (at / stripe * stripe..end).step_by(stripe) {
        for range in &unused {
            let (from, to) = ((start + range.start).max(at), (start + range.end).min(end));
            if from < to {
                piece[from - at..to - at].fill(0);
            }
        }
    }
}

/// Reads stored rows as f32.
fn widen(geometry: &KvGeometry, rows: &[u8], scales: &[u8], values: &mut Vec<f32>) {
    values.clear();
    let pairs = rows.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match geometry.dtype {
        Dtype::F32 => values.extend(rows.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        Dtype::F16 => values.extend(pairs.map(|bits| half::f16::from_bits(bits).to_f32())),
        Dtype::Bf16 => values.extend(pairs.map(|bits| f32::from_bits(u32::from(bits) << 16))),
        Dtype::I8 => {
            values.resize(rows.len(), 0.0);
            let dim = geometry.head_dim as usize;
            let scales = scales.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            for ((row, scale), out) in rows.chunks_exact(dim).zip(scales).zip(values.chunks_exact_mut(dim)) {
                int8::dequantise(row, scale, out);
            }
        }
    }
}

impl Scratch {
    /// Writes f32 values as rows of the geometry's dtype.
    fn narrow(&mut self, geometry: &KvGeometry) {
        let Scratch { values, rows, scales } = self;
        rows.clear();
        scales.clear();
        match geometry.dtype {
            Dtype::F32 => values.iter().for_each(|x| rows.extend_from_slice(&x.to_le_bytes())),
            Dtype::F16 => values.iter().for_each(|&x| rows.extend_from_slice(&half::f16::from_f32(x).to_le_bytes())),
            Dtype::Bf16 => values.iter().for_each(|&x| rows.extend_from_slice(&half::bf16::from_f32(x).to_le_bytes())),
            Dtype::I8 => {
                rows.resize(values.len(), 0);
                let dim = geometry.head_dim as usize;
                for (row, q) in values.chunks_exact(dim).zip(rows.chunks_exact_mut(dim)) {
                    scales.extend_from_slice(&int8::quantise(row, q).to_le_bytes());
                }
            }
        }
    }
}
