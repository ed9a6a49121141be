package cleave

import (
	"context"
	"runtime"
	"sync"
	"time"

	"cleave/go/internal/capi"
)

// KV is a snapshot of a sequence: tokens, KV blocks, sampling state. It comes from the last event of a request that
// hands it over ([Event.KV]), or from [Cache.Import], [Cache.LoadKV] or [KV.Duplicate]. The caller owns it, and submits
// it ([Request.KV], which consumes it) or closes it. The handle lives until then, until a peer has fetched it, or until
// its lease ends ([CacheConfig.Lease], [KV.Renew]).
//
// Its methods may be called from any goroutine. Once the handle is gone they return [ErrExpired] or [ErrNotFound].
type KV struct {
	cache   *Cache
	id      uint64
	landing *landing // state of the import; nil if the handle is not imported
	cleanup runtime.Cleanup

	mu     sync.Mutex
	taken  bool // submitted with a request, or being submitted
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
	// Importing tells that the import has not finished.
	Importing bool
	// Streaming tells that the prompt is still being computed.
	Streaming bool
	// TicketBytes and ImageBytes are the sizes of the handle's ticket and image.
	TicketBytes int64
	ImageBytes  int64
	// LeaseLeft is the time until the handle expires, unless it is renewed.
	LeaseLeft time.Duration
	// Fingerprint is the model's fingerprint.
	Fingerprint [32]byte
}

// forgotten holds what is needed to release a handle that the garbage collector has found unreferenced.
type forgotten struct {
	cache *Cache
	id    uint64
}

func newKV(cache *Cache, id uint64, landing *landing) *KV {
	kv := &KV{cache: cache, id: id, landing: landing}
	kv.cleanup = runtime.AddCleanup(kv, func(f forgotten) { capi.KVRelease(f.cache.name, f.id) }, forgotten{cache, id})
	return kv
}

// Close releases the handle. Its blocks become free once no transfer uses them. Close does nothing if the handle is
// already gone (submitted, fetched, closed or expired), so a deferred Close is always right. It always returns nil.
//
// The handle of [EventKVStreamStarted] belongs to its request until the request ends. Closing it earlier makes imports
// of it fail; the request continues, and may end with another handle.
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

// take reserves the handle for a request that is being submitted to an engine over cache.
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

// give ends the reservation: either the request was accepted, or the caller owns the handle as before.
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

// wrap converts an error of a call on the handle.
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

// Tokens returns the ids of the sequence, prompt and generated tokens in order. A pending token (sampled, not yet run
// through the model) comes last. The tokens of an import are those of its ticket, even after the import has failed.
func (kv *KV) Tokens() ([]int32, error) {
	defer runtime.KeepAlive(kv)
	tokens, e := capi.KVTokens(kv.cache.name, kv.id)
	return tokens, kv.wrap(e)
}

// MaxHostData is the largest number of bytes that [KV.SetHostData] accepts.
const MaxHostData = 4096

// SetHostData attaches the caller's own bytes to the sequence, such as a trace id or the state of a detokenizer. They
// replace earlier bytes. Tickets and images made from now on carry them, signed with the cache's secret but readable.
// Duplicates have them too, and they stay with the sequence when a request continues it and hands it over again.
// Errors: [ErrInvalidArgument] (more than [MaxHostData] bytes, or the handle's image has already been read and can no
// longer change).
func (kv *KV) SetHostData(data []byte) error {
	defer runtime.KeepAlive(kv)
	return kv.wrap(capi.KVSetHostData(kv.cache.name, kv.id, data))
}

// HostData returns the bytes that [KV.SetHostData] attached, in this cache or in the one the sequence came from. It is
// empty if there are none.
func (kv *KV) HostData() ([]byte, error) {
	defer runtime.KeepAlive(kv)
	data, e := capi.KVHostData(kv.cache.name, kv.id)
	return data, kv.wrap(e)
}

// Ticket returns a ticket: the right to fetch the handle's KV with [Cache.Import] of a cache with the same secret. That
// cache may be in this process or on this machine, or on another machine after [Cache.Listen]. A ticket has some
// hundred signed bytes and four for each token. The handle lives until its KV is fetched, it is closed or its lease
// ends. The tokens in a ticket are readable: keep it private.
//
// A handle with a ticket may be forgotten: it ends with its lease. The garbage collector releases a forgotten handle
// without one.
func (kv *KV) Ticket() ([]byte, error) {
	defer runtime.KeepAlive(kv)
	ticket, e := capi.KVTicket(kv.cache.name, kv.id)
	if e == nil {
		kv.cleanup.Stop()
	}
	return ticket, kv.wrap(e)
}

// Save writes the handle's image to the file path, whole or not at all. The handle stays valid. Errors: [ErrNotFound]
// (directory), [ErrExpired], [ErrIO].
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

// Duplicate returns a second handle to the same snapshot, which shares its blocks. Each can be continued independently.
func (kv *KV) Duplicate() (*KV, error) {
	defer runtime.KeepAlive(kv)
	id, e := capi.KVDuplicate(kv.cache.name, kv.id)
	if e != nil {
		return nil, kv.wrap(e)
	}
	return newKV(kv.cache, id, kv.landing), nil
}

// Renew sets the handle's remaining lifetime to lease. Errors: [ErrExpired] (too late).
func (kv *KV) Renew(lease time.Duration) error {
	defer runtime.KeepAlive(kv)
	var n numbers
	ms := n.milliseconds("lease", lease)
	if n.err != nil {
		return n.err
	}
	return kv.wrap(capi.KVRenew(kv.cache.name, kv.id, ms))
}

// landed is a channel that is already closed.
var landed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Landed returns a channel that is closed once the import has ended, well or not; [KV.Wait] then returns at once. For a
// handle that was not imported it is closed already. It also works after a request has taken the handle.
func (kv *KV) Landed() <-chan struct{} {
	if kv.landing == nil {
		return landed
	}
	return kv.landing.done
}

// Wait waits until the KV of an import has arrived. It returns the import's error if it failed ([ErrPeer],
// [ErrExpired], [ErrCancelled] and others), or the error of ctx. There is no need to wait before the handle is
// submitted, because the engine waits.
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
