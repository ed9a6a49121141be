package cleave

import (
	"runtime"

	"cleave/go/internal/capi"
)

// Import takes in a ticket ([KV.Ticket]) or an image ([KV.Image]) of a cache with the same secret. The handle may be
// submitted at once: the request waits for the blocks, and no goroutine has to. [KV.Wait] and [KV.Landed] tell when
// they have come, or that they will not.
//
// Blocks that this cache has already are not moved; blocks of another size or dtype are converted. If the transfer fails
// nothing of it is used, and the exporter's handle stays; a request with [Request.Recompute] goes on all the same. An
// image is checked and copied before Import returns.
//
// Errors: [ErrCorrupt], [ErrIncompatible], [ErrPermission] (other secret), [ErrExpired], [ErrPeer], [ErrOutOfMemory] (no
// free blocks), [ErrWouldBlock] (too many imports on their way).
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

// landing is an import on its way. err is set before done is closed.
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

// land is called once: a receiver leaves its dispatcher with its last event, or is abandoned by it.
func (l *landing) land(err error) {
	l.err = err
	close(l.done)
}
