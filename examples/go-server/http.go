package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	bodyLimit   = 16 << 20
	bodyTimeout = 60 * time.Second
)

var errShuttingDown = errors.New("the server is shutting down")

// backend is what answers: engines (mixed, prefill, decode) or a front.
type backend interface {
	// generate answers a request. An error that it returns is sent for it; it writes none itself.
	generate(a *reply, r *http.Request, q *request) error
	models() []string
	// health is what /health tells, and if the server is of no use now, why.
	health() (fields map[string]any, problem string)
	// writeMetrics adds to the text of /metrics.
	writeMetrics(w io.Writer)
}

// server is the HTTP side, the same for every role.
type server struct {
	backend backend
	stats   stats
	closing atomic.Bool
	routes  map[string]map[string]http.HandlerFunc // by path and method
}

// newServer takes the page for GET /, if there is one.
func newServer(b backend, page []byte) *server {
	s := &server{backend: b}
	s.routes = map[string]map[string]http.HandlerFunc{
		"/v1/chat/completions": {"POST": s.postGeneration},
		"/v1/completions":      {"POST": s.postGeneration},
		"/v1/models":           {"GET": s.getModels},
		"/health":              {"GET": s.getHealth},
		"/metrics":             {"GET": s.getMetrics},
	}
	if page != nil {
		s.routes["/"] = map[string]http.HandlerFunc{"GET": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.WriteHeader(http.StatusOK)
			w.Write(page)
		}}
	}
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	recorder := &recorder{ResponseWriter: w}
	path := r.URL.Path
	methods, found := s.routes[path]
	if !found {
		path = "other"
	}
	defer func() { s.stats.count(path, recorder.code()) }()
	if handle := methods[r.Method]; handle != nil {
		handle(recorder, r)
	} else if found {
		var allowed []string
		for method := range methods {
			allowed = append(allowed, method)
		}
		slices.Sort(allowed)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		sendError(recorder, &apiError{http.StatusMethodNotAllowed, r.Method + " is not for this path", "invalid_request_error", "", ""})
	} else {
		sendError(recorder, &apiError{http.StatusNotFound, "there is nothing at " + r.URL.Path, "invalid_request_error", "", ""})
	}
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

// code is 499, as other servers count it, if the client went before there was an answer.
func (r *recorder) code() int {
	if r.status == 0 {
		return 499
	}
	return r.status
}

func sendJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(encode(body))
}

func sendError(w http.ResponseWriter, err *apiError) {
	if err.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	sendJSON(w, err.status, err)
}

func (s *server) postGeneration(w http.ResponseWriter, r *http.Request) {
	s.stats.running.Add(1)
	defer s.stats.running.Add(-1)
	if s.closing.Load() { // looked at after counting: what is counted is waited for
		sendError(w, unavailable(errShuttingDown.Error()))
		return
	}
	answer := newReply(w, r, &s.stats)
	body, err := readBody(w, r, bodyLimit)
	var q *request
	if err == nil {
		q, err = parseRequest(body, r.URL.Path == "/v1/chat/completions")
	}
	if err != nil {
		sendError(w, err)
	} else if err := s.backend.generate(answer, r, q); err != nil {
		answer.fail(r.Context(), err)
	}
}

// readBody reads a body of `limit` bytes at most.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *apiError) {
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer control.SetReadDeadline(time.Time{})
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, invalid("", "the body did not come: %v", err)
	}
	if int64(len(body)) > limit {
		io.CopyN(io.Discard, r.Body, 4*limit) // most clients look for an answer when they have sent all
		return nil, &apiError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", limit), "invalid_request_error", "", ""}
	}
	return body, nil
}

func (s *server) getModels(w http.ResponseWriter, r *http.Request) {
	data := []any{}
	for _, name := range s.backend.models() {
		data = append(data, map[string]any{"id": name, "object": "model", "created": started.Unix(), "owned_by": "cleave"})
	}
	sendJSON(w, http.StatusOK, map[string]any{"object": "list", "data": data})
}

func (s *server) getHealth(w http.ResponseWriter, r *http.Request) {
	body, problem := s.backend.health()
	if s.closing.Load() {
		problem = "shutting_down"
	}
	body["status"] = cmp.Or(problem, "ok")
	status := http.StatusOK
	if problem != "" {
		status = http.StatusServiceUnavailable
	}
	sendJSON(w, status, body)
}

func (s *server) getMetrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	s.backend.writeMetrics(w)
	s.stats.write(w)
	io.WriteString(w, "# EOF\n")
}
