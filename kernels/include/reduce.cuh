// Reductions over a warp and over a block, each in one fixed order.
#pragma once

#include "ptx.cuh"

namespace cleave {

constexpr uint32_t whole_warp = 0xffffffffu;

struct Sum {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Max {
    template <class T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

// Reduces among `Lanes` neighbours (a power of two) and returns the result in every lane.
template <int Lanes = 32, class T, class Op> __device__ inline T warp_reduce(T value, Op op)
{
    for (int step = Lanes / 2; step > 0; step /= 2)
        value = op(value, __shfl_xor_sync(whole_warp, value, step));
    return value;
}

// Reduces over the block and returns the result in every thread. `scratch` holds one T per warp and may be reused after
// the next barrier.
template <class T, class Op> __device__ inline T block_reduce(T value, Op op, T *scratch)
{
    const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_reduce(value, op);
    if (threadIdx.x % 32 == 0)
        scratch[warp] = value;
    __syncthreads();
    value = scratch[0];
    for (uint32_t i = 1; i < warps; i++)
        value = op(value, scratch[i]);
    return value;
}

} // namespace cleave
