//! Batches over paged KV for the attention kernels, and a reference attention in f64.

use crate::common::{Element, Random};
use crate::geometry::KvLayout;
use half::{bf16, f16};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub row: u32,
    pub rows: u32,
    pub position: u32,
    pub table: u32,
    pub table_len: u32,
}

impl KvLayout {
    fn stripe(&self, layer: u32, value: u32, head: u32) -> usize {
        let (shard, within) = (head / self.heads_of_shard, head % self.heads_of_shard);
        let index = ((shard * self.layers + layer) * 2 + value) * self.heads_of_shard + within;
        index as usize * self.stripe_bytes as usize
    }
}

/// An element type of KV. `NAME` is its part of the kernels' names.
pub trait Kv {
    const NAME: &'static str;
    const BYTES: usize;
    const SCALED: bool = false;
    /// Encodes a row: its bytes, its scale, and the values that they represent.
    fn encode(row: &[f64]) -> (Vec<u8>, f32, Vec<f64>);
}

macro_rules! plain {
    ($type:ty) => {
        impl Kv for $type {
            const NAME: &'static str = <$type as Element>::NAME;
            const BYTES: usize = size_of::<$type>();
            fn encode(row: &[f64]) -> (Vec<u8>, f32, Vec<f64>) {
                let rounded: Vec<$type> = row.iter().map(|x| <$type>::of(*x)).collect();
                let bytes = rounded.iter().flat_map(|x| x.to_le_bytes()).collect();
                (bytes, 0.0, rounded.iter().map(|x| x.get()).collect())
            }
        }
    };
}
plain!(f32);
plain!(bf16);
plain!(f16);

impl Kv for i8 {
    const NAME: &'static str = "int8";
    const BYTES: usize = 1;
    const SCALED: bool = true;
    fn encode(row: &[f64]) -> (Vec<u8>, f32, Vec<f64>) {
        let scale = (row.iter().fold(0.0f64, |most, x| most.max(x.abs())) / 127.0) as f32;
        let q: Vec<i8> = row.iter().map(|x| (x / f64::from(scale)).round() as i8).collect();
        (q.iter().map(|q| *q as u8).collect(), scale, q.iter().map(|q| f64::from(*q) * f64::from(scale)).collect())
    }
}

/// Shape of a batch. Spans are pairs (position, rows).
#[derive(Clone, Debug)]
pub struct Shape {
    pub heads: u32,
    pub kv_heads: u32,
    pub shards: u32,
    pub block_tokens: u32,
    pub window: u32,
    pub spans: Vec<(u32, u32)>,
    pub seed: u64,
}

/// A batch. Memory that no row may read is NaN.
pub struct Batch<T> {
    pub shape: Shape,
    pub head_dim: usize,
    pub q: Vec<T>,
    pub q_stride: u32,
    pub kv: Vec<u128>, // aligned bytes
    pub layout: KvLayout,
    pub layer: u32,
    pub scale: f32,
    pub tables: Vec<u32>,
    pub spans: Vec<Span>,
    pub rows: usize,
    pub expected: Vec<f64>,
}

pub fn first_in_window(position: u32, window: u32) -> u32 {
    if window == 0 { 0 } else { (position + 1).saturating_sub(window) }
}

impl<T: Element> Batch<T> {
    pub fn new<K: Kv>(shape: Shape, head_dim: usize) -> Batch<T> {
        let mut random = Random(shape.seed);
        let (tokens, layers, layer) = (shape.block_tokens as usize, 2, 1);
        let elements = tokens * head_dim * K::BYTES;
        let scales_offset = if K::SCALED { elements.next_multiple_of(4) } else { elements };
        let stripe_bytes = scales_offset + if K::SCALED { 4 * tokens } else { 0 };
        // A pool may place blocks further apart than their size.
        let block_bytes = (2 * layers * shape.kv_heads as usize * stripe_bytes).next_multiple_of(16);
        let layout = KvLayout {
            block_bytes: block_bytes as u64,
            stripe_bytes: stripe_bytes as u32,
            scales_offset: scales_offset as u32,
            block_tokens: shape.block_tokens,
            head_dim: head_dim as u32,
            layers: layers as u32,
            kv_heads: shape.kv_heads,
            heads_of_shard: shape.kv_heads / shape.shards,
        };
        let lens: Vec<usize> = shape.spans.iter().map(|(position, rows)| (position + rows) as usize).collect();
        // Block 0 belongs to no sequence and is NaN.
        let blocks: usize = 1 + lens.iter().map(|len| len.div_ceil(tokens)).sum::<usize>();
        let mut order: Vec<u32> = (1..blocks as u32).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i + 1));
        }
        let mut batch = Batch {
            head_dim,
            q: Vec::new(),
            q_stride: (shape.heads as usize * head_dim + 8 * random.below(3)) as u32,
            kv: vec![u128::MAX; (blocks * block_bytes).div_ceil(16)],
            layout,
            layer,
            scale: (4.0 / (head_dim as f64).sqrt()) as f32,
            tables: vec![0; 3],
            spans: Vec::new(),
            rows: 0,
            expected: Vec::new(),
            shape,
        };
        for (i, (position, rows)) in batch.shape.spans.clone().into_iter().enumerate() {
            let table: Vec<u32> = order.drain(..lens[i].div_ceil(tokens)).collect();
            let span = Span {
                row: batch.rows as u32,
                rows,
                position,
                table: batch.tables.len() as u32,
                table_len: table.len() as u32,
            };
            batch.add::<K>(span, &table, &mut random);
        }
        batch
    }

    fn add<K: Kv>(&mut self, span: Span, table: &[u32], random: &mut Random) {
        let (layout, head_dim) = (self.layout, self.head_dim);
        let tokens = layout.block_tokens;
        let (begin, end) = (first_in_window(span.position, self.shape.window), span.position + span.rows);
        // Blocks that lie entirely before the window may belong to anyone.
        self.tables.extend(table.iter().enumerate().map(
            |(i, block)| {
                if (i as u32 + 1) * tokens <= begin { 0 } else { *block }
            },
        ));
        let first = self.q.len();
        self.q.extend(random.vector::<T>(span.rows as usize * self.q_stride as usize));
        let mut kv = vec![]; // rows at [kv head][K, V][position - begin]
        // SAFETY: every bit pattern is a valid u128.
        let slab = unsafe { std::slice::from_raw_parts_mut(self.kv.as_mut_ptr().cast::<u8>(), 16 * self.kv.len()) };
        for head in 0..layout.kv_heads {
            for value in 0..2 {
                let stripe = layout.stripe(self.layer, value, head);
                for position in begin..end {
                    let (block, token) = (table[(position / tokens) as usize], (position % tokens) as usize);
                    let at = block as usize * layout.block_bytes as usize + stripe;
                    // Rows have different magnitudes, so that int8 scales differ.
                    let size = if value == 1 { 0.25 + random.signed().abs() } else { 1.0 };
                    let row: Vec<f64> = (0..head_dim).map(|_| random.signed() * size).collect();
                    let (bytes, scale, exact) = K::encode(&row);
                    slab[at + token * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
                    if K::SCALED {
                        let at = at + layout.scales_offset as usize + 4 * token;
                        slab[at..][..4].copy_from_slice(&scale.to_le_bytes());
                    }
                    kv.push(exact);
                }
            }
        }
        let len = (end - begin) as usize;
        for row in 0..span.rows {
            let position = span.position + row;
            let low = (first_in_window(position, self.shape.window) - begin) as usize;
            let own = (position - begin) as usize;
            for head in 0..self.shape.heads as usize {
                let kv_head = head / (self.shape.heads / layout.kv_heads) as usize;
                let (keys, values) = (&kv[2 * kv_head * len..][..len], &kv[(2 * kv_head + 1) * len..][..len]);
                let q = &self.q[first + row as usize * self.q_stride as usize + head * head_dim..][..head_dim];
                self.expected.extend(attend(q, &keys[low..=own], &values[low..=own], f64::from(self.scale)));
            }
        }
        self.spans.push(span);
        self.rows += span.rows as usize;
    }
}

/// Reference: softmax(scale · q · K) V.
fn attend<T: Element>(q: &[T], keys: &[Vec<f64>], values: &[Vec<f64>], scale: f64) -> Vec<f64> {
    let scores: Vec<f64> =
        keys.iter().map(|k| scale * q.iter().zip(k).map(|(q, k)| q.get() * k).sum::<f64>()).collect();
    let most = scores.iter().fold(f64::NEG_INFINITY, |most, x| most.max(*x));
    let weights: Vec<f64> = scores.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..q.len()).map(|dim| weights.iter().zip(values).map(|(w, v)| w * v[dim]).sum::<f64>() / sum).collect()
}
