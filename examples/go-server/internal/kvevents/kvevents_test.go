package kvevents

import (
	"encoding/binary"
	"math"
	"net"
	"slices"
	"testing"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"
	"cleave/examples/go-server/internal/zmtp"

	"github.com/vmihailenco/msgpack/v5"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// router is a subscriber that keeps what a worker's prefix cache holds.
type router struct {
	t      *testing.T
	conn   *zmtp.Conn
	blocks map[uint64]block
	last   int64 // number of the last message
}

type block struct {
	parent *uint64
	tokens []int32
	salt   string
}

func dial(t *testing.T, endpoint, kind string) *zmtp.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", endpoint[len("tcp://"):])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c, err := zmtp.Handshake(conn, kind)
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	return c
}

func subscribe(t *testing.T, endpoint, topic string) *router {
	t.Helper()
	r := &router{t, dial(t, endpoint, "SUB"), make(map[uint64]block), -1}
	if err := r.conn.Write([]byte("\x01" + topic)); err != nil {
		t.Fatal(err)
	}
	return r
}

// read takes the next message.
func (r *router) read() {
	r.t.Helper()
	frames, err := r.conn.Read()
	if err != nil || len(frames) != 3 || string(frames[0]) != Topic {
		r.t.Fatal(frames, err)
	}
	number := int64(binary.BigEndian.Uint64(frames[1]))
	if r.last >= 0 && number != r.last+1 {
		r.t.Errorf("message %d after %d", number, r.last)
	}
	r.last = number
	r.apply(frames[2])
}

func (r *router) apply(payload []byte) {
	r.t.Helper()
	var batch []msgpack.RawMessage
	var events []map[string]msgpack.RawMessage
	if err := msgpack.Unmarshal(payload, &batch); err != nil || len(batch) != 3 || msgpack.Unmarshal(batch[1], &events) != nil {
		r.t.Fatal(err)
	}
	for _, event := range events {
		get := func(name string, into any) {
			if len(event[name]) == 0 { // nil
				return
			}
			if err := msgpack.Unmarshal(event[name], into); err != nil {
				r.t.Fatal(name, err)
			}
		}
		var kind, salt string
		var hashes []uint64
		get("type", &kind)
		if kind == "AllBlocksCleared" {
			clear(r.blocks)
			continue
		}
		get("block_hashes", &hashes)
		if kind == "BlockRemoved" {
			for _, hash := range hashes {
				delete(r.blocks, hash)
			}
			continue
		}
		var parent *uint64
		var tokens []int32
		var size int
		get("parent_block_hash", &parent)
		get("token_ids", &tokens)
		get("block_size", &size)
		if event["cache_salt"] != nil {
			get("cache_salt", &salt)
		}
		if kind != "BlockStored" || len(tokens) != size*len(hashes) {
			r.t.Fatal(kind, len(tokens), len(hashes))
		}
		for i, hash := range hashes {
			r.blocks[hash] = block{parent, tokens[i*size : (i+1)*size], salt}
			parent = &hash
		}
	}
}

// holds tells whether a prompt's whole blocks are there.
func (r *router) holds(prompt []int32, salt string) bool {
	var parent *uint64
	for at := 0; at+core.BlockTokens <= len(prompt); at += core.BlockTokens {
		found := false
		for hash, b := range r.blocks {
			same := (parent == nil) == (b.parent == nil) && (parent == nil || *parent == *b.parent)
			if same && b.salt == salt && slices.Equal(b.tokens, prompt[at:at+core.BlockTokens]) {
				parent, found = &hash, true
				break
			}
		}
		if !found {
			return false
		}
	}
	return true
}

func TestPublisher(t *testing.T) {
	w := testkit.Start(t, cleave.RoleMixed, func(*rpc.Server, *core.Host) {}, func(c *core.Config) { c.CacheEvents = Events; c.KVBytes = 1 << 20 })
	publisher, err := Start(w.Host.Cache, "127.0.0.1:0", "127.0.0.1:0", w.Host.Salts.Text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(publisher.Close)
	run := func(prompt []int32, salt string) []int32 {
		t.Helper()
		for _, err := range w.Host.Engine.Generate(testkit.Context(t), cleave.Request{Prompt: prompt, MaxNewTokens: 1, CacheSalt: w.Host.Salts.Salt(salt, false)}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		return prompt
	}
	early := run(testkit.Tokens(t, "the old farmer walks to the river"), "") // before anybody subscribes
	one := subscribe(t, publisher.Address(), Topic)
	for !one.holds(early, "") {
		one.read()
	}
	salted := run(testkit.Tokens(t, "what does the red box hold? what does it hold?"), dynamoPrefix+"tenant")
	for !one.holds(salted, "tenant") {
		one.read()
	}
	if one.holds(salted, "") {
		t.Error("a salted prompt counts as one without salt")
	}
	// A late subscriber gets a snapshot, and the early one the same.
	two := subscribe(t, publisher.Address(), "kv")
	for !two.holds(early, "") || !two.holds(salted, "tenant") {
		two.read()
	}
	// A small cache removes blocks.
	most := len(two.blocks)
	for i := range 100 {
		prompt := make([]int32, 4*core.BlockTokens)
		for j := range prompt {
			prompt[j] = int32(10 + (i*7+j)%700)
		}
		run(prompt, "x")
		if i == 50 {
			two.conn.Close() // others do not mind
		}
	}
	for one.last < two.last || one.holds(early, "") || one.holds(salted, "tenant") {
		one.read()
		most = max(most, len(one.blocks))
	}
	metrics, err := w.Host.Engine.Metrics()
	if err != nil || most > metrics.BlocksTotal {
		t.Errorf("%d blocks of %d, %v", most, metrics.BlocksTotal, err)
	}
	// All messages once more.
	replay := dial(t, publisher.Replay(), "DEALER")
	three := &router{t, replay, make(map[uint64]block), -1}
	if err := replay.Write(nil, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	for last := int64(-1); ; {
		frames, err := replay.Read()
		if err != nil || len(frames) != 3 || len(frames[0]) != 0 {
			t.Fatal(frames, err)
		}
		number := binary.BigEndian.Uint64(frames[1])
		if number == math.MaxUint64 {
			if last < one.last {
				t.Errorf("the replay ends with %d, and %d was published", last, one.last)
			}
			break
		}
		if int64(number) != last+1 {
			t.Errorf("message %d after %d", number, last)
		}
		last = int64(number)
		three.apply(frames[2])
	}
}
