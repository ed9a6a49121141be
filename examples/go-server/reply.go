package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"
)

const eventStream = "text/event-stream; charset=utf-8"

// writeTimeout is how long a client may take nothing of its answer.
const writeTimeout = 30 * time.Second

// reply is the answer to one request: server-sent events, or one whole. Several goroutines may write to it. A write that
// fails is not reported: the request's context ends then, and with it the request.
type reply struct {
	start  time.Time // of the request: trace events count from here
	traced bool
	stats  *stats
	first  sync.Once

	mu    sync.Mutex
	w     http.ResponseWriter
	open  bool         // the header is sent
	ended bool         // the last event is sent
	early bytes.Buffer // trace events of before the header
}

func newReply(w http.ResponseWriter, r *http.Request, s *stats) *reply {
	return &reply{start: time.Now(), traced: r.Header.Get("X-Cleave-Trace") == "1", stats: s, w: w}
}

// firstToken is called with every token, counts the first, and tells which it is.
func (a *reply) firstToken() (first bool) {
	a.first.Do(func() {
		a.stats.firstToken(time.Since(a.start))
		first = true
	})
	return first
}

// begin sends the header of a stream: from here on errors are part of it.
func (a *reply) begin(contentType string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open {
		return
	}
	a.open = true
	a.w.Header().Set("Content-Type", contentType)
	a.w.Header().Set("Cache-Control", "no-cache")
	a.w.WriteHeader(http.StatusOK)
	a.write(a.early.Bytes())
}

// write is called with the mutex held.
func (a *reply) write(event []byte) {
	if a.ended {
		return
	}
	control := http.NewResponseController(a.w)
	control.SetWriteDeadline(time.Now().Add(writeTimeout))
	a.w.Write(event)
	control.Flush()
}

// event sends one that is written out already.
func (a *reply) event(event []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.write(event)
}

func (a *reply) data(v any) { a.event(fmt.Appendf(nil, "data: %s\n\n", encode(v))) }

// end sends the last event.
func (a *reply) end(event []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.write(event)
	a.ended = true
}

func (a *reply) done() { a.end([]byte("data: [DONE]\n\n")) }

// trace tells of a phase of the request, if the client wants to know.
func (a *reply) trace(phase string, more map[string]any) {
	a.traceAt(phase, milliseconds(time.Since(a.start)), more)
}

func (a *reply) traceAt(phase string, ms float64, more map[string]any) {
	if !a.traced {
		return
	}
	fields := map[string]any{"phase": phase, "ms": ms}
	maps.Copy(fields, more)
	event := fmt.Appendf(nil, "event: trace\ndata: %s\n\n", encode(fields))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open {
		a.write(event)
	} else {
		a.early.Write(event)
	}
}

// whole sends an answer that is no stream.
func (a *reply) whole(body []byte) {
	a.w.Header().Set("Content-Type", "application/json")
	a.w.WriteHeader(http.StatusOK)
	a.event(body)
}

// line sends one of lines of JSON.
func (a *reply) line(v any) {
	a.begin("application/x-ndjson")
	a.event(append(encode(v), '\n'))
}

// fail answers a request that came to nothing, or ends its stream.
func (a *reply) fail(ctx context.Context, err error) {
	if ctx.Err() != nil && context.Cause(ctx) != errShuttingDown {
		return // nobody is there to be told
	}
	a.mu.Lock()
	open := a.open
	a.mu.Unlock()
	if open {
		a.end(fmt.Appendf(nil, "data: %s\n\n", encode(asReported(ctx, err))))
	} else {
		sendError(a.w, asReported(ctx, err))
	}
}

// asReported is what a client is told of an error.
func asReported(ctx context.Context, err error) *apiError {
	var known *apiError
	if context.Cause(ctx) == errShuttingDown {
		return unavailable(errShuttingDown.Error())
	} else if errors.As(err, &known) {
		return known
	}
	return &apiError{http.StatusInternalServerError, err.Error(), "server_error", "", ""}
}

// encode is JSON on one line, with <, > and & as they are.
func encode(v any) []byte {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	encoder.Encode(v) // of types of ours: cannot fail
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n"))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
