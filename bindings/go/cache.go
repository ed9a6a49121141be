package cleave

import (
	"runtime"
	"sync"
	"time"

	"cleave/go/internal/capi"
)

// DType is how keys and values are stored.
type DType uint32

// Types of stored keys and values.
const (
	// DTypeDefault is the model's own.
	DTypeDefault DType = iota
	DTypeF32
	DTypeF16
	DTypeBF16
	// DTypeI8 is int8 keys and values with a scale per token and head.
	DTypeI8
)

// CacheConfig is how a cache is made. The zero value means default in every field.
type CacheConfig struct {
	// Devices are where it is: [DeviceCPU] or CUDA ordinals. Default: the CPU.
	Devices []int
	// BytesPerDevice is the memory for KV blocks on each device. Default: 1 GiB.
	BytesPerDevice uint64
	// BlockTokens is the number of tokens of a block, at most 256. Default: 16.
	BlockTokens int
	// DType is how keys and values are stored. Default: the model's own.
	DType DType
	// NoPrefix keeps no blocks for later requests with the same beginning.
	NoPrefix bool
	// NoConvert imports only KV of the cache's own layout: that of another block size or dtype is [ErrIncompatible]
	// instead of converted.
	NoConvert bool
	// ShareWeights: one copy of the weights on a CUDA device for all processes of this user on this machine that set it. The
	// first of them loads the weights, later ones map them, and they stay as long as anyone has them. On the CPU weights are
	// shared in any case.
	ShareWeights bool
	// Lease is how long a KV handle lives that nobody renews. Default: 30 s.
	Lease time.Duration
	// Secret signs tickets and images: caches with the same secret can import from each other. All zero: a random one,
	// so that only this process can import what the cache exports. With one, processes of the same user on this machine
	// that know it can import over shared memory (see [Cache.Listen] for other machines).
	Secret [32]byte
	// PeerTimeout: a peer that says nothing for so long in the middle of a transfer is gone. Default: 4 s.
	PeerTimeout time.Duration
	// Progress, if there is one, is told how many bytes of the weights have been loaded, and how many there are, by the
	// goroutine that makes the cache. It returns whether to go on; else everything is freed, and [Model.NewCache] fails
	// with [ErrCancelled]. Where nothing has to be loaded (the CPU, a device that has the weights) it is called once, with
	// done equal to total. It must not make a cache.
	Progress func(done, total uint64) bool
}

// Cache is a pool of KV blocks on a device, with its prefix index and its KV handles. Engines on one cache share weights
// and blocks, and hand KV over without moving any. Its methods may be called from any goroutine.
type Cache struct {
	object
	imports *importQueue
}

// NewCache makes a cache for the model, allocates its pool, and puts the weights on the device, once per model and
// device however many caches there are.
//
// Errors: [ErrInvalidArgument], [ErrNotFound] (device), [ErrUnsupported] (dtype, more than one device),
// [ErrOutOfMemory], [ErrCancelled] (by Progress).
func (m *Model) NewCache(config CacheConfig) (*Cache, error) {
	defer runtime.KeepAlive(m)
	var n numbers
	c := capi.CacheConfig{
		BlockTokens:    n.uint32("BlockTokens", config.BlockTokens),
		DType:          uint32(config.DType),
		BytesPerDevice: config.BytesPerDevice,
		LeaseMS:        n.milliseconds("Lease", config.Lease),
		Secret:         config.Secret,
		PeerTimeoutMS:  n.milliseconds("PeerTimeout", config.PeerTimeout),
	}
	if config.NoPrefix {
		c.Flags |= capi.CacheNoPrefix
	}
	if config.NoConvert {
		c.Flags |= capi.CacheNoConvert
	}
	if config.ShareWeights {
		c.Flags |= capi.CacheShareWeights
	}
	devices := make([]int32, len(config.Devices))
	for i, device := range config.Devices {
		if devices[i] = int32(device); int(devices[i]) != device {
			n.fail("Devices", device)
		}
	}
	if n.err != nil {
		return nil, n.err
	}
	name, e := capi.CacheCreate(m.name, devices, &c, config.Progress)
	if e != nil {
		return nil, m.wrap(e)
	}
	cache := &Cache{imports: &importQueue{}}
	imports := cache.imports
	own(cache, &cache.object, name, func() {
		capi.CacheDestroy(name)
		imports.close()
	})
	return cache, nil
}

// Close ends the cache, every KV handle in it and transfers in and out, which takes some tens of milliseconds if there
// are any. Engines that still run over it go on until they are closed. It always returns nil, and does nothing the
// second time.
func (c *Cache) Close() error { return c.close() }

// importQueue is the queue on which a cache hears of its imports. It is made with the first one.
type importQueue struct {
	mu     sync.Mutex
	queue  *dispatcher
	closed bool
}

func (q *importQueue) get() (*dispatcher, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, newError(ErrNotFound, "the cache", ErrClosed)
	}
	if q.queue == nil {
		d, err := newDispatcher(0)
		if err != nil {
			return nil, err
		}
		q.queue = d
	}
	return q.queue, nil
}

func (q *importQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	if q.queue != nil {
		q.queue.close()
	}
}
