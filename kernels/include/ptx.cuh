// All inline PTX of the kernels. Each wrapper has a CPU model in simulator/lanes/src/ptx.hpp.
#pragma once

#include "types.cuh"

#ifdef CLEAVE_SIM
#include <ptx.hpp>
#else

namespace cleave {

// Computes d[16, 8] += a[16, 16] · b[16, 8] across a warp, with a row-major and b column-major, in the fragments of
// mma.m16n8k16. With g = lane / 4 and t = lane % 4: a is rows g, g + 8, g, g + 8 at k 2t, 2t, 2t + 8, 2t + 8; b is k
// 2t, 2t + 8 at column g; d is (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <class T> __device__ inline void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <> __device__ inline void mma16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <> __device__ inline void mma16816<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline uint32_t shared_address(const void *at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// Loads four 8×8 matrices of 16-bit elements from shared memory. Lanes 8i..8i+7 pass the 16-byte aligned addresses of
// the rows of matrix i. A lane receives elements 2 (lane % 4) and the next of row lane / 4 of each matrix.
__device__ inline void ldmatrix(uint32_t (&out)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void ldmatrix_trans(uint32_t (&out)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts an asynchronous copy of 16 bytes from global to shared memory; writes zeros if not `valid`. This thread sees
// the data after cp_async_commit and a cp_async_wait for it; other threads also need a barrier.
__device__ inline void cp_async(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `N` of this thread's latest groups are still pending.
template <int N> __device__ inline void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Loads 16 bytes of global memory that no other thread reads, bypassing the L1 cache; returns zeros if not `valid`.
// Must not read memory that the same kernel writes.
__device__ inline void load_once(uint32_t (&out)[4], const void *global, bool valid)
{
    out[0] = out[1] = out[2] = out[3] = 0;
    asm("{\n.reg .pred valid;\nsetp.ne.u32 valid, %5, 0;\n"
        "@valid ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
        : "+r"(out[0]), "+r"(out[1]), "+r"(out[2]), "+r"(out[3])
        : "l"(global), "r"(uint32_t(valid)));
}

// Returns 2^x with a relative error of at most 2^-22; 0 for -infinity.
__device__ inline float exp2_fast(float x)
{
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// Dynamic shared memory of the block, 16-byte aligned. Kernels carve all their shared arrays from it.
__device__ inline unsigned char *shared_memory()
{
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
}

} // namespace cleave
#endif
