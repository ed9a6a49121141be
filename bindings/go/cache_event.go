package cleave

import (
	"context"
	"iter"
	"math"
	"runtime"
	"time"

	"cleave/go/internal/capi"
)

// CacheEventType is the type of a [CacheEvent].
type CacheEventType uint32

// Types of cache events. Later versions may add types: skip those that you do not know.
const (
	// CacheStored: a block is in the prefix index from now on. All fields are set.
	CacheStored CacheEventType = 1
	// CacheRemoved: a block has left the index.
	CacheRemoved CacheEventType = 2
	// CacheCleared: all blocks have left the index.
	CacheCleared CacheEventType = 3
)

// Medium is the kind of memory that holds a cache's blocks.
type Medium uint32

// Kinds of memory.
const (
	MediumCPU Medium = 1
	MediumGPU Medium = 2
)

// String returns the medium's name in vLLM's events: "CPU" or "GPU".
func (m Medium) String() string {
	switch m {
	case MediumCPU:
		return "CPU"
	case MediumGPU:
		return "GPU"
	}
	return "UNKNOWN"
}

// CacheEvent is a change of a cache's prefix index. docs/kv-events.md says what a router may conclude from it.
type CacheEvent struct {
	// Sequence is the event's number. The first event of a cache has number 1.
	Sequence uint64
	Type     CacheEventType
	Medium   Medium
	// Hash identifies the block. It covers the salt, the block size and all tokens of the sequence up to the block's end,
	// but not the model.
	Hash uint64
	// Parent is the hash of the block before it in its sequence; 0 for the first block.
	Parent uint64
	// Salt is [Request.CacheSalt] of the requests that share the block. Others never find it.
	Salt uint64
	// Position is the number of the block in its sequence, from 0.
	Position int
	// Group is the cache group of the block: always 0.
	Group int
	// Tokens of the block, for CacheStored. The slice is valid until the next batch is read.
	Tokens []int32
}

// CacheEvents is a batch of cache events.
type CacheEvents struct {
	// Snapshot tells that the reader has to forget what it knew: Events has a CacheStored for each block in the index, each
	// after its parent. This is so in the first batch, and after a gap, when the reader was so slow that events were dropped.
	Snapshot bool
	// Events in order. The slice is valid until the next batch is read.
	Events []CacheEvent
	// Next is the number of the event after these.
	Next uint64
}

const (
	eventsAtOnce = 512
	tokensAtOnce = 1 << 14
)

// Events returns what enters and leaves the prefix index: a snapshot of it first, and then the changes as they happen. Waiting
// for them keeps a thread. Any number of goroutines can read the events of one cache. The sequence ends with an error:
// ctx's, [ErrUnsupported] ([CacheConfig.EventsKept] is 0), or [ErrShutdown] or [ErrNotFound] with [ErrClosed] once the
// cache is closed.
func (c *Cache) Events(ctx context.Context) iter.Seq2[CacheEvents, error] {
	return func(yield func(CacheEvents, error) bool) {
		defer runtime.KeepAlive(c)
		r := eventReader{cache: c, raw: make([]capi.CacheEvent, eventsAtOnce), tokens: make([]int32, tokensAtOnce)}
		batch, err := r.snapshot()
		for err == nil && yield(batch, nil) {
			batch, err = r.read(ctx, batch.Next)
		}
		if err != nil {
			yield(CacheEvents{}, err)
		}
	}
}

// waitSlice is the longest time that a reader spends in one library call, and so how late it notices that its context has
// ended. Closing the cache ends the call at once.
const waitSlice = 250 * time.Millisecond

// eventReader holds the buffers of one reader.
type eventReader struct {
	cache  *Cache
	raw    []capi.CacheEvent
	tokens []int32
	events []CacheEvent
}

// read waits for events from number next on. If they were dropped it takes a snapshot.
func (r *eventReader) read(ctx context.Context, next uint64) (CacheEvents, error) {
	timeout := uint32(waitSlice.Milliseconds())
	if ctx.Done() == nil {
		timeout = math.MaxUint32
	}
	for {
		if ctx.Err() != nil {
			return CacheEvents{}, contextError(ctx)
		}
		got, err := capi.CacheEvents(r.cache.name, next, r.raw, r.tokens, timeout)
		switch {
		case err != nil && Code(err.Status) == ErrExpired:
			return r.snapshot()
		case err != nil:
			return CacheEvents{}, r.cache.wrap(err)
		case got.Events > 0:
			return CacheEvents{Events: r.convert(got.Events), Next: got.Next}, nil
		}
	}
}

func (r *eventReader) snapshot() (CacheEvents, error) {
	for {
		got, err := capi.CacheEventSnapshot(r.cache.name, r.raw, r.tokens)
		if got.Events > len(r.raw) || got.Tokens > len(r.tokens) {
			// The index may grow before the next call.
			r.raw = make([]capi.CacheEvent, max(len(r.raw), got.Events+got.Events/8))
			r.tokens = make([]int32, max(len(r.tokens), got.Tokens+got.Tokens/8))
			continue
		}
		if err != nil {
			return CacheEvents{}, r.cache.wrap(err)
		}
		return CacheEvents{Snapshot: true, Events: r.convert(got.Events), Next: got.Next}, nil
	}
}

func (r *eventReader) convert(n int) []CacheEvent {
	r.events = r.events[:0]
	for i := range r.raw[:n] {
		raw := &r.raw[i]
		r.events = append(r.events, CacheEvent{
			Sequence: raw.Sequence,
			Type:     CacheEventType(raw.Type),
			Medium:   Medium(raw.Medium),
			Hash:     raw.BlockHash,
			Parent:   raw.ParentHash,
			Salt:     raw.CacheSalt,
			Position: int(raw.Position),
			Group:    int(raw.Group),
			Tokens:   r.tokens[raw.TokensBegin:][:raw.NTokens:raw.NTokens],
		})
	}
	return r.events
}
