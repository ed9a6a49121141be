package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	eventStream = "text/event-stream; charset=utf-8"
	jsonLines   = "application/x-ndjson"

	writeTimeout = 30 * time.Second // for a client that does not read its answer
)

// reply is the answer to a generation request: whole, or a stream. Several goroutines may write to it. A failed write is
// not reported, because it ends the context of the request.
type reply struct {
	start  time.Time // start of the request: trace events count from here
	stats  *stats
	first  sync.Once
	stream string // content type of a stream

	mu     sync.Mutex
	w      http.ResponseWriter
	open   bool   // the header of a stream is sent: errors are part of it
	traced bool   // the client wants trace events
	early  []byte // trace events from before the header
}

func newReply(w http.ResponseWriter, r *http.Request, s *stats) *reply {
	return &reply{start: time.Now(), stats: s, stream: eventStream, w: w, traced: r.Header.Get("X-Cleave-Trace") == "1"}
}

// firstToken is called for every token. It counts the first one, and returns true for it.
func (a *reply) firstToken() (first bool) {
	a.first.Do(func() {
		a.stats.firsts.Add(1)
		a.stats.firstSum.Add(int64(time.Since(a.start)))
		first = true
	})
	return first
}

// data sends an object as the next event of a stream, or as a line.
func (a *reply) data(v any) {
	if a.stream == jsonLines {
		a.send(append(encode(v), '\n'))
	} else {
		a.send(fmt.Appendf(nil, "data: %s\n\n", encode(v)))
	}
}

// send writes a part of a stream, and before the first part the header.
func (a *reply) send(event []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.open {
		a.open = true
		a.w.Header().Set("Content-Type", a.stream)
		a.w.Header().Set("Cache-Control", "no-cache")
		event = append(a.early, event...)
	}
	a.write(event)
}

// write is called with the mutex held.
func (a *reply) write(event []byte) {
	control := http.NewResponseController(a.w)
	control.SetWriteDeadline(time.Now().Add(writeTimeout))
	a.w.Write(event)
	control.Flush()
}

// done ends a stream that is complete.
func (a *reply) done() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.write([]byte("data: [DONE]\n\n"))
	a.traced = false // no trace events after the end
}

// whole sends an answer that is not a stream.
func (a *reply) whole(status int, body []byte) {
	http.NewResponseController(a.w).SetWriteDeadline(time.Now().Add(writeTimeout))
	sendJSON(a.w, status, body)
}

// trace sends a trace event if the client wants them. `more` are names and values of its fields.
func (a *reply) trace(phase string, more ...any) {
	fields := map[string]any{"phase": phase, "ms": milliseconds(time.Since(a.start))}
	for i := 0; i < len(more); i += 2 {
		fields[more[i].(string)] = more[i+1]
	}
	a.traceEvent(fields)
}

func (a *reply) traceEvent(fields map[string]any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	event := fmt.Appendf(nil, "event: trace\ndata: %s\n\n", encode(fields))
	if a.traced && a.open {
		a.write(event)
	} else if a.traced {
		a.early = append(a.early, event...)
	}
}

func encode(v any) []byte {
	text, _ := json.Marshal(v) // callers pass only types that can be encoded
	return text
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
