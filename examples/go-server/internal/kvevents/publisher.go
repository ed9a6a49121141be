// Package kvevents publishes what enters and leaves the prefix cache on ZeroMQ, as vLLM does: three frames (topic, number,
// msgpack) from a PUB socket, and earlier messages from a ROUTER socket for whoever missed some.
package kvevents

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/zmtp"
)

const (
	// Topic is the first frame of every message.
	Topic = "kv-events"
	// Kept is the most messages that are kept for replay.
	Kept = 10000
	// Ahead is the number of messages that wait for a subscriber that is slow. One that is slower misses some, which the
	// numbers show.
	Ahead = 1000
	// Events is how many events the cache has to keep for this reader.
	Events = 1 << 16

	pause           = 5 * time.Millisecond // between two messages, so that they are few and large
	mostConnections = 64                   // to each socket
	keptBytes       = 64 << 20             // most bytes of messages that are kept for replay
	aheadBytes      = 16 << 20             // most bytes that wait for a slow subscriber, unless it is a single message
	snapshotEvery   = time.Second          // at most: routers that come and go must not keep the cache's lock busy
	acceptPause     = time.Second
	systemBytes     = 64 << 10 // for a peer that the system holds, before messages wait here
)

// Publisher publishes the events of a cache.
type Publisher struct {
	cache    *cleave.Cache
	saltText func(uint64) string
	stop     context.CancelFunc
	listener []net.Listener

	mu          sync.Mutex
	closed      bool
	connections map[net.Conn]struct{}
	messages    []message // the last ones, in order; none without a replay socket
	bytes       int       // of them
	next        uint64    // number of the next message
	subscribers map[*subscriber]struct{}
	snapshot    time.Time          // time at which the reader of the events last began with one
	anew        context.CancelFunc // makes the reader begin anew
	renewal     *time.Timer        // calls anew; nil if nobody waits for a snapshot
}

type message struct {
	number  uint64
	payload []byte
}

type subscriber struct {
	conn     *zmtp.Conn
	topics   map[string]int // number of subscriptions
	messages chan message
	waiting  int // bytes in messages
}

// Start listens at two addresses, of which the second may be empty. saltText returns the text of a cache salt.
func Start(cache *cleave.Cache, address, replay string, saltText func(uint64) string) (*Publisher, error) {
	p := &Publisher{cache: cache, saltText: saltText, connections: make(map[net.Conn]struct{}), subscribers: make(map[*subscriber]struct{}), anew: func() {}}
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	for _, socket := range []struct {
		address, kind string
		serve         func(*zmtp.Conn)
	}{{address, "PUB", p.subscriber}, {replay, "ROUTER", p.replay}} {
		if socket.address == "" {
			continue
		}
		listener, err := net.Listen("tcp", socket.address)
		if err != nil {
			p.Close()
			return nil, err
		}
		p.listener = append(p.listener, listener)
		go p.accept(listener, socket.kind, socket.serve)
	}
	go p.publish(ctx)
	return p, nil
}

// Address returns where subscribers connect.
func (p *Publisher) Address() string { return endpoint(p.listener[0]) }

// Replay returns where earlier messages are, or nothing.
func (p *Publisher) Replay() string {
	if len(p.listener) < 2 {
		return ""
	}
	return endpoint(p.listener[1])
}

// endpoint returns a listener's address as ZeroMQ writes it. Peers put the host's name in the place of a star.
func endpoint(listener net.Listener) string {
	address := listener.Addr().(*net.TCPAddr)
	if address.IP.IsUnspecified() {
		return fmt.Sprintf("tcp://*:%d", address.Port)
	}
	return "tcp://" + address.String()
}

// Close ends all connections.
func (p *Publisher) Close() {
	p.stop()
	for _, listener := range p.listener {
		listener.Close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for conn := range p.connections {
		conn.Close()
	}
}

// keep takes note of a connection for Close. It returns false if the publisher is closed.
func (p *Publisher) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.connections[conn] = struct{}{}
	}
	return !p.closed
}

// end closes a connection that was kept.
func (p *Publisher) end(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.connections, conn)
}

func (p *Publisher) accept(listener net.Listener, kind string, serve func(*zmtp.Conn)) {
	places := make(chan struct{}, mostConnections)
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files, perhaps
			log.Printf("KV events: %v", err)
			time.Sleep(acceptPause)
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		conn.(*net.TCPConn).SetWriteBuffer(systemBytes)
		go func() {
			defer func() { <-places }()
			defer p.end(conn)
			if !p.keep(conn) {
				return
			}
			c, err := zmtp.Handshake(conn, kind)
			if err != nil {
				log.Printf("KV events: %s: %v", conn.RemoteAddr(), err)
				return
			}
			serve(c)
		}()
	}
}

// publish reads the cache's events until the publisher is closed. For a new subscriber it begins anew, with a snapshot.
func (p *Publisher) publish(ctx context.Context) {
	for ctx.Err() == nil {
		reading, anew := context.WithCancel(ctx)
		p.mu.Lock()
		p.anew, p.snapshot = anew, time.Now()
		if p.renewal != nil {
			p.renewal.Stop()
			p.renewal = nil
		}
		p.mu.Unlock()
		for batch, err := range p.cache.Events(reading) {
			if err != nil {
				if reading.Err() == nil {
					log.Printf("KV events: %v", err)
					return
				}
				break
			}
			if events := Convert(batch, p.saltText); len(events) > 0 {
				p.send(events)
			}
			time.Sleep(pause)
		}
		anew()
	}
}

func (p *Publisher) send(events []any) {
	payload, err := encode(events)
	if err != nil {
		log.Printf("KV events: %v", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := message{p.next, payload}
	p.next++
	if len(p.listener) > 1 {
		p.remember(m)
	}
	for s := range p.subscribers {
		if s.waiting > 0 && s.waiting+len(payload) > aheadBytes {
			continue // it is too slow
		}
		select {
		case s.messages <- m:
			s.waiting += len(payload)
		default: // it is too slow
		}
	}
}

// remember keeps a message for replay. Where that makes too many, a tenth is dropped at once. Called with the mutex held.
func (p *Publisher) remember(m message) {
	p.messages = append(p.messages, m)
	p.bytes += len(m.payload)
	if len(p.messages) <= Kept && p.bytes <= keptBytes {
		return
	}
	drop := 0
	for drop < len(p.messages)-1 && (len(p.messages)-drop > Kept*9/10 || p.bytes > keptBytes/10*9) {
		p.bytes -= len(p.messages[drop].payload)
		drop++
	}
	p.messages = slices.Delete(p.messages, 0, drop)
}

// renew lets the reader of the events begin anew, now or when the last snapshot is old enough. Called with the mutex held.
func (p *Publisher) renew() {
	if p.renewal == nil {
		p.renewal = time.AfterFunc(time.Until(p.snapshot.Add(snapshotEvery)), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.anew()
		})
	}
}

// subscriber serves a connection to a SUB socket.
func (p *Publisher) subscriber(conn *zmtp.Conn) {
	s := &subscriber{conn: conn, topics: make(map[string]int), messages: make(chan message, Ahead)}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.subscribers, s)
		close(s.messages)
	}()
	go func() {
		for m := range s.messages {
			if conn.Write([]byte(Topic), binary.BigEndian.AppendUint64(nil, m.number), m.payload) != nil {
				conn.Close()
				return
			}
			p.mu.Lock()
			s.waiting -= len(m.payload)
			p.mu.Unlock()
		}
	}()
	for {
		frames, err := conn.Read()
		if err != nil {
			return
		}
		if len(frames) == 1 && len(frames[0]) > 0 {
			p.subscribe(s, frames[0][0] == 1, string(frames[0][1:]))
		}
	}
}

// subscribe adds a topic to those of a subscriber, or removes it. A topic stands for all that begin with it.
func (p *Publisher) subscribe(s *subscriber, wanted bool, topic string) {
	if len(topic) > len(Topic) || Topic[:len(topic)] != topic {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if wanted {
		s.topics[topic]++
	} else if s.topics[topic] > 1 {
		s.topics[topic]--
	} else {
		delete(s.topics, topic)
	}
	if len(s.topics) == 0 {
		delete(p.subscribers, s)
	} else if _, is := p.subscribers[s]; !is {
		p.subscribers[s] = struct{}{}
		p.renew()
	}
}

// replay serves a connection to a REQ or DEALER socket: for a number it sends the messages from there on, each as an empty
// frame, its number and its payload, and at the end the number -1.
func (p *Publisher) replay(conn *zmtp.Conn) {
	for {
		frames, err := conn.Read()
		if err != nil || len(frames) == 0 || len(frames[len(frames)-1]) != 8 {
			return
		}
		next := binary.BigEndian.Uint64(frames[len(frames)-1])
		p.mu.Lock()
		end := p.next
		p.mu.Unlock()
		for last := false; !last; {
			m := message{math.MaxUint64, nil}
			if kept := p.kept(next, end); kept != nil {
				m, next = *kept, kept.number+1
			} else {
				last = true
			}
			if conn.Write(nil, binary.BigEndian.AppendUint64(nil, m.number), m.payload) != nil {
				return
			}
		}
	}
}

// kept returns the first message from a number on, or nil if there is none before `end`. A replay takes one at a time, so
// that peers who read slowly keep nothing alive.
func (p *Publisher) kept(from, end uint64) *message {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, _ := slices.BinarySearchFunc(p.messages, from, func(m message, number uint64) int { return cmp.Compare(m.number, number) })
	if at == len(p.messages) || p.messages[at].number >= end {
		return nil
	}
	m := p.messages[at]
	return &m
}
