package cleave

import (
	"context"
	"runtime"
	"sync"
	"time"

	"cleave/go/internal/capi"
)

// KV is a snapshot of a sequence: tokens, KV blocks, sampling state. It comes with the end of a request that hands over
// ([Event.KV]), from [Cache.Import], [Cache.LoadKV] or [KV.Duplicate], and is the caller's: to submit ([Request.KV],
// which consumes it), or to close. It lives until then, until a peer has fetched it, or until its lease is over
// ([CacheConfig.Lease], [KV.Renew]).
//
// Its methods may be called from any goroutine. On a handle that is gone they return [ErrExpired] or [ErrNotFound].
type KV struct {
	cache   *Cache
	id      uint64
	landing *landing // of an import
	cleanup runtime.Cleanup

	mu     sync.Mutex
	taken  bool // a request has it, or is being submitted with it
	closed bool
}

// KVInfo describes a KV handle.
type KVInfo struct {
	// Tokens is the length of the sequence, including a pending token (sampled, but not yet run through the model).
	Tokens int
	// Computed is the number of tokens whose keys and values are in the blocks.
	Computed int
	// Blocks is the number of blocks that the handle holds.
	Blocks int
	// Importing: the import has not finished.
	Importing bool
	// Streaming: the prompt is still being computed.
	Streaming bool
	// TicketBytes and ImageBytes are the sizes of its ticket and its image.
	TicketBytes int64
	ImageBytes  int64
	// LeaseLeft is the time until the handle expires, unless it is renewed.
	LeaseLeft time.Duration
	// Fingerprint is the model's.
	Fingerprint [32]byte
}

// forgotten is a handle that nobody refers to any more and that has to be released.
type forgotten struct {
	cache *Cache
	id    uint64
}

func newKV(cache *Cache, id uint64, landing *landing) *KV {
	kv := &KV{cache: cache, id: id, landing: landing}
	kv.cleanup = runtime.AddCleanup(kv, func(f forgotten) { capi.KVRelease(f.cache.name, f.id) }, forgotten{cache, id})
	return kv
}

// Close releases the handle; its blocks are free once no transfer touches them. A handle that was submitted, fetched,
// closed before or has expired is left alone, so that a deferred Close is right in any case. It always returns nil.
//
// The handle of [EventKVStreamStarted] belongs to its request until that ends: closing it before that takes it from whoever
// imports it, while the request goes on and may end with another handle.
func (kv *KV) Close() error {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if !kv.closed {
		kv.closed = true
		kv.cleanup.Stop()
		if !kv.taken {
			capi.KVRelease(kv.cache.name, kv.id)
		}
	}
	return nil
}

// take gives the handle to a request that is being submitted to an engine over cache.
func (kv *KV) take(cache *Cache) error {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	switch {
	case kv.closed:
		return newError(ErrNotFound, "the KV handle", ErrClosed)
	case kv.taken:
		return newError(ErrExpired, "the KV handle was submitted before")
	case kv.cache != cache:
		return newError(ErrInvalidArgument, "the KV handle is of another cache than the engine: use its ticket")
	}
	kv.taken = true
	return nil
}

// give tells what became of the submission: it was accepted, or the handle is the caller's as before.
func (kv *KV) give(accepted bool) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if accepted {
		kv.cleanup.Stop()
		return
	}
	kv.taken = false
	if kv.closed {
		capi.KVRelease(kv.cache.name, kv.id)
	}
}

// wrap makes an error of what a call on the handle gave.
func (kv *KV) wrap(e *capi.Error) error {
	if e == nil {
		return nil
	}
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if kv.closed {
		return newError(Code(e.Status), e.Message, ErrClosed)
	}
	return kv.cache.wrap(e)
}

// Info describes the handle.
func (kv *KV) Info() (KVInfo, error) {
	defer runtime.KeepAlive(kv)
	i, e := capi.GetKVInfo(kv.cache.name, kv.id)
	return KVInfo{
		Tokens:      int(i.Tokens),
		Computed:    int(i.Computed),
		Blocks:      int(i.Blocks),
		Importing:   i.Flags&capi.KVImporting != 0,
		Streaming:   i.Flags&capi.KVStreaming != 0,
		TicketBytes: int64(i.TicketBytes),
		ImageBytes:  int64(i.ImageBytes),
		LeaseLeft:   time.Duration(i.LeaseLeftMS) * time.Millisecond,
		Fingerprint: i.Fingerprint,
	}, kv.wrap(e)
}

// Tokens returns the ids of the sequence: prompts and generated tokens in order, a pending one (sampled, not yet run
// through the model) last. For an import they are those of its ticket, also after the import failed.
func (kv *KV) Tokens() ([]int32, error) {
	defer runtime.KeepAlive(kv)
	tokens, e := capi.KVTokens(kv.cache.name, kv.id)
	return tokens, kv.wrap(e)
}

// MaxHostData is the most bytes that [KV.SetHostData] takes.
const MaxHostData = 4096

// SetHostData attaches bytes of the caller's own to the sequence, in place of those before: a trace id, say, or the
// state of a detokenizer. Tickets and images made from now on carry them, signed with the cache's secret but readable.
// They stay with the sequence when a request continues it and hands it over again, and in duplicates.
// Errors: [ErrInvalidArgument] (more than [MaxHostData] bytes; an image that was read already does not change).
func (kv *KV) SetHostData(data []byte) error {
	defer runtime.KeepAlive(kv)
	return kv.wrap(capi.KVSetHostData(kv.cache.name, kv.id, data))
}

// HostData returns the bytes that [KV.SetHostData] attached, here or where the sequence came from; none: empty.
func (kv *KV) HostData() ([]byte, error) {
	defer runtime.KeepAlive(kv)
	data, e := capi.KVHostData(kv.cache.name, kv.id)
	return data, kv.wrap(e)
}

// Ticket returns the right to fetch the handle's KV: some hundred signed bytes and four for each token, for
// [Cache.Import] of a cache with the same secret, in this process, on this machine, or elsewhere after [Cache.Listen].
// The handle lives on until that has happened, it is closed or its lease ends. The tokens are readable in it: keep it
// private.
//
// A handle that a ticket was made of may be forgotten: its lease ends it. Without one the garbage collector would.
func (kv *KV) Ticket() ([]byte, error) {
	defer runtime.KeepAlive(kv)
	ticket, e := capi.KVTicket(kv.cache.name, kv.id)
	if e == nil {
		kv.cleanup.Stop()
	}
	return ticket, kv.wrap(e)
}

// Save writes the handle's image to the file path, whole or not at all. The handle lives on.
// Errors: [ErrNotFound] (directory), [ErrExpired], [ErrIO].
func (kv *KV) Save(path string) error {
	defer runtime.KeepAlive(kv)
	return kv.wrap(capi.KVSave(kv.cache.name, kv.id, path))
}

// LoadKV reads an image from a file that [KV.Save] wrote.
// Errors: [ErrNotFound], [ErrCorrupt], [ErrIncompatible], [ErrPermission], [ErrOutOfMemory], [ErrIO].
func (c *Cache) LoadKV(path string) (*KV, error) {
	defer runtime.KeepAlive(c)
	id, e := capi.KVLoad(c.name, path)
	if e != nil {
		return nil, c.wrap(e)
	}
	return newKV(c, id, nil), nil
}

// Duplicate returns a second handle to the same snapshot, which shares its blocks: both can be continued, each its own
// way.
func (kv *KV) Duplicate() (*KV, error) {
	defer runtime.KeepAlive(kv)
	id, e := capi.KVDuplicate(kv.cache.name, kv.id)
	if e != nil {
		return nil, kv.wrap(e)
	}
	return newKV(kv.cache, id, kv.landing), nil
}

// Renew makes the handle live for lease from now on. Errors: [ErrExpired] (too late).
func (kv *KV) Renew(lease time.Duration) error {
	defer runtime.KeepAlive(kv)
	var n numbers
	ms := n.milliseconds("lease", lease)
	if n.err != nil {
		return n.err
	}
	return kv.wrap(capi.KVRenew(kv.cache.name, kv.id, ms))
}

// landed is closed already.
var landed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Landed returns a channel that is closed once the KV of an import is here, or is known not to come: then [KV.Wait]
// returns at once. Of a handle that is no import it is closed already. It works also while a request has the handle.
func (kv *KV) Landed() <-chan struct{} {
	if kv.landing == nil {
		return landed
	}
	return kv.landing.done
}

// Wait waits until the KV of an import has landed, and returns why it did not, if so: [ErrPeer], [ErrExpired],
// [ErrCancelled] and what else may happen to the other side, or the error of ctx. There is no need to wait before the
// handle is submitted: the engine does.
func (kv *KV) Wait(ctx context.Context) error {
	if kv.landing == nil {
		return nil
	}
	select {
	case <-kv.landing.done:
		return kv.landing.err
	default:
	}
	select {
	case <-kv.landing.done:
		return kv.landing.err
	case <-ctx.Done():
		return contextError(ctx)
	}
}
