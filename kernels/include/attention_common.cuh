// Shared parts of the paged attention kernels: their inputs, the address of a token's K and V, and converting loads.
#pragma once

#include "layout.cuh"
#include "reduce.cuh"

namespace cleave {

// Inputs of attention. A row of q or out is [heads * D]. Rows lie `q_stride` and `out_stride` elements apart, both
// multiples of 8. q, out, kv and block_bytes are multiples of 16 bytes. heads is a multiple of kv_heads.
template <class T> struct Attention {
    const T *q;
    uint32_t q_stride;
    const unsigned char *kv; // block b begins at b * layout.block_bytes
    KvLayout layout;
    uint32_t layer;
    uint32_t heads;
    float scale;     // factor applied to scores, above 0
    uint32_t window; // 0: no window; else a row at p attends only to positions above p - window
    const uint32_t *tables;
    const Span *spans;
    T *out;
    uint32_t out_stride;
};

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }
constexpr float log2_of_e = 1.44269504f;

// Returns the first position that a row at `position` attends to.
__device__ inline uint32_t first_in_window(uint32_t position, uint32_t window)
{
    return window == 0 || position < window ? 0 : position - window + 1;
}

// Byte offsets from `kv` of one head's K row for a token, and of its scale. V lies `to_values` bytes further.
struct Place {
    uint64_t row, scale;
};
template <class K, int D> struct Head {
    static constexpr uint32_t row_bytes = D * sizeof(K);
    const KvLayout &layout;
    const uint32_t *table;
    uint64_t stripe;

    __device__ Head(const KvLayout &layout, const uint32_t *table, uint32_t layer, uint32_t head)
        : layout(layout), table(table), stripe(layout.stripe(layer, 0, head))
    {
    }
    __device__ uint64_t to_values() const { return uint64_t(layout.heads_of_shard) * layout.stripe_bytes; }
    __device__ Place at(uint32_t position) const
    {
        const uint32_t index = position / layout.block_tokens, token = position - index * layout.block_tokens;
        const uint64_t base = table[index] * layout.block_bytes + stripe;
        return {base + uint64_t(token) * row_bytes, base + layout.scales_offset + token * sizeof(float)};
    }
};
template <class K> constexpr bool scaled = sizeof(K) == 1;

// Rounds both values to T and packs them into a register, the first in the low half.
template <class T> __device__ inline uint32_t pack(float first, float second);
#ifdef CLEAVE_SIM
template <class T> inline uint32_t pack(float first, float second)
{
    return from_float<T>(first).bits | uint32_t(from_float<T>(second).bits) << 16;
}
#else
template <> __device__ inline uint32_t pack<bf16>(float first, float second)
{
    const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
    return __bfloat16_as_ushort(both.x) | uint32_t(__bfloat16_as_ushort(both.y)) << 16;
}
template <> __device__ inline uint32_t pack<f16>(float first, float second)
{
    const __half2 both = __floats2half2_rn(first, second);
    return __half_as_ushort(__low2half(both)) | uint32_t(__half_as_ushort(__high2half(both))) << 16;
}
#endif

// Stores four elements times `factor` in one access; `to` is aligned to the size of four.
template <class T> __device__ __forceinline__ void store_four(T *to, const float (&value)[4], float factor = 1.0f)
{
    struct alignas(4 * sizeof(T)) Four {
        T at[4];
    };
    *reinterpret_cast<Four *>(to) = {from_float<T>(value[0] * factor), from_float<T>(value[1] * factor),
                                     from_float<T>(value[2] * factor), from_float<T>(value[3] * factor)};
}

// Loads `Bytes` bytes (2, or a multiple of 4). With `whole` the address is a multiple of `Bytes` or of 16; without,
// only of 4.
template <int Bytes> struct Raw {
    static constexpr int words = Bytes < 4 ? 1 : Bytes / 4;
    uint32_t word[words];

    __device__ __forceinline__ void load(const unsigned char *at, bool whole)
    {
        struct alignas(8) Two {
            uint32_t word[2];
        };
        struct alignas(16) Four {
            uint32_t word[4];
        };
        if constexpr (Bytes == 2) {
            word[0] = *reinterpret_cast<const uint16_t *>(at);
        } else if constexpr (Bytes == 4) {
            word[0] = *reinterpret_cast<const uint32_t *>(at);
        } else if (!whole) {
#pragma unroll
            for (int i = 0; i < words; i++)
                word[i] = reinterpret_cast<const uint32_t *>(at)[i];
        } else if constexpr (Bytes == 8) {
            const Two two = *reinterpret_cast<const Two *>(at);
            word[0] = two.word[0], word[1] = two.word[1];
        } else {
            static_assert(Bytes % 16 == 0);
#pragma unroll
            for (int i = 0; i < Bytes / 16; i++) {
                const Four four = reinterpret_cast<const Four *>(at)[i];
#pragma unroll
                for (int j = 0; j < 4; j++)
                    word[4 * i + j] = four.word[j];
            }
        }
    }
};

// int8 rows are aligned to only 4 bytes if a block has an odd number of tokens. All other rows are aligned to 16.
template <class K> __device__ inline bool rows_aligned(const KvLayout &layout)
{
    return !scaled<K> || layout.stripe_bytes % 8 == 0;
}

// Returns element i of the raw bytes, without its scale.
template <class K, int Bytes> __device__ __forceinline__ float element(const Raw<Bytes> &raw, int i)
{
    if constexpr (sizeof(K) == 4) {
        return __uint_as_float(raw.word[i]);
    } else if constexpr (sizeof(K) == 2) {
        return to_float(K{static_cast<uint16_t>(i % 2 == 0 ? raw.word[i / 2] & 0xffff : raw.word[i / 2] >> 16)});
    } else {
        // These are the bits of the float 2^23 + (q + 128). This is faster than an integer conversion.
        const uint32_t biased = raw.word[i / 4] ^ 0x80808080u;
        return __uint_as_float(__byte_perm(biased, 0x4b000000u, 0x7440u + i % 4)) - 8388736.0f;
    }
}

// Converts N elements of K to packed pairs of T; int8 elements are multiplied by `scale`.
template <class T, class K, int N>
__device__ __forceinline__ void convert(uint32_t (&out)[N / 2], const Raw<N * sizeof(K)> &raw, float scale = 1.0f)
{
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        if constexpr (same<T, K>)
            out[i] = raw.word[i];
        else if constexpr (scaled<K>)
            out[i] = pack<T>(element<K>(raw, 2 * i) * scale, element<K>(raw, 2 * i + 1) * scale);
        else
            out[i] = pack<T>(element<K>(raw, 2 * i), element<K>(raw, 2 * i + 1));
    }
}

} // namespace cleave
