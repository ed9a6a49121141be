// What the host tells kernels of a batch and of KV in blocks. The Rust twins are in src/backend/cuda/launch.rs.
#pragma once

#include "types.cuh"

namespace cleave {

// Rows of one sequence in a batch: consecutive tokens at consecutive positions. Rows attend to positions 0..=own.
struct Span {
    uint32_t row, rows;
    uint32_t position; // of the first row
    uint32_t table, table_len; // its block table in the batch's tables
};

// A block is [shard][layer][K, V][kv head of the shard] of stripes; a stripe is [token][head_dim] elements, with int8
// followed by zeros up to scales_offset and by [token] float scales. See src/backend/geometry.rs.
struct KvLayout {
    uint64_t block_bytes;
    uint32_t stripe_bytes;
    uint32_t scales_offset; // in a stripe
    uint32_t block_tokens;
    uint32_t head_dim;
    uint32_t layers;
    uint32_t kv_heads;       // of all shards
    uint32_t heads_of_shard; // kv_heads / shards

    // Where in a block the stripe of K or V of a head begins; heads count over all shards.
    __device__ uint64_t stripe(uint32_t layer, uint32_t value, uint32_t head) const
    {
        const uint32_t shard = head / heads_of_shard, within = head % heads_of_shard;
        return uint64_t(((shard * layers + layer) * 2 + value) * heads_of_shard + within) * stripe_bytes;
    }
};

// Attention over a long context is done in pieces of so many positions, which begin at its multiples: where they lie
// depends on nothing but the row's own position and window.
constexpr uint32_t decode_split = 256;

// A piece of a row's context, for attention_decode. At least one of its positions is one that the row attends to.
struct DecodeWork {
    uint32_t row;   // of q and out
    uint32_t span;  // that the row is of
    uint32_t first; // position: a multiple of decode_split
    uint32_t slot;  // of the workspace for what comes out; or no_slot for the only piece of a row, which goes to out
};
constexpr uint32_t no_slot = 0xffffffffu;

// A row whose pieces attention_merge puts together. They have consecutive slots, in the order of positions.
struct DecodeMerge {
    uint32_t row;
    uint32_t slot, slots;
};

// A tile of query rows, for attention_prefill: as many from `first_row` (counted in the span) as one tile takes.
struct PrefillWork {
    uint32_t span, first_row;
};

} // namespace cleave
