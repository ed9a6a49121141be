package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cleave/examples/go-server/internal/core"
)

const (
	bodyLimit    = 16 << 20
	shuttingDown = "shutting_down" // state in /health
)

// backend answers requests: an engine (mixed, prefill, decode) or a front.
type backend interface {
	// generate answers a request, or returns an error for the caller to send.
	generate(a *reply, r *http.Request, q *request) error
	models() []string
	// health returns the fields of /health, and an error if the server cannot serve.
	health() (fields map[string]any, problem string)
	// writeMetrics adds to the text of /metrics.
	writeMetrics(w io.Writer)
}

// server is the HTTP side, the same for every role.
type server struct {
	backend backend
	mux     *http.ServeMux
	stats   stats
	closing atomic.Bool
	started time.Time

	worker bool // requests may have kv_transfer_params

	// A worker of a front answers nobody else. The front signs its requests for the worker's URL.
	authenticator *authenticator
	audience      string
}

// handler answers a request, or returns an error for the caller to send.
type handler func(w http.ResponseWriter, r *http.Request) error

// newServer creates a server whose GET / returns the file `page`, if there is one. Only workers of a front
// have an authenticator and an audience.
func newServer(b backend, page string, a *authenticator, audience string) *server {
	s := &server{backend: b, mux: http.NewServeMux(), started: time.Now(), authenticator: a, audience: audience}
	generate := map[string]handler{"POST": func(w http.ResponseWriter, r *http.Request) error {
		body, err := readBody(w, r, s.authenticator, s.audience)
		if err != nil {
			return err
		}
		return s.generate(w, r, body)
	}}
	s.handle("/v1/chat/completions", generate)
	s.handle("/v1/completions", generate)
	s.handle("/v1/models", map[string]handler{"GET": s.getModels})
	s.handle("/v1/models/{name...}", map[string]handler{"GET": s.getModels})
	s.handle("/health", map[string]handler{"GET": s.getHealth})
	s.handle("/metrics", map[string]handler{"GET": s.getMetrics})
	if page != "" {
		s.handle("/{$}", map[string]handler{"GET": func(w http.ResponseWriter, r *http.Request) error {
			http.ServeFile(w, r, page)
			return nil
		}})
	}
	s.handle("/", nil)
	return s
}

// handle adds a path and its methods. A path without methods answers 404.
func (s *server) handle(path string, methods map[string]handler) { s.handleIn(s.mux, path, methods) }

// handleIn adds a path to another mux, for another listener.
func (s *server) handleIn(mux *http.ServeMux, path string, methods map[string]handler) {
	label, _, _ := strings.Cut(path, "/{") // the path without patterns, so that labels do not depend on clients
	if label == "" {
		label = "/"
	}
	if methods == nil {
		label = "other"
	}
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		recorder := &recorder{w, http.StatusOK}
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
		if r.Method != "POST" {
			answering(r)
		}
		if handle := methods[r.Method]; handle != nil {
			if err := handle(recorder, r); err != nil {
				sendError(recorder, reported(r.Context(), err))
			}
		} else if methods != nil {
			w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(methods)), ", "))
			sendError(recorder, refused(http.StatusMethodNotAllowed, r.Method+" is not for this path"))
		} else {
			sendError(recorder, refused(http.StatusNotFound, "there is nothing at "+r.URL.Path))
		}
		s.stats.count(label, recorder.status)
	})
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func sendJSON(w http.ResponseWriter, status int, body []byte) {
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

func sendError(w http.ResponseWriter, err *apiError) {
	sendJSON(w, err.status, encode(map[string]any{"error": err}))
}

func (s *server) generate(w http.ResponseWriter, r *http.Request, body []byte) error {
	s.stats.running.Add(1)
	defer s.stats.running.Add(-1)
	if s.closing.Load() { // checked after counting, because the shutdown waits for counted requests
		return unavailable(core.ErrShuttingDown.Error())
	}
	answer := newReply(w, r, &s.stats)
	q, err := parseRequest(body, r.URL.Path == "/v1/chat/completions", s.worker)
	if err != nil {
		return err
	}
	if err = s.backend.generate(answer, r, q); err != nil && answer.open {
		answer.data(map[string]any{"error": reported(r.Context(), err)})
		return nil
	}
	return err
}

// readBody reads the body of a request, which must be signed for `audience` if there is an authenticator.
func readBody(w http.ResponseWriter, r *http.Request, a *authenticator, audience string) ([]byte, error) {
	var signed string
	if a != nil {
		var err error
		if signed, err = a.check(r, audience); err != nil {
			return nil, err
		}
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer control.SetReadDeadline(time.Time{})
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, refused(http.StatusRequestEntityTooLarge, err.Error())
	} else if err != nil {
		return nil, invalid("", "the body did not come: %v", err)
	}
	if a != nil && digest(body) != signed {
		return nil, unauthorized("the body is not the one that was signed")
	}
	answering(r)
	return body, nil
}

// getModels returns all models, or the named one.
func (s *server) getModels(w http.ResponseWriter, r *http.Request) error {
	name, data := r.PathValue("name"), []any{}
	for _, id := range s.backend.models() {
		model := map[string]any{"id": id, "object": "model", "created": s.started.Unix(), "owned_by": "cleave"}
		if id == name {
			sendJSON(w, http.StatusOK, encode(model))
			return nil
		}
		data = append(data, model)
	}
	if name != "" {
		return unknownModel(name)
	}
	sendJSON(w, http.StatusOK, encode(map[string]any{"object": "list", "data": data}))
	return nil
}

func (s *server) getHealth(w http.ResponseWriter, r *http.Request) error {
	body, problem := s.backend.health()
	if s.closing.Load() {
		problem = shuttingDown
	}
	body["status"] = cmp.Or(problem, "ok")
	status := http.StatusOK
	if problem != "" {
		status = http.StatusServiceUnavailable
	}
	sendJSON(w, status, encode(body))
	return nil
}

func (s *server) getMetrics(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
	s.backend.writeMetrics(w)
	s.stats.write(w)
	io.WriteString(w, "# EOF\n")
	return nil
}

// stats are the server's own metrics.
type stats struct {
	running  atomic.Int64 // generation requests
	firsts   atomic.Int64 // requests that got a first token
	firstSum atomic.Int64 // sum of their times to the first token, in ns
	mu       sync.Mutex
	requests map[string]int // by labels
}

func (s *stats) count(path string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.requests == nil {
		s.requests = make(map[string]int)
	}
	s.requests[fmt.Sprintf(`path="%s",code="%d"`, path, status)]++
}

func (s *stats) write(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	writeFamily(w, "cleave_server_requests", "counter", "HTTP requests answered, by path and status.")
	for _, labels := range slices.Sorted(maps.Keys(s.requests)) {
		fmt.Fprintf(w, "cleave_server_requests_total{%s} %d\n", labels, s.requests[labels])
	}
	writeFamily(w, "cleave_server_requests_running", "gauge", "Generation requests that are being answered.")
	fmt.Fprintln(w, "cleave_server_requests_running", s.running.Load())
	writeFamily(w, "cleave_server_time_to_first_token_seconds", "summary", "Time from a generation request to its first token.")
	fmt.Fprintln(w, "# UNIT cleave_server_time_to_first_token_seconds seconds")
	fmt.Fprintln(w, "cleave_server_time_to_first_token_seconds_count", s.firsts.Load())
	fmt.Fprintln(w, "cleave_server_time_to_first_token_seconds_sum", time.Duration(s.firstSum.Load()).Seconds())
}

// writeFamily begins a family of metrics in OpenMetrics text.
func writeFamily(w io.Writer, name, kind, help string) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}
