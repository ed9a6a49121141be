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
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const mostMoves = 2

// front passes requests on to workers. It needs neither a model nor an engine.
type front struct {
	registry      registry
	authenticator *authenticator
	client        http.Client
	moved         atomic.Int64
}

// newFront takes the secret of its workers, and the time after which dead workers are forgotten.
func newFront(secret []byte, forgetAfter time.Duration) *front {
	f := &front{registry: registry{forgetAfter: forgetAfter}, authenticator: newAuthenticator(secret)}
	f.client.Transport = &http.Transport{MaxIdleConnsPerHost: 1024, IdleConnTimeout: 30 * time.Second}
	return f
}

// call is one request on its way through the front.
type call struct {
	*front
	*reply
	id, path, model string
	request         *request
	body            fields
	sent            []int // number of chunks of each choice that the client has
}

func (f *front) generate(a *reply, r *http.Request, q *request) error {
	model := q.model
	known := f.models()
	if len(known) == 0 {
		return unavailable("there is no worker")
	} else if model == "" {
		model = known[0]
	} else if !slices.Contains(known, model) {
		return unknownModel(model)
	}
	c := &call{front: f, reply: a, id: newID(q.chat), path: r.URL.Path, model: model, request: q, body: maps.Clone(q.fields),
		sent: make([]int, q.n*max(1, len(q.prompts)))}
	if q.seed == nil { // a worker that continues this request must draw the same samples
		c.body["seed"] = encode(1 + rand.Int64N(1<<53-1))
	}
	ctx, cancel := context.WithCancel(r.Context())
	prefilled := make(chan struct{})
	close(prefilled)
	defer func() {
		cancel()
		<-prefilled // nothing may write to the client after this function has returned
	}()
	var kv kvParams
	tried := map[string]bool{}
	for moves := 0; moves <= mostMoves; moves++ {
		decoder, give := f.registry.take("decode", model, func(url string) bool { return !tried[url] })
		if decoder == nil {
			break
		}
		tried[decoder.URL] = true
		if moves > 0 {
			f.moved.Add(1)
			a.trace("moved", "worker", decoder.URL)
			kv.Resume = c.sent
		} else if len(q.prompts) <= 1 {
			if ticket, done := c.prefill(ctx, decoder); ticket != nil {
				kv.DoRemotePrefill, kv.Ticket, prefilled = true, ticket, done
			}
		}
		err := c.decode(ctx, decoder, kv, prefilled)
		give()
		if err != errGone || ctx.Err() != nil {
			return err
		}
	}
	return unavailable("there is no decode worker for the request")
}

// prefill sends the prompt to a prefill worker and returns its ticket, with which `decoder` fetches the KV. Without a
// ticket the decoder computes the prompt itself. `prefilled` is closed when the prefill worker has answered completely.
func (c *call) prefill(ctx context.Context, decoder *worker) (ticket []byte, prefilled chan struct{}) {
	worker, give := c.registry.take("prefill", c.model, func(url string) bool { return decoder.Paired[url] != "" })
	if worker == nil {
		return nil, nil
	}
	c.trace("prefill", "worker", worker.URL)
	response, release, err := c.post(ctx, worker, kvParams{DoRemoteDecode: true})
	end := func() { release(); give() }
	var lines *json.Decoder
	var first struct {
		KV kvParams `json:"kv_transfer_params"`
	}
	if err == nil {
		lines = json.NewDecoder(response.Body)
		err = lines.Decode(&first)
	}
	if err != nil || first.KV.Ticket == nil {
		end()
		return nil, nil
	}
	c.trace("handoff", "worker", decoder.URL, "ticket_bytes", len(first.KV.Ticket))
	prefilled = make(chan struct{})
	go func() {
		defer close(prefilled)
		defer end()
		var last struct{ Prefilled map[string]any }
		if lines.Decode(&last) == nil && last.Prefilled != nil {
			io.Copy(io.Discard, response.Body) // a response that is read to its end frees the connection
			c.trace("prefilled", "worker", worker.URL, "prompt_tokens", last.Prefilled["prompt_tokens"],
				"cached_tokens", last.Prefilled["cached_tokens"], "prefill_ms", last.Prefilled["ms"])
		}
	}()
	return first.KV.Ticket, prefilled
}

// decode passes a worker's answer on. It returns errGone if another worker should continue.
func (c *call) decode(ctx context.Context, worker *worker, kv kvParams, prefilled <-chan struct{}) error {
	ahead := time.Since(c.start)
	response, release, err := c.post(ctx, worker, kv)
	defer release()
	if err == nil && response.StatusCode == http.StatusServiceUnavailable {
		return errGone // the worker is shutting down
	}
	if err == nil && response.StatusCode == http.StatusOK && c.request.stream {
		c.send(nil)
		err = relay(c.reply, response.Body, c.sent, ahead, prefilled)
	} else if err == nil {
		var body []byte
		if body, err = io.ReadAll(response.Body); err == nil {
			c.whole(response.StatusCode, body)
		}
	}
	if err == nil {
		return nil
	}
	if ctx.Err() == nil { // the worker, not the client, closed the connection
		c.registry.broken(worker.URL)
	}
	return errGone
}

// post sends the request to a worker. The response ends when `release` is called or the worker dies.
func (c *call) post(ctx context.Context, worker *worker, kv kvParams) (r *http.Response, release func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	unwatch := context.AfterFunc(worker.life, cancel)
	release = func() { unwatch(); cancel() }
	body := maps.Clone(c.body)
	body["kv_transfer_params"] = encode(kv)
	text := encode(body)
	request, err := http.NewRequestWithContext(ctx, "POST", worker.URL+c.path, bytes.NewReader(text))
	if err != nil {
		return nil, release, err
	}
	c.authenticator.sign(request, worker.URL, text)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Request-Id", c.id)
	if c.traced {
		request.Header.Set("X-Cleave-Trace", "1")
	}
	r, err = c.client.Do(request)
	return r, release, err
}

// models lists the models of all workers.
func (f *front) models() []string {
	var names []string
	for _, w := range f.registry.list() {
		if !slices.Contains(names, w.Model) {
			names = append(names, w.Model)
		}
	}
	return names
}

func (f *front) health() (fields map[string]any, problem string) {
	if f.registry.up("decode") == 0 {
		problem = "no_decode_worker"
	}
	return map[string]any{"role": "front", "model": strings.Join(f.models(), ", ")}, problem
}

func (f *front) writeMetrics(w io.Writer) {
	writeFamily(w, "cleave_front_workers", "gauge", "Workers of a front that are up, by role.")
	for _, role := range []string{"prefill", "decode"} {
		fmt.Fprintf(w, "cleave_front_workers{role=\"%s\"} %d\n", role, f.registry.up(role))
	}
	writeFamily(w, "cleave_front_moved", "counter", "Requests that went on at another decode worker after theirs was lost.")
	fmt.Fprintln(w, "cleave_front_moved_total", f.moved.Load())
}

func (f *front) getWorkers(w http.ResponseWriter, r *http.Request) error {
	sendJSON(w, http.StatusOK, encode(map[string]any{"workers": f.registry.list()}))
	return nil
}

func (f *front) postReport(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r, f.authenticator, "front")
	if err != nil {
		return err
	}
	var report report
	if json.Unmarshal(body, &report) != nil || report.Model == "" || !strings.HasPrefix(report.URL, "http://") {
		return invalid("", "not a worker's report")
	}
	sendJSON(w, http.StatusOK, encode(map[string]any{"workers": f.registry.join(report)}))
	return nil
}

func (f *front) postLeave(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r, f.authenticator, "front")
	if err != nil {
		return err
	}
	leaving := struct {
		URL     string
		Seconds float64
	}{Seconds: leaveTimeout.Seconds()}
	json.Unmarshal(body, &leaving)
	left := time.Duration(min(max(leaving.Seconds, 0), leaveTimeout.Seconds()) * float64(time.Second))
	f.registry.leave(r.Context(), leaving.URL, left)
	sendJSON(w, http.StatusOK, []byte("{}"))
	return nil
}
