package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	mostMoves = 2
	// laggard is how long the end of an answer waits for the prefill worker's last line, which is due by then.
	laggard = 100 * time.Millisecond
)

// front passes requests on to workers. It needs neither a model nor an engine.
type front struct {
	registry registry
	client   *http.Client
	moved    atomic.Int64
}

func newFront() *front {
	f := &front{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024, IdleConnTimeout: 30 * time.Second, DisableCompression: true}}}
	go func() {
		for now := range time.Tick(silence / 20) {
			f.registry.sweep(now)
		}
	}()
	return f
}

// call is one request on its way through the front.
type call struct {
	*front
	*reply
	id, path, model string
	request         *request
	sent            []int // chunks of each choice that the client has
}

func (f *front) generate(a *reply, r *http.Request, q *request) error {
	model, err := f.chooseModel(q.model)
	if err != nil {
		return err
	}
	if q.seed == nil { // whoever goes on with this request has to draw the same samples
		q.body["seed"] = encode(1 + rand.Int64N(1<<53-1))
	}
	c := &call{front: f, reply: a, id: newID(q.chat), path: r.URL.Path, model: model, request: q,
		sent: make([]int, q.n*max(1, len(q.prompts)))}
	ctx, cancel := context.WithCancel(r.Context())
	prefilled := closedChannel()
	defer func() {
		cancel()
		<-prefilled // nothing writes to the client once this has returned
	}()
	var kv kvParams
	tried := map[string]bool{}
	for moves := 0; moves <= mostMoves; moves++ {
		decoder := f.registry.take("decode", model, func(w *worker) bool { return !tried[w.URL] })
		if decoder == nil {
			break
		}
		tried[decoder.url] = true
		if moves == 0 {
			kv.Ticket, prefilled = c.prefill(ctx, decoder)
			kv.DoRemotePrefill = kv.Ticket != nil
		} else {
			f.moved.Add(1)
			a.trace("moved", map[string]any{"worker": decoder.url})
			kv.Resume = c.sent
		}
		err := c.decode(ctx, decoder, kv, prefilled)
		f.registry.give(decoder)
		if err != errGone || ctx.Err() != nil {
			return err
		}
	}
	return unavailable("there is no decode worker for the request")
}

// prefill has a worker compute the prompt for `decoder`, which fetches the KV with the ticket. Without a ticket the
// decoder computes the prompt itself. The prefill worker has said all when `prefilled` is closed.
func (c *call) prefill(ctx context.Context, decoder *lease) (ticket []byte, prefilled chan struct{}) {
	prefilled = closedChannel()
	if len(c.request.prompts) > 1 {
		return nil, prefilled
	}
	worker := c.registry.take("prefill", c.model, func(w *worker) bool {
		_, paired := decoder.Paired[w.URL]
		return paired
	})
	if worker == nil {
		return nil, prefilled
	}
	c.trace("prefill", map[string]any{"worker": worker.url})
	response, release, err := c.send(ctx, worker, kvParams{DoRemoteDecode: true})
	end := func() { release(); c.registry.give(worker) }
	if err != nil {
		end()
		return nil, prefilled
	}
	lines := json.NewDecoder(response.Body)
	var started struct {
		KV kvParams `json:"kv_transfer_params"`
	}
	if response.StatusCode != http.StatusOK || lines.Decode(&started) != nil || started.KV.Ticket == nil {
		end()
		return nil, prefilled
	}
	c.trace("handoff", map[string]any{"worker": decoder.url, "ticket_bytes": len(started.KV.Ticket)})
	prefilled = make(chan struct{})
	go func() {
		defer close(prefilled)
		defer end()
		var line struct {
			Prefilled *struct {
				PromptTokens int     `json:"prompt_tokens"`
				CachedTokens int     `json:"cached_tokens"`
				MS           float64 `json:"ms"`
			}
		}
		if lines.Decode(&line) == nil && line.Prefilled != nil {
			io.Copy(io.Discard, response.Body) // to its end, so that the connection can be used again
			c.trace("prefilled", map[string]any{"worker": worker.url, "prompt_tokens": line.Prefilled.PromptTokens,
				"cached_tokens": line.Prefilled.CachedTokens, "prefill_ms": line.Prefilled.MS})
		}
	}()
	return started.KV.Ticket, prefilled
}

// decode has a worker answer, and passes the answer on. errGone if another worker should go on.
func (c *call) decode(ctx context.Context, worker *lease, kv kvParams, prefilled <-chan struct{}) error {
	last := func() {
		select {
		case <-prefilled:
		case <-time.After(laggard):
		}
	}
	ahead := time.Since(c.start)
	response, release, err := c.send(ctx, worker, kv)
	defer release()
	if err != nil {
		return err
	}
	if response.StatusCode == http.StatusOK && c.request.stream {
		c.begin(eventStream)
		return c.lost(ctx, worker, relay(c.reply, response.Body, c.sent, ahead, last))
	}
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return c.lost(ctx, worker, errGone)
	case response.StatusCode == http.StatusServiceUnavailable:
		return errGone // it is ending
	case response.StatusCode != http.StatusOK:
		return passedOn(response.StatusCode, body)
	}
	last()
	c.whole(body)
	return nil
}

// lost marks a worker dead if it, and not the client, broke the connection off.
func (c *call) lost(ctx context.Context, worker *lease, err error) error {
	if err == errGone && ctx.Err() == nil {
		c.registry.broken(worker)
	}
	return err
}

// send gives the request to a worker. The response ends with `release`, and with the worker's life.
func (c *call) send(outer context.Context, worker *lease, kv kvParams) (response *http.Response, release func(), err error) {
	body := maps.Clone(c.request.body)
	body["kv_transfer_params"] = encode(kv)
	ctx, cancel := context.WithCancel(outer)
	unwatch := context.AfterFunc(worker.life, cancel)
	release = func() {
		if response != nil {
			response.Body.Close()
		}
		unwatch()
		cancel()
	}
	request, err := http.NewRequestWithContext(ctx, "POST", worker.url+c.path, bytes.NewReader(encode(body)))
	if err == nil {
		request.Header["Content-Type"] = []string{"application/json"}
		request.Header["X-Request-Id"] = []string{c.id}
		request.Header["Idempotency-Key"] = nil // not sent: allows another try if an idle connection has just been closed
		if c.traced {
			request.Header["X-Cleave-Trace"] = []string{"1"}
		}
		response, err = c.client.Do(request)
	}
	if err != nil {
		return nil, release, c.lost(outer, worker, errGone)
	}
	return response, release, nil
}

func closedChannel() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// passedOn is a worker's error as the front's own.
func passedOn(status int, body []byte) *apiError {
	var worker struct {
		Error struct{ Message, Type, Param, Code string }
	}
	json.Unmarshal(body, &worker)
	e := worker.Error
	return &apiError{status, e.Message, e.Type, e.Param, e.Code}
}

// chooseModel checks that there are workers for a model; for none named, it is the first there is.
func (f *front) chooseModel(name string) (string, error) {
	known := f.registry.models(true)
	switch {
	case len(known) == 0:
		return "", unavailable("there is no worker")
	case name == "":
		return append(f.registry.models(false), known...)[0], nil
	case !slices.Contains(known, name):
		return "", unknownModel(name)
	}
	return name, nil
}

func newID(chat bool) string {
	kind := "cmpl"
	if chat {
		kind = "chatcmpl"
	}
	return fmt.Sprintf("%s-%016x%016x", kind, rand.Uint64(), rand.Uint64())
}

func (f *front) models() []string { return f.registry.models(false) }

func (f *front) health() (fields map[string]any, problem string) {
	if f.registry.up("decode") == 0 {
		problem = "no_decode_worker"
	}
	name := ""
	if names := f.models(); len(names) > 0 {
		name = names[0]
	}
	return map[string]any{"role": "front", "model": name}, problem
}

func (f *front) writeMetrics(w io.Writer) {
	fmt.Fprintln(w, "# TYPE cleave_front_workers gauge\n# HELP cleave_front_workers Workers that are up.")
	for _, role := range []string{"prefill", "decode"} {
		fmt.Fprintf(w, "cleave_front_workers{role=\"%s\"} %d\n", role, f.registry.up(role))
	}
	fmt.Fprintln(w, "# TYPE cleave_front_moved counter\n# HELP cleave_front_moved Requests that went on with another worker.")
	fmt.Fprintf(w, "cleave_front_moved_total %d\n", f.moved.Load())
}

// routes are those that only a front has.
func (f *front) routes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET": func(w http.ResponseWriter, r *http.Request) {
			sendJSON(w, http.StatusOK, map[string]any{"workers": f.registry.list()})
		},
		"POST": func(w http.ResponseWriter, r *http.Request) {
			var report report
			body, err := readBody(w, r, 1<<20)
			if err != nil {
				sendError(w, err)
				return
			}
			wrong := json.Unmarshal(body, &report)
			at, notURL := url.Parse(report.URL)
			if wrong != nil || notURL != nil || at.Scheme != "http" || at.Host == "" || report.Model == "" ||
				report.Role != "prefill" && report.Role != "decode" {
				sendError(w, invalid("", "not a worker's report"))
				return
			}
			report.URL = strings.TrimSuffix(report.URL, "/")
			sendJSON(w, http.StatusOK, map[string]any{"workers": f.registry.join(report)})
		},
		"DELETE": func(w http.ResponseWriter, r *http.Request) {
			f.registry.leave(strings.TrimSuffix(r.URL.Query().Get("url"), "/"))
			sendJSON(w, http.StatusOK, map[string]any{})
		},
	}
}
