package cleave

import (
	"time"

	"cleave/go/internal/capi"
)

// EventType is the type of an [Event].
type EventType uint8

// Types of events. Later versions may add types: skip those that you do not know.
const (
	// EventToken: a token was generated. Token, Index, Logprob and Top are set.
	EventToken EventType = 1
	// EventFinished: the request has ended. It is always the last event. Reason, KV, Index and CachedTokens are set.
	EventFinished EventType = 2
	// EventKVStreamStarted: the engine has begun to compute the prompt. KV is its handle, to which KV is still being
	// added; see [Request.StreamKV].
	EventKVStreamStarted EventType = 6
)

// FinishReason is the reason for the end of a request.
type FinishReason uint8

// Reasons for the end of a request.
const (
	// FinishStop: a stop id, a stop sequence or one of the model's EOS ids was generated.
	FinishStop FinishReason = 1
	// FinishLength: MaxNewTokens was reached, or the model's context is full.
	FinishLength FinishReason = 2
	// FinishPrefilled: a prefill engine has computed the prompt, and KV is the handle to continue from.
	FinishPrefilled FinishReason = 3
	// FinishExported: [Stream.Export] ended the request, and KV is the handle to continue from.
	FinishExported FinishReason = 4
	// FinishError: the request failed; the error that comes with the event gives the reason.
	FinishError FinishReason = 5
)

// String returns the reason's name in the C API, in lower case: "stop", "length", ...
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
	// Reason is the reason for the end of the request. Set by EventFinished.
	Reason FinishReason
	// Recomputed tells that the handle's KV did not arrive and was computed here; see [Request.Recompute]. Set by
	// EventFinished.
	Recomputed bool
	// Token is the token's id.
	Token int32
	// Logprob is the natural logarithm of the token's probability. Set with [Request.Logprobs].
	Logprob float32
	// Index is the token's position after the end of the prompt, from 0. In EventFinished it is the number of generated
	// tokens.
	Index int
	// CachedTokens is the number of prompt tokens found in the prefix cache; 0 for a request that continues a KV
	// handle. Set by EventFinished.
	CachedTokens int
	// Top holds the most likely tokens at the token's position, best first: [Request.TopLogprobs] of them.
	Top []TokenLogprob
	// KV is the handle if the request hands one over. The caller owns it, and submits or closes it. EventFinished
	// carries the same handle as EventKVStreamStarted did.
	KV *KV
	// Time is when the engine sent the event, on the monotonic clock. It does not include the time until the event is
	// read.
	Time time.Time
}

// noted is an event that a stream keeps until it is read: a token or the start of a KV stream.
type noted struct {
	kv          *KV // handle of EventKVStreamStarted
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

// finishedEvent converts the last event of a request.
func finishedEvent(e *capi.Event, kv *KV) Event {
	return Event{
		Type: EventFinished, Reason: FinishReason(e.FinishReason), Index: int(e.Index), KV: kv,
		CachedTokens: int(e.CachedTokens), Recomputed: e.Flags&capi.EventRecomputed != 0,
		Time: monotonicTime(e.TimestampNS),
	}
}
