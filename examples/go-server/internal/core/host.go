package core

import (
	"sync"
	"sync/atomic"
	"time"

	cleave "cleave/go"
)

// The library's defaults, which protocols report and the library does not.
const (
	BlockTokens    = 16
	MaxSequences   = 64
	MaxBatchTokens = 512
)

// Config describes what a process serves.
type Config struct {
	Model          string // directory
	Name           string // of the model, for clients
	Role           cleave.Role
	Device         int
	KVBytes        uint64
	MaxSequences   int
	MaxBatchTokens int
	Threads        int
	Secret         []byte        // 32 bytes; none: no other process can fetch KV
	KVListen       string        // address where other machines fetch KV
	Lease          time.Duration // lifetime of handles that nobody fetches
	ShareWeights   bool
	CacheEvents    int // events about the prefix cache that are kept for readers
}

// Host is a model with a cache and an engine over it, and the requests that run on them.
type Host struct {
	Config Config
	Model  *cleave.Model
	About  cleave.ModelInfo
	Cache  *cleave.Cache
	Engine *cleave.Engine

	// MaxPromptBytes is the size of the longest text that can fit into the context.
	MaxPromptBytes int

	Requests Requests
	Salts    Salts
	pairs    pairs

	role      atomic.Uint32
	switching sync.Mutex // a switch of the role waits for the one before
}

// Open loads the model. If it fails, it does not close what it has opened, because the process ends.
func Open(config Config) (*Host, error) {
	h := &Host{Config: config}
	h.role.Store(uint32(config.Role))
	var err error
	if h.Model, err = cleave.Load(config.Model); err != nil {
		return nil, err
	}
	if h.About, err = h.Model.Info(); err != nil {
		return nil, err
	}
	longest, err := longestToken(h.Model, h.About.VocabSize)
	if err != nil {
		return nil, err
	}
	h.MaxPromptBytes = longest * h.About.MaxContextTokens
	cache := cleave.CacheConfig{
		Devices:        []int{config.Device},
		BytesPerDevice: config.KVBytes,
		Lease:          config.Lease,
		ShareWeights:   config.ShareWeights,
		EventsKept:     config.CacheEvents,
	}
	copy(cache.Secret[:], config.Secret)
	if h.Cache, err = h.Model.NewCache(cache); err != nil {
		return nil, err
	}
	if config.KVListen != "" { // before the first ticket, which contains this address
		if _, err = h.Cache.Listen(config.KVListen, cleave.ListenConfig{}); err != nil {
			return nil, err
		}
	}
	h.Engine, err = h.Cache.NewEngine(cleave.EngineConfig{
		Role:           config.Role,
		MaxSequences:   config.MaxSequences,
		MaxBatchTokens: config.MaxBatchTokens,
		Threads:        config.Threads,
	})
	return h, err
}

// Close ends the requests that still run, and frees everything.
func (h *Host) Close() {
	h.Engine.Close()
	h.Cache.Close()
	h.Model.Close()
}

// longestToken returns the largest number of bytes of text that one token can stand for.
func longestToken(model *cleave.Model, vocabulary int) (longest int, err error) {
	for token := range vocabulary {
		text, err := model.TokenBytes(int32(token))
		if err != nil {
			return 0, err
		}
		longest = max(longest, len(text))
	}
	return longest, nil
}
