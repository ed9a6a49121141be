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
	State    string `json:"state"`
	Requests int    `json:"requests"` // in hand of this front
	seen     time.Time
	life     context.Context // ends when the worker falls silent
	end      context.CancelFunc
}

// lease is a worker while a request is with it.
type lease struct {
	*worker
	url    string
	life   context.Context
	paired map[string]string
}

// registry knows the workers of a front.
type registry struct {
	mu      sync.Mutex
	workers []*worker // in the order in which they came
}

// join takes a report, and returns those who are up for the worker to pair with.
func (g *registry) join(r report) []peer {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := slices.IndexFunc(g.workers, func(w *worker) bool { return w.URL == r.URL })
	if at < 0 {
		at = len(g.workers)
		g.workers = append(g.workers, &worker{})
	}
	w := g.workers[at]
	if w.life == nil || w.life.Err() != nil {
		w.life, w.end = context.WithCancel(context.Background())
	}
	w.report, w.seen, w.State = r, time.Now(), "up"
	up := []peer{}
	for _, w := range g.workers {
		if w.State == "up" {
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
			w.State = "dead"
			w.end()
		}
		return silent > forgotten
	})
}

// broken marks a worker dead whose connection broke.
func (g *registry) broken(l *lease) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.State = "dead"
}

// take leases the worker with the fewest requests of a role and model that `suits`; nil if there is none.
func (g *registry) take(role, model string, suits func(url string) bool) *lease {
	g.mu.Lock()
	defer g.mu.Unlock()
	var best *worker
	for _, w := range g.workers {
		right := w.State == "up" && w.Role == role && w.Model == model && suits(w.URL)
		if right && (best == nil || w.Requests < best.Requests) {
			best = w
		}
	}
	if best == nil {
		return nil
	}
	best.Requests++
	return &lease{best, best.URL, best.life, best.Paired}
}

func (g *registry) give(l *lease) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.Requests--
}

// list gives what is known of each worker.
func (g *registry) list() []worker {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := []worker{}
	for _, w := range g.workers {
		all = append(all, *w)
	}
	return all
}

func (g *registry) up(role string) int {
	n := 0
	for _, w := range g.list() {
		if w.Role == role && w.State == "up" {
			n++
		}
	}
	return n
}
