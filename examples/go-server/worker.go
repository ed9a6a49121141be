package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"sync"
	"time"

	cleave "cleave/go"
)

const (
	reportEvery = 500 * time.Millisecond
	pairAgain   = 2 * time.Second // delay after a failed pairing
)

// member keeps a worker in touch with its front.
type member struct {
	*engineHost
	authenticator *authenticator
	self          peer
	client        http.Client

	mu     sync.Mutex
	paired map[string]*pairing // prefill workers by URL
}

// pairing is the state of cleave_cache_pair with an address. Its detail is set once it has succeeded.
type pairing struct {
	address []byte
	detail  string
}

// join reports to the front until `leave` is called. leave returns at `end`, or when the front has no more requests for
// the worker. The worker must serve until then.
func join(h *engineHost, a *authenticator) (leave func(end time.Time), err error) {
	address, err := h.Cache.Address()
	if err != nil {
		return nil, err
	}
	m := &member{
		engineHost:    h,
		authenticator: a,
		self:          peer{h.url, h.Role(), h.options.modelName, address},
		client:        http.Client{Timeout: silence / 2},
		paired:        make(map[string]*pairing),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.keepInTouch(ctx)
	}()
	return func(end time.Time) {
		cancel()
		<-done
		if err := m.leave(end); err != nil {
			log.Print(err)
		}
	}, nil
}

// keepInTouch reports to the front every 500 ms and learns of the other workers.
func (m *member) keepInTouch(ctx context.Context) {
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	var last string // last line of the log
	for ctx.Err() == nil {
		peers, err := m.report()
		said := "joined " + m.options.front
		if err != nil {
			said = "cannot join " + m.options.front + ": " + err.Error()
		}
		if said != last {
			log.Print(said)
			last = said
		}
		if err == nil && m.self.Role == "decode" {
			m.pairWith(peers)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

func (m *member) leave(end time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	response, err := m.post(ctx, http.DefaultClient, "/workers/leave", encode(map[string]any{"url": m.url, "seconds": max(0, time.Until(end).Seconds())}))
	if err == nil {
		response.Body.Close()
	}
	return err
}

// post sends a signed request to the front.
func (m *member) post(ctx context.Context, client *http.Client, path string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, "POST", m.options.front+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	m.authenticator.sign(request, "front", body)
	return client.Do(request)
}

// report sends the state of this worker and returns the workers that are up.
func (m *member) report() ([]peer, error) {
	metrics, err := m.Engine.Metrics()
	if err != nil {
		return nil, err
	}
	paired := make(map[string]string)
	m.mu.Lock()
	for url, p := range m.paired {
		if p.detail != "" {
			paired[url] = p.detail
		}
	}
	m.mu.Unlock()
	m.self.Role = m.Role() // it may have changed
	body := encode(report{m.self, metrics.Running, metrics.Waiting, paired})
	response, err := m.post(context.Background(), &m.client, "/workers", body)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(response.Status)
	}
	var answer struct{ Workers []peer }
	err = json.NewDecoder(response.Body).Decode(&answer)
	return answer.Workers, err
}

// pairWith starts pairing with new prefill workers, and forgets those that are gone.
func (m *member) pairWith(peers []peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	paired := make(map[string]*pairing)
	for _, p := range peers {
		if p.Role != "prefill" || p.Model != m.self.Model {
			continue
		}
		known := m.paired[p.URL]
		if known == nil || !bytes.Equal(known.address, p.Address) { // a new worker, or one that was restarted
			known = &pairing{address: p.Address}
			go m.pair(p.URL, known)
		}
		paired[p.URL] = known
	}
	m.paired = paired
}

// pair checks that KV can be fetched from a prefill worker, and sets up the connection before a request needs it.
func (m *member) pair(url string, p *pairing) {
	for wanted := true; wanted; {
		report, err := m.Cache.Pair(p.address, cleave.TransportAny)
		if err == nil {
			log.Printf("KV from %s: %s, %.1f GB/s", url, report.Detail, float64(report.BytesPerSecond)/1e9)
			m.mu.Lock()
			p.detail = report.Detail
			m.mu.Unlock()
			return
		}
		log.Printf("no KV from %s: %v", url, err)
		time.Sleep(pairAgain)
		m.mu.Lock()
		wanted = m.paired[url] == p
		m.mu.Unlock()
	}
}
