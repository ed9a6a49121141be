package cleave

import (
	"context"
	"slices"
	"testing"
	"time"
)

// index is a reader's view of a prefix index.
type index map[uint64]CacheEvent

func (x index) apply(t *testing.T, batch CacheEvents) {
	t.Helper()
	if batch.Snapshot {
		clear(x)
	}
	for _, event := range batch.Events {
		switch event.Type {
		case CacheStored:
			if _, known := x[event.Hash]; known || len(event.Tokens) != 16 || event.Medium != MediumCPU || event.Group != 0 {
				t.Errorf("%+v", event)
			}
			event.Tokens = append([]int32(nil), event.Tokens...)
			x[event.Hash] = event
		case CacheRemoved:
			if _, known := x[event.Hash]; !known {
				t.Errorf("%+v", event)
			}
			delete(x, event.Hash)
		case CacheCleared:
			clear(x)
		}
	}
}

// follow reads events until the view is what done wants, and returns the number of snapshots.
func (x index) follow(t *testing.T, cache *Cache, done func() bool) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	snapshots := 0
	for batch, err := range cache.Events(ctx) {
		if err != nil {
			t.Fatalf("%v; %d blocks", err, len(x))
		}
		if batch.Snapshot {
			snapshots++
		}
		x.apply(t, batch)
		if done() {
			break
		}
	}
	return snapshots
}

// severalBlocks returns a prompt that fills more than four blocks of 16 tokens.
func severalBlocks(t *testing.T) []int32 { return slices.Repeat(ask(t, "where does anna live?"), 4) }

func TestCacheEvents(t *testing.T) {
	cache := newCache(t, CacheConfig{EventsKept: 1024})
	engine := newEngine(t, cache, EngineConfig{})
	prompt := severalBlocks(t)
	blocks := len(prompt) / 16
	seen := index{}
	first := true
	snapshots := seen.follow(t, cache, func() bool {
		if first { // the empty snapshot has come, so all blocks come as events
			first = false
			generate(t, engine, Request{Prompt: prompt, MaxNewTokens: 1})
		}
		return len(seen) == blocks
	})
	if snapshots != 1 {
		t.Errorf("%d snapshots", snapshots)
	}
	for _, event := range seen {
		if event.Salt != 0 || (event.Position == 0) != (event.Parent == 0) {
			t.Errorf("%+v", event)
		}
		for i, token := range event.Tokens {
			if prompt[16*event.Position+i] != token {
				t.Errorf("%+v", event)
			}
		}
		if parent, known := seen[event.Parent]; event.Position > 0 && (!known || parent.Position != event.Position-1) {
			t.Errorf("%+v", event)
		}
	}
	// A reader that comes later begins with a snapshot. Salted blocks are others.
	generate(t, engine, Request{Prompt: prompt, MaxNewTokens: 1, CacheSalt: 7})
	late := index{}
	late.follow(t, cache, func() bool { return len(late) == 2*blocks })
	for hash := range seen {
		if _, known := late[hash]; !known {
			t.Errorf("%x is gone", hash)
		}
	}
}

// A reader that stops for a while misses events, and gets a snapshot in their place.
func TestCacheEventsAfterAGap(t *testing.T) {
	cache := newCache(t, CacheConfig{EventsKept: 4})
	engine := newEngine(t, cache, EngineConfig{})
	prompt := severalBlocks(t)
	blocks := len(prompt) / 16
	seen := index{}
	rounds := 0
	snapshots := seen.follow(t, cache, func() bool {
		if rounds == 3 {
			return len(seen) == 3*blocks
		}
		rounds++
		generate(t, engine, Request{Prompt: prompt, MaxNewTokens: 1, CacheSalt: uint64(rounds)})
		return false
	})
	if blocks <= 4 || snapshots != 4 {
		t.Errorf("%d blocks, %d snapshots", blocks, snapshots)
	}
}

func TestCacheEventsEnd(t *testing.T) {
	// last returns the error with which the events end, after calling then with each batch.
	last := func(cache *Cache, ctx context.Context, then func()) (last error) {
		for _, err := range cache.Events(ctx) {
			if last = err; err == nil {
				then()
			}
		}
		return last
	}
	expect(t, last(newCache(t, CacheConfig{}), t.Context(), func() {}), ErrUnsupported)
	cache := newCache(t, CacheConfig{EventsKept: 4})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	expect(t, last(cache, ctx, cancel), ErrCancelled, context.Canceled)
	expect(t, last(cache, t.Context(), func() { cache.Close() }), ErrNotFound, ErrClosed)
}

func TestLoad(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	engine := newEngine(t, cache, EngineConfig{MaxSequences: 3, MaxWaiting: 5, MaxBatchTokens: 64})
	prompt := severalBlocks(t)
	generate(t, engine, Request{Prompt: prompt, MaxNewTokens: 4, IgnoreEOS: true})
	eventually(t, "end of the step", func() (bool, any) {
		l, err := engine.Load()
		return err == nil && l.Running == 0 && l.DecodeTokensPerSecond > 0, l
	})
	l := must[EngineLoad](t)(engine.Load())
	if l.Flags != 0 || l.Role != RoleMixed || l.RoleRequested != RoleMixed || l.Waiting+l.Importing+l.Prefilling+l.Decoding != 0 ||
		l.BlocksTotal == 0 || l.BlocksFree != l.BlocksTotal || l.BlocksCached != (len(prompt)+3)/16 || l.BlockTokens != 16 ||
		l.MaxSequences != 3 || l.MaxWaiting != 5 || l.MaxBatchTokens != 64 || l.Steps < 4 || l.RoleSinceStep != 0 ||
		l.PrefillTokensPerSecond <= l.DecodeTokensPerSecond || l.RoleSinceNS > l.TimestampNS {
		t.Errorf("%+v", l)
	}
	stream := submit(t, engine, endless(t))
	must[Event](t)(stream.Next())
	if err := engine.SetRole(RoleDecode); err != nil {
		t.Fatal(err)
	}
	eventually(t, "role in effect", func() (bool, any) {
		l, err := engine.Load()
		return err == nil && l.Role == RoleDecode, l
	})
	switched := must[EngineLoad](t)(engine.Load())
	if switched.RoleSinceStep < l.Steps || switched.DecodingAtSwitch != 1 || switched.Running != 1 || !switched.RoleSince().After(l.RoleSince()) {
		t.Errorf("%+v", switched)
	}
	stream.Close()
}
