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
)

const (
	bodyLimit   = 16 << 20
	bodyTimeout = 60 * time.Second
)

var errShuttingDown = errors.New("the server is shutting down")

// backend is what answers: an engine (mixed, prefill, decode) or a front.
type backend interface {
	// generate answers a request. It returns what went wrong, for the caller to send.
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
	mux     *http.ServeMux
	stats   stats
	closing atomic.Bool
	started time.Time
}

// handler answers a request, or returns what went wrong.
type handler func(w http.ResponseWriter, r *http.Request) error

// newServer takes the file of GET /, if there is one.
func newServer(b backend, page string) *server {
	s := &server{backend: b, mux: http.NewServeMux(), started: time.Now()}
	s.handle("/v1/chat/completions", map[string]handler{"POST": s.postGeneration})
	s.handle("/v1/completions", map[string]handler{"POST": s.postGeneration})
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

// handle adds a path with its methods; without any it is not found.
func (s *server) handle(path string, methods map[string]handler) {
	s.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		recorder := &recorder{w, http.StatusOK}
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
		s.stats.count(path, recorder.status)
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

func (s *server) postGeneration(w http.ResponseWriter, r *http.Request) error {
	s.stats.running.Add(1)
	defer s.stats.running.Add(-1)
	if s.closing.Load() { // looked at after counting: what is counted is waited for
		return unavailable(errShuttingDown.Error())
	}
	answer := newReply(w, r, &s.stats)
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	q, err := parseRequest(body, r.URL.Path == "/v1/chat/completions")
	if err != nil {
		return err
	}
	if err = s.backend.generate(answer, r, q); err != nil && answer.open {
		answer.data(map[string]any{"error": reported(r.Context(), err)})
		return nil
	}
	return err
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
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
	return body, nil
}

// getModels lists the models, or gives the one that is named.
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
		problem = "shutting_down"
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

// stats are the server's own numbers in /metrics.
type stats struct {
	running  atomic.Int64 // generation requests
	firsts   atomic.Int64 // requests that got a first token
	firstSum atomic.Int64 // and after how long, together, in ns
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
	fmt.Fprintln(w, "# TYPE cleave_server_requests counter")
	for _, labels := range slices.Sorted(maps.Keys(s.requests)) {
		fmt.Fprintf(w, "cleave_server_requests_total{%s} %d\n", labels, s.requests[labels])
	}
	fmt.Fprintln(w, "# TYPE cleave_server_requests_running gauge")
	fmt.Fprintln(w, "cleave_server_requests_running", s.running.Load())
	fmt.Fprintln(w, "# TYPE cleave_server_ttft_seconds summary\n# UNIT cleave_server_ttft_seconds seconds")
	fmt.Fprintln(w, "cleave_server_ttft_seconds_sum", time.Duration(s.firstSum.Load()).Seconds())
	fmt.Fprintln(w, "cleave_server_ttft_seconds_count", s.firsts.Load())
}
