// Package kvevents publishes what enters and leaves the prefix cache on ZeroMQ, as vLLM does: three frames (topic, number,
// msgpack) from a PUB socket, and earlier messages from a ROUTER socket for whoever missed some.
package kvevents

import (
	"context"
	"encoding/binary"
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
	// Kept is the number of messages for replay.
	Kept = 10000
	// Ahead is the number of messages that wait for a subscriber that is slow. One that is slower misses some, which the
	// numbers show.
	Ahead = 1000
	// Events is how many events the cache has to keep for this reader.
	Events = 1 << 16

	pause           = 5 * time.Millisecond // between two messages, so that they are few and large
	mostConnections = 64                   // to each socket
)

// Publisher publishes the events of a cache.
type Publisher struct {
	cache    *cleave.Cache
	saltText func(uint64) string
	stop     context.CancelFunc
	listener []net.Listener

	mu          sync.Mutex
	messages    []message // the last ones, in order
	next        uint64    // number of the next message
	subscribers map[*subscriber]struct{}
	anew        context.CancelFunc // makes the reader of the events begin anew
}

type message struct {
	number  uint64
	payload []byte
}

type subscriber struct {
	conn     *zmtp.Conn
	topics   []string
	messages chan message
}

// Start listens at two addresses, of which the second may be empty. saltText returns the text of a cache salt.
func Start(cache *cleave.Cache, address, replay string, saltText func(uint64) string) (*Publisher, error) {
	p := &Publisher{cache: cache, saltText: saltText, subscribers: make(map[*subscriber]struct{}), anew: func() {}}
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
		go accept(listener, socket.kind, socket.serve)
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
	for s := range p.subscribers {
		s.conn.Close()
	}
}

func accept(listener net.Listener, kind string, serve func(*zmtp.Conn)) {
	places := make(chan struct{}, mostConnections)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		select {
		case places <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		go func() {
			defer func() {
				conn.Close()
				<-places
			}()
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
		p.anew = anew
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
	if len(p.messages) == Kept {
		p.messages = slices.Delete(p.messages, 0, Kept/10)
	}
	p.messages = append(p.messages, m)
	for s := range p.subscribers {
		select {
		case s.messages <- m:
		default: // it is too slow
		}
	}
}

// subscriber serves a connection to a SUB socket.
func (p *Publisher) subscriber(conn *zmtp.Conn) {
	s := &subscriber{conn: conn, messages: make(chan message, Ahead)}
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
		s.topics = append(s.topics, topic)
	} else if at := slices.Index(s.topics, topic); at >= 0 {
		s.topics = slices.Delete(s.topics, at, at+1)
	}
	if len(s.topics) == 0 {
		delete(p.subscribers, s)
	} else if wanted && len(s.topics) == 1 {
		p.subscribers[s] = struct{}{}
		p.anew()
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
		from := binary.BigEndian.Uint64(frames[len(frames)-1])
		p.mu.Lock()
		at, _ := slices.BinarySearchFunc(p.messages, from, func(m message, number uint64) int {
			return int(min(m.number, math.MaxInt64)) - int(min(number, math.MaxInt64))
		})
		messages := slices.Clone(p.messages[at:])
		p.mu.Unlock()
		for _, m := range append(messages, message{math.MaxUint64, nil}) {
			if conn.Write(nil, binary.BigEndian.AppendUint64(nil, m.number), m.payload) != nil {
				return
			}
		}
	}
}
