#include "include/sampling.cuh"

using namespace cleave;

// See sample(). tokens[i] and status[i] (SamplingStatus) belong to rows[i]. Shared: sampling_shared.
extern "C" __global__ void __launch_bounds__(sampling_threads, 1)
    sample_float(float *logits, uint32_t stride, uint32_t vocab, const SamplingRow *rows, const TokenBias *biases,
                 const TokenCount *counts, const uint32_t *masked, uint32_t *tokens, uint32_t *status)
{
    sample(logits, stride, vocab, rows, SamplingLists{biases, counts, masked}, tokens, status);
}
CLEAVE_ENTRY(sample_float)
