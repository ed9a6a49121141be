package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	cleave "cleave/go"
)

const (
	reportEvery = 500 * time.Millisecond
	pairAgain   = 2 * time.Second // after a pairing that failed
)

// member keeps a worker in touch with its front.
type member struct {
	front  string
	self   peer
	host   *engineHost
	client http.Client
	peers  chan []peer // from the reports to the pairing

	mu     sync.Mutex
	paired map[string]pairing // prefill workers by URL
}

// pairing is what came of cleave_cache_pair with an address.
type pairing struct {
	address []byte
	detail  string
	at      time.Time
	err     error
}

// join reports to the front from now on, until `leave` tells it that the worker goes.
func join(o *options, url string, h *engineHost) (leave func(), err error) {
	address, err := h.cache.Address()
	if err != nil {
		return nil, err
	}
	m := &member{
		front:  o.front,
		self:   peer{URL: url, Role: o.role, Model: o.modelName, Address: address},
		host:   h,
		client: http.Client{Timeout: silence / 2, Transport: &http.Transport{}},
		peers:  make(chan []peer),
		paired: make(map[string]pairing),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.report(ctx)
	}()
	if o.role == "decode" {
		go func() {
			for peers := range m.peers {
				m.pair(peers)
			}
		}()
	}
	return func() {
		cancel()
		<-done
		close(m.peers)
		m.leave()
	}, nil
}

// report tells the front every 500 ms how things are, and hears who else is there.
func (m *member) report(ctx context.Context) {
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	var last string // what was logged
	for {
		peers, err := m.reportOnce(ctx)
		said := "joined " + m.front
		if err != nil {
			said = "cannot join " + m.front + ": " + err.Error()
		}
		if said != last && ctx.Err() == nil {
			log.Print(said)
			last = said
		}
		if err == nil && m.self.Role == "decode" {
			select {
			case m.peers <- peers:
			default: // still pairing with those of before
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (m *member) reportOnce(ctx context.Context) ([]peer, error) {
	metrics, err := m.host.engine.Metrics()
	if err != nil {
		return nil, err
	}
	body := encode(report{m.self, metrics.Running, metrics.Waiting, m.details()})
	request, err := http.NewRequestWithContext(ctx, "POST", m.front+"/workers", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := m.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer struct{ Workers []peer }
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	return answer.Workers, err
}

func (m *member) leave() {
	request, err := http.NewRequest("DELETE", m.front+"/workers?url="+url.QueryEscape(m.self.URL), nil)
	if err == nil {
		if response, err := m.client.Do(request); err == nil {
			response.Body.Close()
		}
	}
}

// details tells with which prefill workers this one is paired, and how.
func (m *member) details() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	details := make(map[string]string)
	for url, p := range m.paired {
		if p.err == nil {
			details[url] = p.detail
		}
	}
	return details
}

// pair makes sure that KV can be fetched from every prefill worker, and pays now for what it costs once.
func (m *member) pair(peers []peer) {
	peers = slices.DeleteFunc(peers, func(p peer) bool { return p.Role != "prefill" || p.Model != m.self.Model })
	m.mu.Lock()
	for url, old := range m.paired { // forget those that are gone, or are others now
		if !slices.ContainsFunc(peers, func(p peer) bool { return p.URL == url && bytes.Equal(p.Address, old.address) }) {
			delete(m.paired, url)
		}
	}
	m.mu.Unlock()
	for _, p := range peers {
		m.mu.Lock()
		old, known := m.paired[p.URL]
		m.mu.Unlock()
		if known && (old.err == nil || time.Since(old.at) < pairAgain) {
			continue
		}
		report, err := m.host.cache.Pair(p.Address, cleave.TransportAny)
		if err != nil {
			log.Printf("no KV from %s: %v", p.URL, err)
		} else {
			log.Printf("KV from %s: %s, %.1f GB/s", p.URL, report.Detail, float64(report.BytesPerSecond)/1e9)
		}
		m.mu.Lock()
		m.paired[p.URL] = pairing{p.Address, report.Detail, time.Now(), err}
		m.mu.Unlock()
	}
}
