package main

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	silence   = 2 * time.Second  // after which a worker is dead
	forgotten = 10 * time.Minute // after which it is not listed any more
)

// peer is what workers are told of each other, see "Workers" in ../README.md.
type peer struct {
	URL     string `json:"url"`
	Role    string `json:"role"`
	Model   string `json:"model"`
	Address []byte `json:"address"`
}

// report is what a worker sends of itself.
type report struct {
	peer
	Running int               `json:"running"`
	Waiting int               `json:"waiting"`
	Paired  map[string]string `json:"paired"`
}

// worker is one that reports, or did. Guarded by the registry's mutex.
type worker struct {
	report
	seen     time.Time
	dead     bool
	requests int             // in hand of this front
	life     context.Context // ends when the worker falls silent
	end      context.CancelFunc
}

// lease is a worker while a request is with it.
type lease struct {
	*worker
	url  string
	life context.Context
}

// registry knows the workers of a front.
type registry struct {
	mu      sync.Mutex
	workers []*worker // in the order in which they came
}

func (g *registry) find(url string) *worker {
	for _, w := range g.workers {
		if w.URL == url {
			return w
		}
	}
	return nil
}

// join takes a report, and returns those who are up for the worker to pair with.
func (g *registry) join(r report) []peer {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.find(r.URL)
	if w == nil {
		w = &worker{}
		g.workers = append(g.workers, w)
	}
	if w.life == nil || w.life.Err() != nil {
		w.life, w.end = context.WithCancel(context.Background())
	}
	w.report, w.seen, w.dead = r, time.Now(), false
	up := []peer{}
	for _, w := range g.workers {
		if !w.dead {
			up = append(up, w.peer)
		}
	}
	return up
}

// leave takes a worker off the list. What it has in hand goes on.
func (g *registry) leave(url string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.workers = slices.DeleteFunc(g.workers, func(w *worker) bool {
		if w.URL == url {
			time.AfterFunc(drainTimeout+silence, w.end) // nobody will notice if it stops now
		}
		return w.URL == url
	})
}

// sweep ends the lives of workers that have been silent. Called often.
func (g *registry) sweep(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.workers = slices.DeleteFunc(g.workers, func(w *worker) bool {
		silent := now.Sub(w.seen)
		if silent > silence {
			w.dead = true
			w.end()
		}
		return silent > forgotten
	})
}

// broken marks a worker dead whose connection broke.
func (g *registry) broken(l *lease) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.dead = true
}

// take leases the worker with the fewest requests of a role and model that `suits`; nil if there is none.
func (g *registry) take(role, model string, suits func(*worker) bool) *lease {
	g.mu.Lock()
	defer g.mu.Unlock()
	var best *worker
	for _, w := range g.workers {
		if w.dead || w.Role != role || w.Model != model || !suits(w) {
			continue
		}
		if best == nil || w.requests < best.requests ||
			w.requests == best.requests && w.Running+w.Waiting < best.Running+best.Waiting {
			best = w
		}
	}
	if best == nil {
		return nil
	}
	best.requests++
	return &lease{best, best.URL, best.life}
}

func (g *registry) give(l *lease) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.requests--
}

func (g *registry) up(role string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, w := range g.workers {
		if w.Role == role && !w.dead {
			n++
		}
	}
	return n
}

// models lists the models of the workers that are up, those of decode workers first; or of all of them.
func (g *registry) models(dead bool) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var names []string
	for _, role := range []string{"decode", "prefill"} {
		for _, w := range g.workers {
			if w.Role == role && (dead || !w.dead) && !slices.Contains(names, w.Model) {
				names = append(names, w.Model)
			}
		}
	}
	return names
}

// known is a worker in the answer to GET /workers.
type known struct {
	State    string            `json:"state"`
	Role     string            `json:"role"`
	Model    string            `json:"model"`
	URL      string            `json:"url"`
	Running  int               `json:"running"`
	Waiting  int               `json:"waiting"`
	Requests int               `json:"requests"`
	Paired   map[string]string `json:"paired"`
}

func (g *registry) list() []known {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := []known{}
	for _, w := range g.workers {
		state := "up"
		if w.dead {
			state = "dead"
		}
		all = append(all, known{state, w.Role, w.Model, w.URL, w.Running, w.Waiting, w.requests, w.Paired})
	}
	return all
}
