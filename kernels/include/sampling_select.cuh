// Searches in cumulative sums over a row of logits, by one block. All sums are integers, so their order does not
// matter.
#pragma once

#include "reduce.cuh"
#include "sampling_math.cuh"

namespace cleave {

constexpr uint32_t nothing = 0xffffffffu;

// Index at which a cumulative sum first exceeds a target, and the sum before it. If it never does: `nothing` and the
// total.
struct Found {
    uint32_t index;
    Weight before;
};

// Layout of the shared memory.
struct SamplingMemory {
    static constexpr uint32_t bin_bits = 11, bins_len = 1 << bin_bits, list_len = 4096;
    Weight bins[bins_len];
    Weight warps[32], segments[32];
    Found found;
    uint32_t listed;
    float list[list_len];
};

struct Sampling {
    const float *row;
    uint32_t vocab;
    SamplingMemory &memory;

    // Calls f(id, logit) for all ids. Whole warps make each call; past the end the logit is NaN.
    template <class F> __device__ void each(F f) const { each_of(row, vocab, f); }

    template <class F> __device__ static void each_of(const float *logits, uint32_t n, F f)
    {
        constexpr uint32_t ahead = 4;
        for (uint32_t base = 0; base < n; base += ahead * blockDim.x) {
            float logit[ahead];
#pragma unroll
            for (uint32_t i = 0; i < ahead; i++) {
                const uint32_t id = base + i * blockDim.x + threadIdx.x;
                logit[i] = id < n ? logits[id] : __uint_as_float(0x7fffffffu);
            }
#pragma unroll
            for (uint32_t i = 0; i < ahead; i++)
                f(base + i * blockDim.x + threadIdx.x, logit[i]);
        }
    }

    template <class T, class Op> __device__ T reduce(T value, Op op) const
    {
        __syncthreads(); // the scratch is free
        return block_reduce(value, op, reinterpret_cast<T *>(memory.warps));
    }

    // Returns the first of n indices at which the sum of measure(i) exceeds `target`.
    template <class Measure> __device__ Found locate(uint32_t n, Weight target, Measure measure) const
    {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
        const uint32_t each = (n + blockDim.x - 1) / blockDim.x;
        const uint32_t begin = min(threadIdx.x * each, n), end = min(begin + each, n);
        Weight sum = 0;
        for (uint32_t i = begin; i < end; i++)
            sum += measure(i);
        Weight before = sum;
        for (uint32_t step = 1; step < 32; step *= 2) {
            const Weight other = __shfl_up_sync(whole_warp, before, step);
            if (lane >= step)
                before += other;
        }
        __syncthreads();
        if (lane == 31)
            memory.warps[warp] = before;
        __syncthreads();
        before -= sum;
        Weight total = 0;
        for (uint32_t i = 0; i < warps; i++) {
            const Weight of_warp = memory.warps[i];
            before += i < warp ? of_warp : 0;
            total += of_warp;
        }
        if (target >= total) {
            if (threadIdx.x == 0)
                memory.found = {nothing, total};
        } else if (before <= target && target < before + sum) {
            uint32_t i = begin;
            for (Weight next = measure(i); before + next <= target; next = measure(i)) {
                before += next;
                i++;
            }
            memory.found = {i, before};
        }
        __syncthreads();
        return memory.found;
    }

    // Returns the id at which the sum of measure(id, logit), in ascending id, exceeds target(the total).
    template <class Measure, class Target> __device__ uint32_t pick(Measure measure, Target target_of) const
    {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
        const uint32_t segment = (vocab + blockDim.x - 1) / blockDim.x * 32;
        const uint32_t begin = min(warp * segment, vocab), end = min(begin + segment, vocab);
        Weight sum = 0;
#pragma unroll 4
        for (uint32_t id = begin + lane; id < end; id += 32)
            sum += measure(id, row[id]);
        sum = warp_reduce(sum, Sum());
        __syncthreads();
        if (lane == 0)
            memory.segments[warp] = sum;
        __syncthreads();
        Weight total = 0, before = 0;
        for (uint32_t i = 0; i < warps; i++)
            total += memory.segments[i];
        const Weight target = target_of(total);
        if (target >= total)
            return nothing;
        uint32_t at = 0;
        while (before + memory.segments[at] <= target)
            before += memory.segments[at++];
        const uint32_t first = at * segment, n = min(segment, vocab - first);
        return first + locate(n, target - before, [&](uint32_t i) { return measure(first + i, row[first + i]); }).index;
    }

    // Returns the bound at the token where the sum of measure(id, logit), in the order of Bound, exceeds target(the
    // total); if it never does, the bound keeps all tokens. A nonzero measure depends on the logit alone; from some id
    // on it may be zero. `bin` ascends in that order and stays below bins_len; finer bins make the search faster. The
    // search sums by bin, then splits the bin that reaches the target by the digits of its sort keys, and finally
    // counts ids among equal logits.
    template <class Measure, class Bin, class Target>
    __device__ Bound select(Measure measure, Bin bin, Target target_of) const
    {
        constexpr uint32_t bits = SamplingMemory::bin_bits, last = SamplingMemory::bins_len - 1;
        clear();
        Weight sum = 0;
        each([&](uint32_t id, float logit) {
            const Weight mine = measure(id, logit);
            const uint32_t at = mine != 0 ? bin(logit) : last;
            sum += mine;
            add(at, at != last ? mine : 0); // the last bin takes all others and is the fullest
        });
        Weight target = target_of(reduce(sum, Sum()));
        Found found = locate(last, target, [&](uint32_t i) { return memory.bins[i]; });
        const uint32_t group = found.index != nothing ? found.index : last;
        target -= found.before;

        if (threadIdx.x == 0)
            memory.listed = 0;
        __syncthreads();
        each([&](uint32_t id, float logit) {
            if (measure(id, logit) == 0 || bin(logit) != group)
                return;
            const uint32_t slot = atomicAdd(&memory.listed, 1u);
            if (slot < SamplingMemory::list_len)
                memory.list[slot] = logit;
        });
        __syncthreads();
        const uint32_t listed = memory.listed;

        uint32_t prefix = 0, known = 0; // high bits of `order`
        while (known < 32) {
            const uint32_t digit = known + bits < 32 ? bits : 32 - known, shift = 32 - known - digit;
            clear();
            const auto count = [&](uint32_t id, float logit) {
                Weight mine = measure(id, logit);
                uint32_t at = 0;
                if (mine != 0) {
                    const uint32_t order = order_of(logit);
                    at = order >> shift & ((1u << digit) - 1);
                    if ((uint64_t(order) >> (shift + digit)) != prefix || bin(logit) != group)
                        mine = 0;
                }
                add(at, mine);
            };
            if (listed <= SamplingMemory::list_len)
                each_of(memory.list, listed, [&](uint32_t, float logit) { count(0, logit); });
            else
                each(count);
            __syncthreads();
            found = locate(1u << digit, target, [&](uint32_t i) { return memory.bins[i]; });
            if (found.index == nothing)
                return no_bound;
            target -= found.before;
            prefix = prefix << digit | found.index;
            known += digit;
        }
        // The target is reached by a single token, or by all equal ones.
        if (memory.bins[found.index] - target <= measure(0, logit_of(prefix)))
            return {prefix, nothing};
        const auto equals = [&](uint32_t id, float logit) {
            const Weight mine = measure(id, logit);
            return mine != 0 && order_of(logit) == prefix ? mine : 0;
        };
        return {prefix, pick(equals, [&](Weight) { return target; })};
    }

  private:
    __device__ void clear() const
    {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < SamplingMemory::bins_len; i += blockDim.x)
            memory.bins[i] = 0;
        __syncthreads();
    }

    // Called by whole warps. If all lanes have the same bin, the warp makes one addition.
    __device__ void add(uint32_t bin, Weight mine) const
    {
        const uint32_t some = __ballot_sync(whole_warp, mine != 0);
        if (some == 0)
            return;
        const int leader = __ffs(some) - 1;
        const uint32_t common = __shfl_sync(whole_warp, bin, leader);
        if (__all_sync(whole_warp, mine == 0 || bin == common)) {
            const Weight sum = warp_reduce(mine, Sum());
            if (threadIdx.x % 32 == leader)
                add_to(memory.bins[common], sum);
        } else if (mine != 0) {
            add_to(memory.bins[bin], mine);
        }
    }

    // Adds in two halves with a carry. Shared memory has no 64-bit addition, and nvcc would emulate it with a spin
    // loop.
    __device__ static void add_to(Weight &bin, Weight mine)
    {
        uint32_t *const halves = reinterpret_cast<uint32_t *>(&bin);
        const uint32_t low = uint32_t(mine);
        const uint32_t carry = atomicAdd(halves, low) > 0xffffffffu - low;
        const uint32_t high = uint32_t(mine >> 32) + carry;
        if (high != 0)
            atomicAdd(halves + 1, high);
    }
};

} // namespace cleave
