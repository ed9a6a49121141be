package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	headTimeout = 10 * time.Second // limit for the head of a request
	bodyTimeout = 30 * time.Second // limit for its body
	idleTimeout = 2 * time.Minute  // between two requests
)

// connections limits the number of a server's connections. A new one closes the oldest connection that waits for a
// request or for the rest of one. If all are being answered, the new one is refused.
type connections struct {
	limit int
	mu    sync.Mutex
	since map[net.Conn]time.Time // start of waiting; zero while a request is answered
}

type connectionKey struct{}

// newHTTPServer creates a server that answers with `handler` and has at most `limit` connections.
func newHTTPServer(limit int, handler http.Handler, requests context.Context) *http.Server {
	c := &connections{limit: limit, since: make(map[net.Conn]time.Time)}
	return &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: headTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		ConnState:         c.changed,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, func() { c.answering(conn) })
		},
	}
}

// answering is called once a whole request has arrived. From now on its connection is not closed to make room for
// another.
func answering(r *http.Request) {
	if mark, there := r.Context().Value(connectionKey{}).(func()); there {
		mark()
	}
}

func (c *connections) answering(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, there := c.since[conn]; there {
		c.since[conn] = time.Time{}
	}
}

func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(c.since) < c.limit || c.closeOldest() {
			c.since[conn] = time.Now()
			return
		}
		body := encode(map[string]any{"error": unavailable("too many connections are being answered")})
		fmt.Fprintf(conn, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n"+
			"Content-Length: %d\r\n\r\n%s", len(body), body)
		conn.Close()
	case http.StateIdle:
		c.since[conn] = time.Now()
	case http.StateClosed, http.StateHijacked:
		delete(c.since, conn)
	}
}

// closeOldest closes the connection that has waited longest. It returns false if none is waiting.
func (c *connections) closeOldest() bool {
	var oldest net.Conn
	for conn, since := range c.since {
		if !since.IsZero() && (oldest == nil || since.Before(c.since[oldest])) {
			oldest = conn
		}
	}
	if oldest == nil {
		return false
	}
	delete(c.since, oldest)
	oldest.Close()
	return true
}
