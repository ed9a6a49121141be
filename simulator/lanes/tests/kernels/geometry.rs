//! KV blocks, and encoding of their rows in plain arithmetic.

use crate::common::{Element, Random};
use half::{bf16, f16};

/// Twin of KvLayout in include/layout.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KvLayout {
    pub block_bytes: u64,
    pub stripe_bytes: u32,
    pub scales_offset: u32,
    pub block_tokens: u32,
    pub head_dim: u32,
    pub layers: u32,
    pub kv_heads: u32,
    pub heads_of_shard: u32,
}

/// Element type of stored KV. `NAME` is its part of the kernels' names.
pub trait Stored: 'static {
    const NAME: &'static str;
    const BYTES: usize;
    const SCALED: bool = false;
    /// Encodes a row; returns the stored elements and their scale.
    fn put(row: &[f32]) -> (Vec<u8>, Option<f32>);
    fn get(bytes: &[u8], scale: Option<f32>) -> Vec<f32>;
}

macro_rules! stored {
    ($type:ty, $bytes:expr, $put:expr, $get:expr) => {
        impl Stored for $type {
            const NAME: &'static str = <$type as Element>::NAME;
            const BYTES: usize = $bytes;
            fn put(row: &[f32]) -> (Vec<u8>, Option<f32>) {
                (row.iter().flat_map(|&x| $put(x)).collect(), None)
            }
            fn get(bytes: &[u8], _: Option<f32>) -> Vec<f32> {
                bytes.chunks_exact($bytes).map(|b| $get(b.try_into().unwrap())).collect()
            }
        }
    };
}
stored!(f32, 4, |x: f32| x.to_le_bytes(), f32::from_le_bytes);
stored!(bf16, 2, |x| bf16::from_f32(x).to_le_bytes(), |b| bf16::from_le_bytes(b).to_f32());
stored!(f16, 2, |x| f16::from_f32(x).to_le_bytes(), |b| f16::from_le_bytes(b).to_f32());

impl Stored for i8 {
    const NAME: &'static str = "int8";
    const BYTES: usize = 1;
    const SCALED: bool = true;
    fn put(row: &[f32]) -> (Vec<u8>, Option<f32>) {
        let absmax = row.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most));
        let scale = f32::from_bits(absmax) / 127.0;
        let divisor = if scale == 0.0 { 1.0 } else { scale };
        // The cast turns NaN into 0.
        let q = |x: &f32| (x / divisor).clamp(-127.0, 127.0).round_ties_even() as i8 as u8;
        (row.iter().map(q).collect(), Some(scale))
    }
    fn get(bytes: &[u8], scale: Option<f32>) -> Vec<f32> {
        bytes.iter().map(|&q| f32::from(q as i8) * scale.unwrap()).collect()
    }
}

impl KvLayout {
    pub fn new<K: Stored>(layers: u32, kv_heads: u32, head_dim: u32, block_tokens: u32, shards: u32) -> KvLayout {
        let elements = head_dim * K::BYTES as u32 * block_tokens;
        let scales_offset = if K::SCALED { elements.next_multiple_of(4) } else { elements };
        let stripe_bytes = scales_offset + if K::SCALED { 4 * block_tokens } else { 0 };
        let block_bytes = u64::from(2 * layers * kv_heads * stripe_bytes);
        let heads_of_shard = kv_heads / shards;
        KvLayout { block_bytes, stripe_bytes, scales_offset, block_tokens, head_dim, layers, kv_heads, heads_of_shard }
    }

    /// Offsets in a slab of a token's row and its scale.
    pub fn place<K: Stored>(&self, block: u32, layer: u32, value: u32, head: u32, token: u32) -> (usize, usize) {
        let (shard, within) = (head / self.heads_of_shard, head % self.heads_of_shard);
        let stripe = ((shard * self.layers + layer) * 2 + value) * self.heads_of_shard + within;
        let stripe = u64::from(block) * self.block_bytes + u64::from(stripe * self.stripe_bytes);
        let row = stripe + u64::from(token * self.head_dim) * K::BYTES as u64;
        (row as usize, (stripe + u64::from(self.scales_offset + 4 * token)) as usize)
    }

    pub fn write<K: Stored>(&self, slab: &mut [u8], place: (usize, usize), row: &[f32]) {
        let (bytes, scale) = K::put(row);
        slab[place.0..][..bytes.len()].copy_from_slice(&bytes);
        if let Some(scale) = scale {
            slab[place.1..][..4].copy_from_slice(&scale.to_le_bytes());
        }
    }

    pub fn read<K: Stored>(&self, slab: &[u8], place: (usize, usize)) -> Vec<f32> {
        let scale = K::SCALED.then(|| f32::from_le_bytes(slab[place.1..][..4].try_into().unwrap()));
        K::get(&slab[place.0..][..self.head_dim as usize * K::BYTES], scale)
    }
}

/// Bytes with the alignment of device memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Bytes(Vec<u128>, usize);

impl Bytes {
    /// Fills the bytes with a pattern that no kernel writes by chance.
    pub fn new(bytes: usize) -> Bytes {
        let mut random = Random(bytes as u64 | 1 << 40);
        let word = |random: &mut Random| u128::from(random.bits()) << 64 | u128::from(random.bits());
        Bytes((0..bytes.div_ceil(16)).map(|_| word(&mut random)).collect(), bytes)
    }
    /// Returns a mutable pointer; kernels take it for reading too.
    pub fn pointer(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the words are initialized, and every bit pattern is a valid u8.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.1) }
    }
}

impl std::ops::DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the words are initialized, and every bit pattern is a valid u8.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.1) }
    }
}
