//! Layout of KV in a block. No other module computes offsets in blocks.

use std::ops::Range;

use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;

/// Index of a block in a KV pool.
pub type BlockId = u32;

/// Size and alignment of a token's scale in an int8 stripe, in bytes.
const SCALE: usize = size_of::<f32>();

/// Shape of the KV cache of one model on one device or group of devices. A block holds `block_tokens` tokens of
/// all layers and is contiguous: `[shard][layer][K, V][kv_head of the shard]` of *stripes*. Helpers assume that
/// [`KvGeometry::validate`] passed.
///
/// A stripe is what one K or V head of one layer has in the block: `[token][head_dim]` elements of `dtype`. With
/// int8 these are followed by zeros up to a multiple of 4 bytes and by `[token]` f32 scales ([`super::int8`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvGeometry {
    /// Number of decoder layers.
    pub layers: u32,
    /// Number of KV heads per layer, over all shards together.
    pub kv_heads: u32,
    /// Elements of a K or V head of one token.
    pub head_dim: u32,
    /// Tokens per block.
    pub block_tokens: u32,
    /// Type of the elements as they are stored.
    pub dtype: Dtype,
    /// Number of tensor-parallel shards. Each has `kv_heads / shards` heads; their parts of a block are consecutive.
    pub shards: u32,
}

impl KvGeometry {
    /// INVALID_ARGUMENT unless all sizes are positive, shards divide the heads evenly, and a block's size does not overflow.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("layers", self.layers),
            ("KV heads", self.kv_heads),
            ("head dimension", self.head_dim),
            ("block tokens", self.block_tokens),
            ("tensor-parallel shards", self.shards),
        ] {
            if value == 0 {
                bail!(InvalidArgument, "{field}: expected at least 1, found 0");
            }
        }
        if !self.kv_heads.is_multiple_of(self.shards) {
            bail!(
                InvalidArgument,
                "tensor-parallel shards: expected a divisor of {} KV heads, found {}",
                self.kv_heads,
                self.shards
            );
        }
        // Each factor has 32 bits: in pairs they cannot overflow.
        let (stripes, elements) = (u128::from(self.layers) * u128::from(self.kv_heads), u128::from(self.head_dim));
        let token = 2 * stripes * (elements * self.dtype.size() as u128 + SCALE as u128);
        if token.saturating_mul(u128::from(self.block_tokens) + 1) > isize::MAX as u128 {
            bail!(InvalidArgument, "KV block of {self:?}: expected at most {} bytes", isize::MAX);
        }
        Ok(())
    }

    /// Bytes of a token in one stripe, without its scale.
    pub fn row_bytes(&self) -> usize {
        self.head_dim as usize * self.dtype.size()
    }

    /// Bytes of a token's scale in one stripe; 0 for types other than int8.
    pub fn scale_bytes(&self) -> usize {
        if self.dtype == Dtype::I8 { SCALE } else { 0 }
    }

    /// Start of the scales in a stripe; its end if it has none.
    pub fn scales_offset(&self) -> usize {
        let elements = self.row_bytes() * self.block_tokens as usize;
        if self.dtype == Dtype::I8 { elements.next_multiple_of(SCALE) } else { elements }
    }

    /// Bytes of a stripe: the elements of `block_tokens` tokens, padding and scales.
    pub fn stripe_bytes(&self) -> usize {
        self.scales_offset() + self.scale_bytes() * self.block_tokens as usize
    }

    /// Start of the stripe of `(layer, K or V, head)` in a block, `head` counted over all shards.
    pub fn stripe_offset(&self, layer: usize, value: bool, head: usize) -> usize {
        let (layers, heads) = (self.layers as usize, (self.kv_heads / self.shards) as usize);
        let (shard, head) = (head / heads, head % heads);
        (((shard * layers + layer) * 2 + value as usize) * heads + head) * self.stripe_bytes()
    }

    /// Byte ranges of a stripe outside of its first `valid` tokens.
    pub(crate) fn unused(&self, valid: usize) -> [Range<usize>; 2] {
        let scales = self.scales_offset();
        [valid * self.row_bytes()..scales, scales + valid * self.scale_bytes()..self.stripe_bytes()]
    }

    /// Bytes of K and V of one token over all layers, without padding.
    pub fn token_bytes(&self) -> usize {
        2 * self.layers as usize * self.kv_heads as usize * (self.row_bytes() + self.scale_bytes())
    }

    /// Bytes of a block: all stripes of all layers and shards, with their padding.
    pub fn block_bytes(&self) -> usize {
        2 * self.layers as usize * self.kv_heads as usize * self.stripe_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: KvGeometry =
        KvGeometry { layers: 3, kv_heads: 4, head_dim: 6, block_tokens: 5, dtype: Dtype::Bf16, shards: 1 };

    #[test]
    fn stripes_fill_a_block_without_overlap() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8] {
            for (shards, block_tokens) in [(1, 5), (2, 1), (4, 16)] {
                let g = KvGeometry { dtype, shards, block_tokens, ..BASE };
                g.validate().unwrap();
                let mut offsets = Vec::new();
                for layer in 0..3 {
                    for value in [false, true] {
                        offsets.extend((0..4).map(|head| g.stripe_offset(layer, value, head)));
                    }
                }
                if shards == 1 {
                    assert!(offsets.is_sorted(), "one shard is the plain order");
                }
                offsets.sort_unstable();
                let expected: Vec<usize> = (0..24).map(|index| index * g.stripe_bytes()).collect();
                assert_eq!(offsets, expected, "{g:?}");
                assert_eq!(g.block_bytes(), 24 * g.stripe_bytes());
            }
        }
    }

    #[test]
    fn int8_stripes_are_padded_to_their_scales() {
        let g = KvGeometry { dtype: Dtype::I8, ..BASE };
        assert_eq!((g.scales_offset(), g.stripe_bytes(), g.token_bytes()), (32, 32 + 20, 24 * (6 + 4)));
        assert_eq!(g.unused(5), [30..32, 52..52]);
        assert_eq!(g.unused(2), [12..32, 40..52]);
        assert_eq!((BASE.scales_offset(), BASE.stripe_bytes(), BASE.token_bytes()), (60, 60, 24 * 12));
        // The shards' parts of a block lie one after the other.
        let g = KvGeometry { shards: 2, ..BASE };
        assert_eq!(g.stripe_offset(0, false, 2), g.block_bytes() / 2);
        assert_eq!(g.stripe_offset(0, true, 1), 3 * g.stripe_bytes());
    }

    #[test]
    fn impossible_shapes_are_refused_by_name() {
        let refused = |g: KvGeometry, word: &str| {
            let error = g.validate().unwrap_err();
            assert!(error.message.contains(word), "{error}");
        };
        refused(KvGeometry { block_tokens: 0, ..BASE }, "block tokens: expected at least 1, found 0");
        refused(KvGeometry { shards: 3, ..BASE }, "shards: expected a divisor of 4 KV heads, found 3");
        let most = u32::MAX;
        let huge = KvGeometry { layers: most, kv_heads: most, head_dim: most, block_tokens: most, ..BASE };
        refused(huge, "KV block");
    }
}
