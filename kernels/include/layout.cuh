// Structures by which the host describes a batch and KV blocks to kernels. Their Rust twins are in
// src/backend/cuda/launch.rs.
#pragma once

#include "types.cuh"

namespace cleave {

// Rows of one sequence in a batch: consecutive tokens at consecutive positions. A row attends to positions 0..=its own.
struct Span {
    uint32_t row, rows;
    uint32_t position; // position of the first row
    uint32_t table, table_len; // range of its block table in the batch's tables
};

// Layout of a block: stripes in the order [shard][layer][K, V][kv head of the shard]. A stripe is [token][head_dim]
// elements. An int8 stripe continues with zeros up to scales_offset, then [token] float scales. See
// src/backend/geometry.rs.
struct KvLayout {
    uint64_t block_bytes;
    uint32_t stripe_bytes;
    uint32_t scales_offset; // offset in a stripe
    uint32_t block_tokens;
    uint32_t head_dim;
    uint32_t layers;
    uint32_t kv_heads;       // number over all shards
    uint32_t heads_of_shard; // kv_heads / shards

    // Returns the offset in a block of a head's K or V stripe; heads are numbered over all shards.
    __device__ uint64_t stripe(uint32_t layer, uint32_t value, uint32_t head) const
    {
        const uint32_t shard = head / heads_of_shard, within = head % heads_of_shard;
        return uint64_t(((shard * layers + layer) * 2 + value) * heads_of_shard + within) * stripe_bytes;
    }
};

// Attention over a long context is split at multiples of this many positions. The split depends only on the row's own
// position and window.
constexpr uint32_t decode_split = 256;

// One piece of a row's context, for attention_decode. The row attends to at least one of its positions.
struct DecodeWork {
    uint32_t row;   // row of q and out
    uint32_t span;  // span that contains the row
    uint32_t first; // first position, a multiple of decode_split
    uint32_t slot;  // workspace slot of the result; no_slot if this is the row's only piece, whose result goes to out
};
constexpr uint32_t no_slot = 0xffffffffu;

// A row whose pieces attention_merge combines. Its slots are consecutive and in the order of positions.
struct DecodeMerge {
    uint32_t row;
    uint32_t slot, slots;
};

// A tile of query rows for attention_prefill. It takes as many rows from `first_row` (an index in the span) as fit.
struct PrefillWork {
    uint32_t span, first_row;
};

} // namespace cleave
