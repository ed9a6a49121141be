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

	writeTimeout = 30 * time.Second // for a client that takes nothing of its answer
)

// reply is the answer to a generation request: one whole, or a stream. Several goroutines may write to it. A write that
// fails is not reported: the request's context ends then, and with it the request.
type reply struct {
	start  time.Time // of the request: trace events count from here
	stats  *stats
	first  sync.Once
	stream string // content type of a stream

	mu     sync.Mutex
	w      http.ResponseWriter
	open   bool   // the header of a stream is sent: errors are part of it
	traced bool   // the client wants trace events
	early  []byte // those of before the header
}

func newReply(w http.ResponseWriter, r *http.Request, s *stats) *reply {
	return &reply{start: time.Now(), stats: s, stream: eventStream, w: w, traced: r.Header.Get("X-Cleave-Trace") == "1"}
}

// firstToken is called with every token, counts the first, and tells which it is.
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

// send sends a part of a stream, after the header if that is not sent yet.
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

// done ends a stream as it should end.
func (a *reply) done() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.write([]byte("data: [DONE]\n\n"))
	a.traced = false // too late for that
}

// whole sends an answer that is no stream.
func (a *reply) whole(status int, body []byte) {
	http.NewResponseController(a.w).SetWriteDeadline(time.Now().Add(writeTimeout))
	sendJSON(a.w, status, body)
}

// trace tells of a phase of the request, if the client wants to know. `more` are names and values.
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
	text, _ := json.Marshal(v) // of types of ours: cannot fail
	return text
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
