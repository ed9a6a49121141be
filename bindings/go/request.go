package cleave

import (
	"math"
	"sync"
	"time"

	"cleave/go/internal/capi"
)

// Request describes a request. The zero value of a field means the default: for a fresh request the value named
// here, for one that continues a KV handle the value of the handle.
type Request struct {
	// Prompt holds token ids. With KV they follow the handle's sequence, and there may be none.
	Prompt []int32
	// KV is the handle to continue from, which must belong to the engine's cache. An accepted request consumes it, and a
	// refused request leaves it as it was.
	KV *KV

	// MaxNewTokens is how many tokens to generate after the last prompt token, over all engines. Default: until the
	// context is full.
	MaxNewTokens int
	// MinNewTokens is the number of tokens before which stop tokens and stop sequences do not end the generation.
	MinNewTokens int
	// Stop holds ids that end the generation, in addition to the model's EOS ids.
	Stop []int32
	// StopSequences are sequences of ids that end it.
	StopSequences [][]int32
	// IgnoreEOS continues the generation after the model's EOS ids.
	IgnoreEOS bool

	// Temperature scales the randomness of sampling. Default: 0, greedy.
	Temperature float32
	// TopK samples from the k most likely tokens. Default: all.
	TopK int
	// TopP samples from the most likely tokens whose probabilities sum to this, in (0, 1]. Default: 1.
	TopP float32
	// MinP drops tokens whose probability is less than this share of the most likely token's, in [0, 1]. Default: 0.
	MinP float32
	// RepetitionPenalty applies to prompt and generated tokens. Default: 1, none.
	RepetitionPenalty float32
	// PresencePenalty and FrequencyPenalty apply to generated tokens. Default: 0, none.
	PresencePenalty  float32
	FrequencyPenalty float32
	// LogitBias is added to the logits of these tokens.
	LogitBias map[int32]float32
	// Seed determines the random numbers: equal seeds give equal samples, whatever else runs. Default: a random one.
	Seed uint64

	// Logprobs reports the log-probability of each token.
	Logprobs bool
	// TopLogprobs is the number of alternatives to report for each token, 0 to 128; more than 0 implies Logprobs.
	TopLogprobs int

	// Priority orders requests: higher ones run first. Default: 0.
	Priority int
	// Timeout is the time after submission at which the engine ends the request with [ErrTimeout]. Default: never. The
	// context of a stream is independent of it.
	Timeout time.Duration
	// CacheSalt restricts prefix sharing: requests share cached prefixes only with requests that have the same salt.
	CacheSalt uint64

	// KeepKV makes the end of the request hand over a KV handle. It is implied on a prefill engine.
	KeepKV bool
	// StreamKV, on a prefill engine, makes [EventKVStreamStarted] carry the handle as soon as the prompt begins to be
	// computed. Its ticket can be sent at once, and the importer pulls finished KV while the rest is computed. The
	// handle belongs to the request. EventFinished carries it if the request ends with its KV; otherwise the handle
	// fails.
	StreamKV bool
	// EmitPending reports the handle's pending token as the first token.
	EmitPending bool
	// OverrideSampling, with a handle, takes every sampling and stop field from this request and none from the handle.
	OverrideSampling bool
	// Recompute computes the handle's KV here from the ticket's tokens if it does not arrive, instead of ending the
	// request with an error. The tokens are the same, later. If the handle was still streaming, its first token (Index
	// 0) is then sampled and reported here, with or without EmitPending.
	Recompute bool
}

// arguments holds requests in the C API's form: one array holds the tokens of all of them.
type arguments struct {
	requests []capi.Request
	tokens   []int32
}

var argumentsPool = sync.Pool{New: func() any { return new(arguments) }}

func (a *arguments) reset() {
	a.requests, a.tokens = a.requests[:0], a.tokens[:0]
}

// place copies tokens into the array and returns their range.
func (a *arguments) place(tokens []int32) capi.Range {
	begin := len(a.tokens)
	a.tokens = append(a.tokens, tokens...)
	return capi.Range{Begin: uint32(begin), Len: uint32(len(tokens))}
}

// add appends a request.
func (a *arguments) add(r *Request, tag uint64) error {
	var n numbers
	c := capi.Request{
		Tag:               tag,
		Prompt:            a.place(r.Prompt),
		Stop:              a.place(r.Stop),
		MaxNewTokens:      n.uint32("MaxNewTokens", r.MaxNewTokens),
		MinNewTokens:      n.uint32("MinNewTokens", r.MinNewTokens),
		TopK:              n.uint32("TopK", r.TopK),
		Priority:          n.uint32("Priority", r.Priority),
		Temperature:       r.Temperature,
		TopP:              r.TopP,
		MinP:              r.MinP,
		RepetitionPenalty: r.RepetitionPenalty,
		PresencePenalty:   r.PresencePenalty,
		FrequencyPenalty:  r.FrequencyPenalty,
		Seed:              r.Seed,
		DeadlineUS:        n.ticks("Timeout", r.Timeout, time.Microsecond, math.MaxUint64),
		CacheSalt:         r.CacheSalt,
	}
	if c.Logprobs = int32(r.TopLogprobs); int(c.Logprobs) != r.TopLogprobs {
		n.fail("TopLogprobs", r.TopLogprobs)
	}
	if r.KV != nil {
		c.KV = r.KV.id
	}
	c.Flags = flag(r.KeepKV, capi.RequestKeepKV) | flag(r.Logprobs, capi.RequestLogprobs) |
		flag(r.EmitPending, capi.RequestEmitPending) | flag(r.IgnoreEOS, capi.RequestIgnoreEOS) |
		flag(r.OverrideSampling, capi.RequestOverrideSampling) | flag(r.StreamKV, capi.RequestStreamKV) |
		flag(r.Recompute, capi.RequestRecompute)
	begin := len(a.tokens)
	for _, sequence := range r.StopSequences {
		a.tokens = append(a.tokens, int32(len(sequence)))
		a.tokens = append(a.tokens, sequence...)
	}
	c.StopSequences = capi.Range{Begin: uint32(begin), Len: uint32(len(a.tokens) - begin)}
	begin = len(a.tokens)
	for token, bias := range r.LogitBias {
		a.tokens = append(a.tokens, token, int32(math.Float32bits(bias)))
	}
	c.LogitBias = capi.Range{Begin: uint32(begin), Len: uint32(len(a.tokens) - begin)}
	if uint64(len(a.tokens)) > math.MaxUint32 {
		n.fail("the number of tokens", len(a.tokens))
	}
	a.requests = append(a.requests, c)
	return n.err
}

func flag(wanted bool, bit uint32) uint32 {
	if wanted {
		return bit
	}
	return 0
}
