#include "include/kv.cuh"

using namespace cleave;

// Works with any grid and block. (block_bytes / 16 / block size / kv_copy_ahead, count) gives each thread four words.
// No shared memory.
extern "C" __global__ void kv_copy(unsigned char *to, const uint32_t *to_ids, const unsigned char *from,
                                   const uint32_t *from_ids, uint64_t block_bytes, uint32_t count)
{
    copy_blocks(to, to_ids, from, from_ids, block_bytes, count);
}
CLEAVE_ENTRY(kv_copy)

// Copies blocks `ids` of a slab to consecutive blocks of `staging`.
extern "C" __global__ void kv_gather(unsigned char *staging, const unsigned char *slab, const uint32_t *ids,
                                     uint64_t block_bytes, uint32_t count)
{
    copy_blocks(staging, nullptr, slab, ids, block_bytes, count);
}
CLEAVE_ENTRY(kv_gather)

// Copies consecutive blocks of the staging buffer to blocks `ids` of a slab.
extern "C" __global__ void kv_scatter(unsigned char *slab, const uint32_t *ids, const unsigned char *staging,
                                      uint64_t block_bytes, uint32_t count)
{
    copy_blocks(slab, ids, staging, nullptr, block_bytes, count);
}
CLEAVE_ENTRY(kv_scatter)

// Works with any grid. Block: a multiple of 32 threads; kv_convert_threads is a good choice. The grid (tokens * lanes /
// block size, 2 * layers * kv_heads) gives one row to each group of threads, where lanes is ceil(head_dim / 4) rounded
// up to a power of two, at most 32. No shared memory.
#define KV_CONVERT(From, from_name, To, to_name)                                                                       \
    extern "C" __global__ void kv_convert_##from_name##_##to_name(                                                     \
        const unsigned char *from, const uint32_t *from_table, KvLayout from_layout, unsigned char *to,                \
        const uint32_t *to_table, KvLayout to_layout, uint32_t first, uint32_t end)                                    \
    {                                                                                                                  \
        kv_convert<From, To>(from, from_table, from_layout, to, to_table, to_layout, first, end);                      \
    }                                                                                                                  \
    CLEAVE_ENTRY(kv_convert_##from_name##_##to_name)

#define KV_CONVERT_FROM(From, from_name)                                                                               \
    KV_CONVERT(From, from_name, float, float)                                                                          \
    KV_CONVERT(From, from_name, bf16, bf16)                                                                            \
    KV_CONVERT(From, from_name, f16, f16)                                                                              \
    KV_CONVERT(From, from_name, int8_t, int8)

KV_CONVERT_FROM(float, float)
KV_CONVERT_FROM(bf16, bf16)
KV_CONVERT_FROM(f16, f16)
KV_CONVERT_FROM(int8_t, int8)
