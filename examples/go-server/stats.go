package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// stats are the server's own numbers in /metrics.
type stats struct {
	running  atomic.Int64 // generation requests
	mu       sync.Mutex
	requests map[route]int
	firsts   int // requests that got a first token, and after how long, together
	firstSum time.Duration
}

type route struct {
	path string
	code int
}

func (s *stats) count(path string, code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.requests == nil {
		s.requests = make(map[route]int)
	}
	s.requests[route{path, code}]++
}

func (s *stats) firstToken(after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.firsts++
	s.firstSum += after
}

func (s *stats) write(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(w, "# TYPE cleave_server_requests counter\n# HELP cleave_server_requests Requests answered.")
	routes := slices.SortedFunc(maps.Keys(s.requests), func(a, b route) int {
		return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.code, b.code))
	})
	for _, r := range routes {
		fmt.Fprintf(w, "cleave_server_requests_total{path=\"%s\",code=\"%d\"} %d\n", r.path, r.code, s.requests[r])
	}
	fmt.Fprintln(w, "# TYPE cleave_server_requests_running gauge\n# HELP cleave_server_requests_running Generations in hand.")
	fmt.Fprintf(w, "cleave_server_requests_running %d\n", s.running.Load())
	fmt.Fprintln(w, "# TYPE cleave_server_ttft_seconds summary\n# UNIT cleave_server_ttft_seconds seconds\n# HELP cleave_server_ttft_seconds From a request to its first token.")
	fmt.Fprintf(w, "cleave_server_ttft_seconds_sum %g\ncleave_server_ttft_seconds_count %d\n", s.firstSum.Seconds(), s.firsts)
}
