package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeWorker answers requests with `answer`, which gets the kv_transfer_params.
func fakeWorker(t *testing.T, f *front, role string, paired map[string]string, answer func(w http.ResponseWriter, r *http.Request, kv kvParams)) string {
	var server *httptest.Server
	authenticator := newAuthenticator(make([]byte, 32))
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			return
		}
		if _, err := authenticator.check(r, server.URL); err != nil {
			t.Error(err)
		}
		var body struct {
			Seed *int64
			KV   kvParams `json:"kv_transfer_params"`
		}
		if json.NewDecoder(r.Body).Decode(&body) != nil || body.Seed == nil || r.Header.Get("X-Request-Id") == "" {
			t.Error("a worker was sent something else than a request with a seed and a name")
		}
		io.Copy(io.Discard, r.Body)
		answer(w, r, body.KV)
	}))
	t.Cleanup(server.Close)
	joinUntilUp(t, &f.registry, report{peer: peer{URL: server.URL, Role: role, Model: "m"}, Paired: paired})
	return server.URL
}

// joinUntilUp sends reports until the worker is up.
func joinUntilUp(t *testing.T, g *registry, r report) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		g.join(r)
		if slices.ContainsFunc(g.list(), func(w worker) bool { return w.URL == r.URL && w.State == "up" }) {
			return
		} else if time.Now().After(end) {
			t.Fatal(r.URL, "does not come up")
		}
	}
}

// healthy starts a worker that answers only /health.
func healthy(t *testing.T) (url string) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	return server.URL
}

// sendChunks writes chunks from..to of a choice, and flushes.
func sendChunks(w http.ResponseWriter, choice, from, to int) {
	for i := from; i < to; i++ {
		fmt.Fprintf(w, "data: {\"choices\": [{\"index\": %d, \"delta\": {\"content\": \"%d\"}}]}\n\n", choice, i)
	}
	http.NewResponseController(w).Flush()
}

func breakOff(http.ResponseWriter) { panic(http.ErrAbortHandler) }

// TestFrontMoves makes decode workers fail in the middle of a stream. The client sees every chunk once, in order.
func TestFrontMoves(t *testing.T) {
	partial := func(w http.ResponseWriter) { io.WriteString(w, "data: {\"choices\": [{\"index\": 0, \"de") }
	for _, c := range []struct {
		name  string
		fails []func(w http.ResponseWriter) // how the first workers fail, each after 3 chunks more of choice 0 and 1 of choice 1
		sent  string                        // the client's chunks: choices and contents
		ends  string
	}{
		{"no failure", nil, "0.0 0.1 0.2 1.0 0.3 1.1", "[DONE]"},
		{"broken off", []func(http.ResponseWriter){breakOff}, "0.0 0.1 0.2 1.0 0.3 0.4 0.5 1.1 0.6 1.2", "[DONE]"},
		{"broken off within an event", []func(http.ResponseWriter){func(w http.ResponseWriter) { partial(w); breakOff(w) }},
			"0.0 0.1 0.2 1.0 0.3 0.4 0.5 1.1 0.6 1.2", "[DONE]"},
		{"an end without [DONE], and one that is told", []func(http.ResponseWriter){func(http.ResponseWriter) {},
			func(w http.ResponseWriter) {
				io.WriteString(w, "data: {\"error\": {\"type\": \"service_unavailable\"}}\n\n")
			}},
			"0.0 0.1 0.2 1.0 0.3 0.4 0.5 1.1 0.6 0.7 0.8 1.2 0.9 1.3", "[DONE]"},
		{"an error of the request's", []func(http.ResponseWriter){
			func(w http.ResponseWriter) { io.WriteString(w, "data: {\"error\": {\"type\": \"server_error\"}}\n\n") }},
			"0.0 0.1 0.2 1.0", "server_error"},
		{"too many moves", []func(http.ResponseWriter){breakOff, breakOff, breakOff}, "0.0 0.1 0.2 1.0 0.3 0.4 0.5 1.1 0.6 0.7 0.8 1.2", "service_unavailable"},
	} {
		f := newFront(make([]byte, 32), time.Minute)
		for i := range 4 {
			fakeWorker(t, f, "decode", nil, func(w http.ResponseWriter, _ *http.Request, kv kvParams) {
				at := append(kv.Resume, 0, 0)
				sendChunks(w, 0, at[0], at[0]+3)
				sendChunks(w, 1, at[1], at[1]+1)
				if i < len(c.fails) {
					c.fails[i](w)
					return
				}
				sendChunks(w, 0, at[0]+3, at[0]+4)
				sendChunks(w, 1, at[1]+1, at[1]+2)
				io.WriteString(w, "data: [DONE]\n\n")
			})
		}
		server := httptest.NewServer(newServer(f, "", nil, "").mux)
		response, err := http.Post(server.URL+"/v1/completions", "", strings.NewReader(`{"prompt": "hi", "n": 2, "stream": true}`))
		if err != nil || response.StatusCode != 200 {
			t.Fatal(err, response)
		}
		var sent []string
		var last string
		for lines := bufio.NewReader(response.Body); ; {
			_, data, err := readEvent(lines)
			if err != nil {
				break
			}
			var chunk struct {
				Choices []struct {
					Index int
					Delta struct{ Content string }
				}
				Error struct{ Type string }
			}
			last = data
			if json.Unmarshal([]byte(data), &chunk) == nil {
				last = chunk.Error.Type
			}
			for _, choice := range chunk.Choices {
				sent = append(sent, fmt.Sprintf("%d.%s", choice.Index, choice.Delta.Content))
			}
		}
		if got := strings.Join(sent, " "); got != c.sent || last != c.ends {
			t.Errorf("%s: %s, then %q", c.name, got, last)
		}
		server.Close()
	}
}

// TestFrontPrefills checks the requests to a prefill and a decode worker, and the answer to the client.
func TestFrontPrefills(t *testing.T) {
	f := newFront(make([]byte, 32), time.Minute)
	prefill := fakeWorker(t, f, "prefill", nil, func(w http.ResponseWriter, _ *http.Request, kv kvParams) {
		if !kv.DoRemoteDecode || kv.Ticket != nil {
			t.Errorf("the prefill worker is sent %+v", kv)
		}
		fmt.Fprintf(w, "{\"kv_transfer_params\": %s}\n", encode(kvParams{DoRemotePrefill: true, Ticket: []byte("ticket")}))
		http.NewResponseController(w).Flush()
		time.Sleep(20 * time.Millisecond)
		io.WriteString(w, "{\"prefilled\": {\"prompt_tokens\": 7, \"ms\": 1.5}}\n")
	})
	fakeWorker(t, f, "decode", map[string]string{prefill: "shared memory"}, func(w http.ResponseWriter, r *http.Request, kv kvParams) {
		if !kv.DoRemotePrefill || string(kv.Ticket) != "ticket" || kv.Resume != nil || r.Header.Get("X-Cleave-Trace") != "1" {
			t.Errorf("the decode worker is sent %+v", kv)
		}
		io.WriteString(w, "event: trace\ndata: {\"phase\": \"kv_ready\", \"ms\": 1e9}\n\n")
		sendChunks(w, 0, 0, 1)
		io.WriteString(w, "event: trace\ndata: {\"phase\": \"done\", \"ms\": 2e9}\n\ndata: [DONE]\n\n")
	})
	server := httptest.NewServer(newServer(f, "", nil, "").mux)
	defer server.Close()
	request, _ := http.NewRequest("POST", server.URL+"/v1/completions", strings.NewReader(`{"prompt": "hi", "stream": true}`))
	request.Header.Set("X-Cleave-Trace", "1")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	var phases []string
	for lines := bufio.NewReader(response.Body); ; {
		name, data, err := readEvent(lines)
		if err != nil {
			break
		}
		var trace struct {
			Phase string
			MS    float64
		}
		if json.Unmarshal([]byte(data), &trace); name == "trace" {
			phases = append(phases, trace.Phase)
			if late := trace.Phase == "kv_ready" || trace.Phase == "done"; late != (trace.MS >= 1e9) {
				t.Errorf("%s at %g ms", trace.Phase, trace.MS)
			}
		}
	}
	if len(phases) == 5 {
		slices.Sort(phases[2:4]) // they come from two workers, on two connections
	}
	if !slices.Equal(phases, []string{"prefill", "handoff", "kv_ready", "prefilled", "done"}) {
		t.Error(phases)
	}
}

func TestRegistry(t *testing.T) {
	g := &registry{forgetAfter: time.Hour}
	for range 2 {
		joinUntilUp(t, g, report{peer: peer{URL: healthy(t), Role: "decode", Model: "m"}})
	}
	take := func(role, model string) *worker {
		taken, _ := g.take(role, model, func(string) bool { return true })
		return taken
	}
	a, b := take("decode", "m"), take("decode", "m")
	if a.URL == b.URL || take("decode", "other") != nil || take("prefill", "m") != nil {
		t.Fatal(a.URL, b.URL)
	}
	g.broken(a.URL)
	if next := take("decode", "m"); next.URL != b.URL || a.life.Err() != nil {
		t.Error("a worker whose connection broke is dead, but its other requests are not given up")
	}
	for end := time.Now().Add(time.Minute); (g.up("decode") > 0 || a.life.Err() == nil) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if a.life.Err() == nil || b.life.Err() == nil || g.up("decode") != 0 || len(g.list()) != 2 {
		t.Error("silent workers are dead, and listed for a while")
	}
	joinUntilUp(t, g, report{peer: peer{URL: b.URL, Role: "decode", Model: "m"}})
	if b.life.Err() == nil || take("decode", "m").life.Err() != nil || g.up("decode") != 1 {
		t.Error("a worker that reports again has a new life")
	}
}

func TestAWorkerThatCannotBeReachedIsNotUsed(t *testing.T) {
	g := &registry{forgetAfter: time.Hour}
	for range 3 {
		g.join(report{peer: peer{URL: "http://127.0.0.1:1", Role: "decode", Model: "m"}})
		for asked := true; asked; time.Sleep(time.Millisecond) {
			g.mu.Lock()
			asked = g.workers[0].asked
			g.mu.Unlock()
		}
		if g.up("decode") != 0 {
			t.Fatal("it reports, but nobody answers at its URL")
		}
	}
}

func TestDeadWorkersAreForgotten(t *testing.T) {
	g := &registry{}
	g.join(report{peer: peer{URL: healthy(t), Role: "decode", Model: "m"}})
	for end := time.Now().Add(time.Minute); len(g.list()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a worker that has been silent for long is still listed")
		}
	}
}

func TestSignatures(t *testing.T) {
	a := newAuthenticator(make([]byte, 32))
	signed := func(by *authenticator, audience string) *http.Request {
		r := httptest.NewRequest("POST", "/workers", nil)
		by.sign(r, audience, []byte("body"))
		return r
	}
	good := signed(a, "front")
	if sum, err := a.check(good, "front"); err != nil || sum != digest([]byte("body")) {
		t.Fatal(sum, err)
	}
	elsewhere := signed(a, "front")
	elsewhere.URL.Path = "/workers/leave"
	old := signed(a, "front")
	at := fmt.Sprint(time.Now().Add(-2 * signatureWindow).UnixMilli())
	old.Header.Set("Authorization", fmt.Sprintf("Cleave %s n d %s", at, a.mac("front", "/workers", at, "n", "d")))
	for name, r := range map[string]*http.Request{
		"replayed": good, "for another path": elsewhere, "for another worker": signed(a, "http://b"), "old": old,
		"of another secret": signed(newAuthenticator([]byte{31: 1}), "front"), "not signed": httptest.NewRequest("POST", "/workers", nil),
	} {
		if _, err := a.check(r, "front"); err == nil {
			t.Errorf("a request that is %s is taken", name)
		}
	}
}

func TestAWorkerThatLeavesIsListedNoMoreAndWaitedFor(t *testing.T) {
	g := &registry{forgetAfter: time.Hour}
	url := healthy(t)
	joinUntilUp(t, g, report{peer: peer{URL: url, Role: "decode", Model: "m"}})
	_, give := g.take("decode", "m", func(string) bool { return true })
	left := make(chan struct{})
	go func() {
		defer close(left)
		g.leave(context.Background(), url, time.Hour)
	}()
	for len(g.list()) > 0 {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-left:
		t.Error("it still has a request")
	case <-time.After(100 * time.Millisecond):
	}
	give()
	<-left
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	joinUntilUp(t, g, report{peer: peer{URL: url, Role: "decode", Model: "m"}})
	g.take("decode", "m", func(string) bool { return true })
	g.leave(gone, url, time.Hour) // the sender is no longer connected
	g.leave(context.Background(), "http://b", time.Hour)
}

// The requests of a worker that vanishes while it leaves end soon after the time that it had left.
func TestAWorkerThatVanishesWhileItLeavesIsDeadSoon(t *testing.T) {
	g := &registry{forgetAfter: time.Hour}
	url := healthy(t)
	joinUntilUp(t, g, report{peer: peer{URL: url, Role: "decode", Model: "m"}})
	w, _ := g.take("decode", "m", func(string) bool { return true })
	began := time.Now()
	g.leave(context.Background(), url, 0)
	if w.life.Err() == nil || time.Since(began) > leaveTimeout/2 {
		t.Error("it is taken for alive, and its clients wait")
	}
}
