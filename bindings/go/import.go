package cleave

import (
	"runtime"

	"cleave/go/internal/capi"
)

// Import imports a ticket ([KV.Ticket]) or an image ([KV.Image]) of a cache with the same secret. The handle may be
// submitted at once: the engine waits for the blocks, and no goroutine has to. [KV.Wait] and [KV.Landed] report when
// the blocks have arrived or the import has failed.
//
// Blocks that this cache already has are not transferred; blocks of another size or dtype are converted. If the
// transfer fails, nothing of it is used and the exporter keeps its handle. A request with [Request.Recompute] continues
// even then. An image is checked and copied before Import returns.
//
// Errors: [ErrCorrupt], [ErrIncompatible], [ErrPermission] (other secret), [ErrExpired], [ErrPeer], [ErrOutOfMemory]
// (no free blocks), [ErrWouldBlock] (too many imports in progress).
func (c *Cache) Import(data []byte) (*KV, error) {
	defer runtime.KeepAlive(c)
	d, err := c.imports.get()
	if err != nil {
		return nil, err
	}
	l := &landing{done: make(chan struct{})}
	tag, err := d.register(l)
	if err != nil {
		return nil, err
	}
	id, e := capi.KVImport(c.name, d.name, data, tag)
	if e != nil {
		d.forget(tag)
		return nil, c.wrap(e)
	}
	return newKV(c, id, l), nil
}

// landing is an import in progress. err is set before done is closed.
type landing struct {
	done chan struct{}
	err  error
}

func (l *landing) receive(event *capi.Event, _ []TokenLogprob) {
	var err error
	if event.Status != 0 {
		err = newError(Code(event.Status), "the KV did not come")
	}
	l.land(err)
}

func (l *landing) abandon(err error) { l.land(err) }

// land is called exactly once: with the import's last event, or when the dispatcher abandons it.
func (l *landing) land(err error) {
	l.err = err
	close(l.done)
}
