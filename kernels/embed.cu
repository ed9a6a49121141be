#include "include/embed.cuh"

using namespace cleave;

// Grid: rows. Block: any size; embed_threads is a good choice. No shared memory.
#define EMBED(W)                                                                                                       \
    extern "C" __global__ void embed_##W(const W *table, const uint32_t *tokens, float *out, uint32_t rows,            \
                                         uint32_t hidden)                                                              \
    {                                                                                                                  \
        embed<W>(table, tokens, out, rows, hidden);                                                                    \
    }                                                                                                                  \
    CLEAVE_ENTRY(embed_##W)

EMBED(float)
EMBED(bf16)
EMBED(f16)
