package main

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	silence      = 5 * time.Second  // a worker that is silent for longer is dead
	leaveTimeout = 10 * time.Minute // at most, for the requests of a worker that leaves
)

// peer is the information that workers get about each other: see "Workers" in ../README.md.
type peer struct {
	URL     string `json:"url"`
	Role    string `json:"role"`
	Model   string `json:"model"`
	Address []byte `json:"address"`
}

// report is a worker's message to its front.
type report struct {
	peer
	Running int               `json:"running"`
	Waiting int               `json:"waiting"`
	Paired  map[string]string `json:"paired"`
}

// worker is a worker that reports, or has reported. Guarded by the registry's mutex.
type worker struct {
	report
	State    string          `json:"state"`    // up or dead
	Requests int             `json:"requests"` // open requests that this front has sent it
	life     context.Context // ends when the worker falls silent
	end      context.CancelFunc
	watch    *time.Timer // ends the life after a period of silence
	heard    time.Time   // time of its last report

	reachable bool // its /health has answered since the last connection broke
	asked     bool // a /health request is in progress
}

// registry knows the workers of a front.
type registry struct {
	forgetAfter time.Duration // period of silence
	mu          sync.Mutex
	workers     []*worker // ordered by first report
}

func (g *registry) find(url string) int {
	return slices.IndexFunc(g.workers, func(w *worker) bool { return w.URL == url })
}

// join takes a report and returns the workers that are up, for pairing. A worker is up once it reports and this front
// has reached it.
func (g *registry) join(r report) []peer {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.find(r.URL)
	if at < 0 {
		at = len(g.workers)
		g.workers = append(g.workers, &worker{State: "dead"})
	}
	w := g.workers[at]
	if w.life == nil || w.life.Err() != nil {
		w.life, w.end = context.WithCancel(context.Background())
		w.watch = time.AfterFunc(silence, func() { g.silent(w) })
	}
	w.watch.Reset(silence)
	w.report, w.heard = r, time.Now()
	if w.reachable {
		w.State = "up"
	} else if !w.asked {
		w.asked = true
		go g.askHealth(w, r.URL)
	}
	up := []peer{}
	for _, w := range g.known() {
		if w.State == "up" {
			up = append(up, w.peer)
		}
	}
	return up
}

var healthClient = http.Client{Timeout: silence / 2}

// askHealth checks whether a worker that reports can be reached.
func (g *registry) askHealth(w *worker, url string) {
	response, err := healthClient.Get(url + "/health")
	if err == nil {
		response.Body.Close()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	w.asked = false
	w.reachable = err == nil && response.StatusCode == http.StatusOK
	if w.reachable && w.life.Err() == nil {
		w.State = "up"
	}
}

// known removes workers that have been silent for long and returns the others. Called with the mutex held.
func (g *registry) known() []*worker {
	g.workers = slices.DeleteFunc(g.workers, func(w *worker) bool { return time.Since(w.heard) > g.forgetAfter+silence })
	return g.workers
}

// leave removes a worker from the list and waits until it has no requests of this front. Requests in transit still
// reach it: the worker serves until this call returns, or its time is up. If it vanishes, its requests end a little later.
func (g *registry) leave(ctx context.Context, url string, left time.Duration) {
	g.mu.Lock()
	at := g.find(url)
	if at < 0 {
		g.mu.Unlock()
		return
	}
	w := g.workers[at]
	w.watch.Reset(min(left+silence, leaveTimeout))
	g.workers = slices.Delete(g.workers, at, at+1)
	for w.Requests > 0 && w.life.Err() == nil && ctx.Err() == nil {
		g.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		g.mu.Lock()
	}
	g.mu.Unlock()
}

func (g *registry) silent(w *worker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w.State = "dead"
	w.end()
}

// take returns a copy of the worker with the fewest requests among those of a role and model that `suits` accepts, or
// nil if there is none.
func (g *registry) take(role, model string, suits func(url string) bool) (taken *worker, give func()) {
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
		return nil, nil
	}
	best.Requests++
	now := *best
	return &now, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		best.Requests--
	}
}

// broken marks a worker dead because a connection to it broke. It is up again once it reports and can be reached.
func (g *registry) broken(url string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if at := g.find(url); at >= 0 {
		g.workers[at].State, g.workers[at].reachable = "dead", false
	}
}

// list returns a copy of each worker.
func (g *registry) list() []worker {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := []worker{}
	for _, w := range g.known() {
		all = append(all, *w)
	}
	return all
}

// up counts the workers of a role that are up.
func (g *registry) up(role string) (n int) {
	for _, w := range g.list() {
		if w.Role == role && w.State == "up" {
			n++
		}
	}
	return n
}
