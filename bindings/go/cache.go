package cleave

import (
	"runtime"
	"sync"
	"time"

	"cleave/go/internal/capi"
)

// DType is the data type in which keys and values are stored.
type DType uint32

// Data types of stored keys and values.
const (
	// DTypeDefault is the model's own data type.
	DTypeDefault DType = iota
	DTypeF32
	DTypeF16
	DTypeBF16
	// DTypeI8 stores keys and values as int8, with one scale per token and head.
	DTypeI8
)

// CacheConfig configures a cache. The zero value means default in every field.
type CacheConfig struct {
	// Devices lists the devices that hold the cache: [DeviceCPU] or CUDA ordinals. Default: the CPU.
	Devices []int
	// BytesPerDevice is the memory for KV blocks on each device. Default: 1 GiB.
	BytesPerDevice uint64
	// BlockTokens is the number of tokens in a block, at most 256. Default: 16.
	BlockTokens int
	// DType is the data type of stored keys and values. Default: the model's own.
	DType DType
	// NoPrefix disables the prefix cache: no blocks are kept for later requests that begin with the same tokens.
	NoPrefix bool
	// NoConvert restricts imports to KV of the cache's own layout. KV of another block size or dtype fails with
	// [ErrIncompatible] instead of being converted.
	NoConvert bool
	// ShareWeights keeps one copy of the weights on a CUDA device for all processes of this user on this machine that
	// set it. The first process loads the weights and later ones map them. They stay in memory until the last process
	// is gone. On the CPU weights are always shared.
	ShareWeights bool
	// Lease is the lifetime of a KV handle that nobody renews. Default: 30 s.
	Lease time.Duration
	// Secret signs tickets and images: caches with the same secret can import from each other. Processes of the same
	// user on this machine that know the secret can import over shared memory; see [Cache.Listen] for other machines.
	// All zero: a random secret, so that only this process can import from this cache.
	Secret [32]byte
	// PeerTimeout is the longest silence of a peer during a transfer; after it the peer counts as gone. Default: 4 s.
	PeerTimeout time.Duration
	// EventsKept is the number of events about the prefix index that are kept for the readers of [Cache.Events]. Default:
	// none are recorded, and Events fails with [ErrUnsupported].
	EventsKept int
	// Progress reports the loading of the weights: bytes loaded so far, and bytes in total. It runs on the goroutine
	// that creates the cache. If it returns false, everything is freed and [Model.NewCache] fails with [ErrCancelled].
	// If nothing has to be loaded (on the CPU, or if the device already has the weights), it is called once, with done
	// equal to total. It must not create a cache.
	Progress func(done, total uint64) bool
}

// Cache is a pool of KV blocks on a device, with its prefix index and its KV handles. Engines on one cache share
// weights and blocks, and hand KV over without copying it. Its methods may be called from any goroutine.
type Cache struct {
	object
	imports *importQueue
}

// NewCache creates a cache for the model. It allocates the block pool and loads the weights onto the device. Weights
// are loaded once per model and device, however many caches there are.
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
		EventsKept:     n.uint32("EventsKept", config.EventsKept),
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

// Close destroys the cache and every KV handle in it, and ends its transfers, which takes some tens of milliseconds if
// there are any. Engines that still run over the cache continue until they are closed. Close always returns nil, and
// does nothing the second time.
func (c *Cache) Close() error { return c.close() }

// importQueue returns the queue on which the cache receives the results of its imports. The first import creates it.
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
