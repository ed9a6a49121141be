package kvevents

import (
	"bytes"
	"strings"
	"time"

	cleave "cleave/go"

	"github.com/vmihailenco/msgpack/v5"
)

// medium is vLLM's name for the memory in which an engine computes. Routers count blocks elsewhere as slower ones, so it
// also stands for the memory of an engine on the CPU.
const medium = "GPU"

// dynamoPrefix marks cache salts that Dynamo's sidecar passes on. Its router knows them without.
const dynamoPrefix = "dynamo-cache-salt:"

// Stored tells of blocks of one sequence, one after the other.
type Stored struct {
	Type            string   `msgpack:"type"`
	BlockHashes     []uint64 `msgpack:"block_hashes"`
	ParentBlockHash *uint64  `msgpack:"parent_block_hash"`
	TokenIDs        []int32  `msgpack:"token_ids"`
	BlockSize       int      `msgpack:"block_size"`
	LoraID          *int     `msgpack:"lora_id"`
	Medium          string   `msgpack:"medium"`
	LoraName        *string  `msgpack:"lora_name"`
	CacheSalt       string   `msgpack:"cache_salt,omitempty"`
	GroupIdx        int      `msgpack:"group_idx"`

	salt uint64
}

// Removed tells of blocks that are there no more.
type Removed struct {
	Type        string   `msgpack:"type"`
	BlockHashes []uint64 `msgpack:"block_hashes"`
	Medium      string   `msgpack:"medium"`
	GroupIdx    int      `msgpack:"group_idx"`
}

// Cleared tells that no block is there any more.
type Cleared struct {
	Type string `msgpack:"type"`
}

// Convert turns a batch into vLLM's events, pointers to the types above: consecutive blocks of a sequence are one event. Blocks with a salt that is not
// known any more are left out, because a router would find them for requests without a salt.
func Convert(batch cleave.CacheEvents, saltText func(uint64) string) (events []any) {
	if batch.Snapshot {
		events = append(events, &Cleared{"AllBlocksCleared"})
	}
	for _, event := range batch.Events {
		switch event.Type {
		case cleave.CacheStored:
			text := ""
			if event.Salt != 0 {
				if text = strings.TrimPrefix(saltText(event.Salt), dynamoPrefix); text == "" {
					continue
				}
			}
			if run := last[*Stored](events); run != nil && event.Position > 0 && run.salt == event.Salt && run.GroupIdx == event.Group &&
				run.BlockHashes[len(run.BlockHashes)-1] == event.Parent {
				run.BlockHashes = append(run.BlockHashes, event.Hash)
				run.TokenIDs = append(run.TokenIDs, event.Tokens...)
				continue
			}
			run := &Stored{Type: "BlockStored", BlockHashes: []uint64{event.Hash}, TokenIDs: append([]int32{}, event.Tokens...),
				BlockSize: len(event.Tokens), Medium: medium, CacheSalt: text, GroupIdx: event.Group, salt: event.Salt}
			if event.Position > 0 {
				run.ParentBlockHash = &event.Parent
			}
			events = append(events, run)
		case cleave.CacheRemoved:
			if run := last[*Removed](events); run != nil && run.GroupIdx == event.Group {
				run.BlockHashes = append(run.BlockHashes, event.Hash)
				continue
			}
			events = append(events, &Removed{"BlockRemoved", []uint64{event.Hash}, medium, event.Group})
		case cleave.CacheCleared:
			events = append(events, &Cleared{"AllBlocksCleared"})
		}
	}
	return events
}

// last returns the last event if it is of this type.
func last[T any](events []any) (event T) {
	if len(events) > 0 {
		event, _ = events[len(events)-1].(T)
	}
	return event
}

// encode returns the payload of a message: time, events, data-parallel rank.
func encode(events []any) ([]byte, error) {
	var payload bytes.Buffer
	encoder := msgpack.NewEncoder(&payload)
	encoder.UseCompactInts(true) // as vLLM's encoder does
	err := encoder.Encode([]any{float64(time.Now().UnixNano()) / 1e9, events, 0})
	return payload.Bytes(), err
}
