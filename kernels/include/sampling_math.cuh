// The arithmetic of src/sampling, operation for operation, so that host and device compute the same bits.
#pragma once

#include "types.cuh"

namespace cleave {

// An unnormalized probability in units of 2^-42 of the likeliest token's. Integer sums do not depend on order, and sums
// over at most 2^22 tokens do not overflow.
using Weight = unsigned long long;
constexpr double weight_one = 4398046511104.0;
constexpr double weight_none_from = 30.0; // e^-30 is less than half a unit

// e^x for -708 <= x <= 0, as in src/sampling/math.rs.
__device__ inline double sampling_exp(double x)
{
    constexpr double log2_e = 1.44269504088896340736, round = 6755399441055744.0;
    constexpr double ln2_hi = 6.931471803691238e-1, ln2_lo = 1.9082149292705877e-10;
    constexpr double inverse_factorials[14] = {
        1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
        1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,     1.0 / 24.0,
        1.0 / 6.0,          0.5,               1.0,              1.0,
    };
    const double shifted = __dadd_rn(__dmul_rn(x, log2_e), round);
    const double n = __dsub_rn(shifted, round);
    const double r = __dsub_rn(__dsub_rn(x, __dmul_rn(n, ln2_hi)), __dmul_rn(n, ln2_lo));
    double p = inverse_factorials[0];
#pragma unroll
    for (int i = 1; i < 14; i++)
        p = __dadd_rn(__dmul_rn(p, r), inverse_factorials[i]);
    const Weight bits = static_cast<Weight>(__double_as_longlong(shifted)) << 52;
    return __dmul_rn(p, __longlong_as_double(static_cast<long long>(bits + 0x3ff0000000000000ull)));
}

struct Softmax {
    double largest, scale; // the largest logit; 1 / temperature

    // Distance of a logit below the largest, at this temperature.
    __device__ double distance(float logit) const { return __dmul_rn(__dsub_rn(largest, double(logit)), scale); }

    // Weight of a logit; 0 for NaN.
    __device__ Weight weight(float logit) const
    {
        const double d = distance(logit);
        if (!(d < weight_none_from))
            return 0;
        // Adding 2^52 rounds to an integer and leaves it in the low bits.
        const double shifted = __dadd_rn(__dmul_rn(sampling_exp(-d), weight_one), 4503599627370496.0);
        return static_cast<Weight>(__double_as_longlong(shifted)) & 0xfffffffffffffull;
    }
};

// Returns 53 random bits as a function of seed and position, as in src/sampling/philox.rs.
__device__ inline Weight sampling_random(uint64_t seed, uint64_t position)
{
    uint32_t counter[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t(counter[0]) * 0xD2511F53u, b = uint64_t(counter[2]) * 0xCD9E8D57u;
        const uint32_t next[4] = {uint32_t(b >> 32) ^ counter[1] ^ key[0], uint32_t(b),
                                  uint32_t(a >> 32) ^ counter[3] ^ key[1], uint32_t(a)};
        for (int i = 0; i < 4; i++)
            counter[i] = next[i];
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return (Weight(counter[1]) << 32 | counter[0]) >> 11;
}

// Sort key of a logit: the larger the logit, the smaller the key. Both zeros have the same key. NaN is not allowed.
__device__ inline uint32_t order_of(float logit)
{
    uint32_t bits = __float_as_uint(logit);
    if (bits == 0x80000000u)
        bits = 0;
    return bits >> 31 ? bits : 0x7fffffffu - bits;
}
__device__ inline float logit_of(uint32_t order)
{
    return __uint_as_float(order >> 31 ? order : 0x7fffffffu - order);
}

// Set of tokens up to a last one, in the order of src/sampling/topk.rs: larger logits first, lower ids on ties.
struct Bound {
    uint32_t order, id;

    __device__ bool keeps(uint32_t of_logit, uint32_t of_id) const
    {
        return of_logit < order || (of_logit == order && of_id <= id);
    }
};
constexpr Bound no_bound = {0xffffffffu, 0xffffffffu};

} // namespace cleave
