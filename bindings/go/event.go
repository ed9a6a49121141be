package cleave

import (
	"time"

	"cleave/go/internal/capi"
)

// EventType is the type of an [Event].
type EventType uint8

// Types of events. A later version may add some: skip those that you do not know.
const (
	// EventToken: a token was generated. Token, Index, Logprob and Top are set.
	EventToken EventType = 1
	// EventFinished: the request has ended; always its last event. Reason, KV, Index and CachedTokens are set.
	EventFinished EventType = 2
	// EventKVStreamStarted: the prompt's turn has come, and KV is its handle, still being filled; see [Request.StreamKV].
	EventKVStreamStarted EventType = 6
)

// FinishReason is why a request has ended.
type FinishReason uint8

// Reasons.
const (
	// FinishStop: a stop id or stop sequence, or one of the model's EOS ids.
	FinishStop FinishReason = 1
	// FinishLength: MaxNewTokens, or the model's context is full.
	FinishLength FinishReason = 2
	// FinishPrefilled: a prefill engine has done its part, and KV is the handle to continue from.
	FinishPrefilled FinishReason = 3
	// FinishExported: by [Stream.Export], and KV is the handle to continue from.
	FinishExported FinishReason = 4
	// FinishError: the error that comes with the event says why.
	FinishError FinishReason = 5
)

// String returns the reason as the C API names it, in lower case: "stop", "length", ...
func (r FinishReason) String() string {
	switch r {
	case FinishStop:
		return "stop"
	case FinishLength:
		return "length"
	case FinishPrefilled:
		return "prefilled"
	case FinishExported:
		return "exported"
	case FinishError:
		return "error"
	}
	return "unknown"
}

// TokenLogprob is a token and the natural logarithm of its probability.
type TokenLogprob struct {
	Token   int32
	Logprob float32
}

// Event reports progress of a request. Fields that do not apply to its type are zero.
type Event struct {
	Type EventType
	// Reason is why the request has ended.
	Reason FinishReason
	// Recomputed: the KV of the handle did not come and was computed anew; see [Request.Recompute]. Of EventFinished.
	Recomputed bool
	// Token is the token's id.
	Token int32
	// Logprob is the natural logarithm of the token's probability, with [Request.Logprobs].
	Logprob float32
	// Index is the token's number since the end of the prompt, from 0; of EventFinished, how many there were.
	Index int
	// CachedTokens is how many prompt tokens the prefix cache had; none of a request that continues a KV handle. Of
	// EventFinished.
	CachedTokens int
	// Top are the likeliest tokens at the token's place, best first: [Request.TopLogprobs] of them.
	Top []TokenLogprob
	// KV is the handle, if the request hands one over, and the caller's: to submit or to close. EventFinished carries
	// the same one as EventKVStreamStarted did.
	KV *KV
	// Time is when the engine said it, on the monotonic clock: what it had to wait to be read is not in it.
	Time time.Time
}

// noted is a token as a stream keeps it until it is read.
type noted struct {
	kv          *KV // of EventKVStreamStarted
	top         []TokenLogprob
	timestampNS uint64
	token       int32
	index       uint32
	logprob     float32
}

func (n *noted) event() Event {
	if n.kv != nil {
		return Event{Type: EventKVStreamStarted, KV: n.kv, Time: monotonicTime(n.timestampNS)}
	}
	return Event{
		Type: EventToken, Token: n.token, Index: int(n.index), Logprob: n.logprob, Top: n.top,
		Time: monotonicTime(n.timestampNS),
	}
}

// finishedEvent is the last event of a request.
func finishedEvent(e *capi.Event, kv *KV) Event {
	return Event{
		Type: EventFinished, Reason: FinishReason(e.FinishReason), Index: int(e.Index), KV: kv,
		CachedTokens: int(e.CachedTokens), Recomputed: e.Flags&capi.EventRecomputed != 0,
		Time: monotonicTime(e.TimestampNS),
	}
}
