package kvevents

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"
	"cleave/examples/go-server/internal/zmtp"
)

func start(t *testing.T, replay string) *Publisher {
	t.Helper()
	w := testkit.Start(t, cleave.RoleMixed, func(*rpc.Server, *core.Host) {}, func(c *core.Config) { c.CacheEvents = Events; c.KVBytes = 1 << 20 })
	publisher, err := Start(w.Host.Cache, "127.0.0.1:0", replay, w.Host.Salts.Text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(publisher.Close)
	return publisher
}

// A snapshot takes the cache's lock, so subscribers that come and go must not cause one each.
func TestSnapshotsAreSeldom(t *testing.T) {
	publisher := start(t, "")
	steady := subscribe(t, publisher.Address(), Topic)
	steady.read()
	began, number := time.Now(), steady.last
	for range 20 {
		fickle := subscribe(t, publisher.Address(), Topic)
		fickle.read() // the snapshot that it caused, or one that others did
		for range 1000 {
			fickle.conn.Write([]byte("\x00" + Topic))
			fickle.conn.Write([]byte("\x01" + Topic))
		}
		fickle.conn.Close()
		if time.Since(began) > 3*snapshotEvery {
			break
		}
	}
	publisher.mu.Lock()
	next := int64(publisher.next)
	publisher.mu.Unlock()
	if most := int64(time.Since(began)/snapshotEvery) + 2; next-1-number > most {
		t.Errorf("%d snapshots where %d are allowed", next-1-number, most)
	}
	for steady.last < next-1 {
		steady.read()
	}
}

func TestSubscriptionsTakeLittleMemory(t *testing.T) {
	p := &Publisher{subscribers: make(map[*subscriber]struct{}), anew: func() {}}
	s := &subscriber{topics: make(map[string]int)}
	for range 1000 {
		for n := range len(Topic) + 1 {
			p.subscribe(s, true, Topic[:n])
		}
		p.subscribe(s, true, "x")
	}
	if len(s.topics) != len(Topic)+1 || len(p.subscribers) != 1 {
		t.Error(len(s.topics), len(p.subscribers))
	}
	for range 1000 { // each is to be ended on its own, as in ZeroMQ
		if len(p.subscribers) != 1 {
			t.Fatal("it is forgotten while it has subscriptions")
		}
		for n := range len(Topic) + 1 {
			p.subscribe(s, false, Topic[:n])
		}
	}
	p.subscribe(s, false, Topic)
	if len(s.topics) != 0 || len(p.subscribers) != 0 {
		t.Error(len(s.topics), len(p.subscribers))
	}
}

func TestWhatIsKeptForReplayIsBounded(t *testing.T) {
	p := &Publisher{}
	for i := range 3 * Kept {
		p.remember(message{uint64(i), nil})
		if len(p.messages) > Kept {
			t.Fatal(len(p.messages))
		}
	}
	p = &Publisher{}
	large := make([]byte, keptBytes/100)
	for i := range 1000 {
		p.remember(message{uint64(i), large})
		if p.bytes > keptBytes || p.bytes != len(p.messages)*len(large) {
			t.Fatal(p.bytes, len(p.messages))
		}
	}
	if len(p.messages) < 80 || p.messages[len(p.messages)-1].number != 999 {
		t.Error(len(p.messages))
	}
	publisher := start(t, "")
	subscribe(t, publisher.Address(), Topic).read()
	publisher.mu.Lock()
	defer publisher.mu.Unlock()
	if len(publisher.messages) != 0 {
		t.Error("messages are kept where nobody can ask for them")
	}
}

// Messages that wait for a subscriber that does not read are bounded in number and in bytes; one that is larger than the bound
// gets through alone.
func TestWhatWaitsForASlowSubscriberIsBounded(t *testing.T) {
	s := &subscriber{messages: make(chan message, Ahead)}
	p := &Publisher{subscribers: map[*subscriber]struct{}{s: {}}}
	for range 2 * Ahead {
		p.send([]any{nil})
	}
	if len(s.messages) != Ahead {
		t.Error(len(s.messages))
	}
	s = &subscriber{messages: make(chan message, Ahead)}
	p = &Publisher{subscribers: map[*subscriber]struct{}{s: {}}}
	p.send([]any{make([]byte, 2*aheadBytes)})
	for range 10 {
		p.send([]any{make([]byte, aheadBytes/4)})
	}
	if len(s.messages) != 1 {
		t.Error(len(s.messages))
	}
	s.waiting -= len((<-s.messages).payload) // it was sent
	for range 10 {
		p.send([]any{make([]byte, aheadBytes/4)})
	}
	if len(s.messages) != 3 || s.waiting > aheadBytes || p.next != 21 {
		t.Error(len(s.messages), s.waiting, p.next)
	}
}

func TestCloseEndsAllConnections(t *testing.T) {
	publisher := start(t, "127.0.0.1:0")
	subscribed := subscribe(t, publisher.Address(), Topic)
	subscribed.read()
	others := []*zmtp.Conn{dial(t, publisher.Address(), "SUB"), dial(t, publisher.Replay(), "DEALER")}
	publisher.Close()
	for _, conn := range append(others, subscribed.conn) {
		var err error
		for err == nil { // what was on its way
			_, err = conn.Read()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("it goes on")
		}
	}
}

// faulty is a listener that fails once before it accepts a connection.
type faulty struct {
	net.Listener
	failed chan struct{}
}

func (l *faulty) Accept() (net.Conn, error) {
	select {
	case <-l.failed:
		return l.Listener.Accept()
	default:
		close(l.failed)
		return nil, errors.New("too many open files")
	}
}

func TestAFailedAcceptEndsNothing(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	p := &Publisher{connections: make(map[net.Conn]struct{})}
	go p.accept(&faulty{listener, make(chan struct{})}, "ROUTER", p.replay)
	dial(t, endpoint(listener), "DEALER")
}
