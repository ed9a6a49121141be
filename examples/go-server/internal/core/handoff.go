package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log"
	"slices"
	"sync"

	cleave "cleave/go"
)

// ErrLost is returned for a ticket whose KV cannot be had: it expired, its exporter is gone or does not answer, or it is
// of another model. Somebody has to prefill the prompt again.
var ErrLost = errors.New("the KV of the prompt is lost")

// invalid is the text of an error that matches cleave.ErrInvalidArgument.
type invalid string

// Error returns the text.
func (e invalid) Error() string { return string(e) }

// Is makes [errors.Is] take the error for the library's.
func (e invalid) Is(target error) bool { return target == cleave.ErrInvalidArgument }

// firstTokenLogprobs are the alternatives that a snapshot carries for the first token, whatever the prefill request
// asked for, because the decode request may want them.
const firstTokenLogprobs = 20

// Prefilled is a computed prompt.
type Prefilled struct {
	KV     *cleave.KV // the handle that the ticket is for; to be closed if nobody gets the ticket
	Ticket Ticket
	First  Piece // the first token, without its text
	Cached int   // prompt tokens found in the prefix cache
}

// Ticket lets a decode worker fetch the KV of a prompt from the prefill worker.
type Ticket struct {
	Ticket  []byte
	Address []byte // of the prefill worker's cache; may be missing
	// Streaming says that the prefill worker got the parameters of this request, and may still be computing the prompt.
	// If the KV does not arrive, it is computed here.
	Streaming bool
}

// Prefill computes a prompt and its first token, for whoever gets the ticket.
func (h *Host) Prefill(ctx context.Context, r Request) (p Prefilled, err error) {
	// One token on an engine of any role. What it may be and whether it ends the generation is for the decode request
	// to say: routers ask the prefill worker for one token at least and at most.
	r.MaxNewTokens, r.MinNewTokens, r.KeepKV = 1, 0, true
	r.Logprobs, r.TopLogprobs = true, max(r.TopLogprobs, min(firstTokenLogprobs, h.About.VocabSize))
	for event, err := range h.Engine.Generate(ctx, r.Request) {
		switch {
		case err != nil:
			return p, err
		case event.Type == cleave.EventToken:
			p.First = Piece{Token: event.Token, Logprob: event.Logprob, Top: event.Top}
		case event.Type == cleave.EventFinished:
			p.KV, p.Cached = event.KV, event.CachedTokens
		}
	}
	if p.KV == nil {
		return p, invalid("the context has no room for another token")
	}
	if p.Ticket.Ticket, err = p.KV.Ticket(); err == nil {
		p.Ticket.Address, err = h.Cache.Address()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		p.KV.Close()
	}
	return p, err
}

// Run answers a request, which continues a ticket if there is one.
func (h *Host) Run(ctx context.Context, r Request, ticket Ticket) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		var g *Generation
		var err error
		if len(ticket.Ticket) > 0 {
			g, err = h.Resume(ctx, r, ticket)
		} else {
			g, err = h.Generate(ctx, r)
		}
		if err != nil {
			yield(Chunk{}, err)
			return
		}
		g.Chunks()(yield)
	}
}

// Resume continues a prompt that another process computes, with the sampling parameters of this request. The first token
// is reported too. The KV is fetched even if ctx ends before it is here, so that the exporter is rid of it. Resume waits
// for the KV, unless the ticket is of a prompt that may still be computed.
func (h *Host) Resume(ctx context.Context, r Request, ticket Ticket) (*Generation, error) {
	h.pairs.pair(h.Cache, ticket.Address)
	kv, err := h.Cache.Import(ticket.Ticket)
	if err != nil {
		return nil, lost(err)
	}
	if tokens, err := kv.Tokens(); err != nil || !ticket.continues(tokens, r.Prompt) {
		go release(kv)
		return nil, invalid("the ticket is of another prompt")
	}
	if r.MinNewTokens > 0 && !ticket.Streaming {
		// The prefill worker has sampled a first token that may end the generation. Here it must not, so the prompt is
		// computed, except for the part in the prefix cache.
		release(kv)
		return h.Generate(ctx, r)
	}
	r.KV, r.Prompt, r.EmitPending, r.OverrideSampling, r.Recompute = kv, nil, true, true, ticket.Streaming
	stream, err := h.Engine.Submit(context.WithoutCancel(ctx), r.Request)
	if errors.Is(err, cleave.ErrExpired) || errors.Is(err, cleave.ErrNotFound) {
		return nil, lost(err) // the import has failed meanwhile
	} else if err != nil {
		go release(kv)
		return nil, err
	}
	g, err := h.Follow(ctx, r, stream)
	if err != nil {
		return nil, err
	}
	g.imported = kv
	context.AfterFunc(ctx, func() {
		<-kv.Landed()
		stream.Close()
	})
	if ticket.Streaming {
		return g, nil
	}
	if err := kv.Wait(ctx); err != nil && ctx.Err() == nil {
		g.Close()
		return nil, lost(err)
	}
	return g, nil // if ctx has ended, reading it fails
}

// continues reports whether a sequence is the prompt and one generated token. The ticket of a prompt that was still being
// computed has no such token.
func (t Ticket) continues(sequence, prompt []int32) bool {
	return (len(sequence) == len(prompt)+1 || t.Streaming && len(sequence) == len(prompt)) && slices.Equal(sequence[:len(prompt)], prompt)
}

// release fetches the KV of a handle and drops it, which releases the exporter's.
func release(kv *cleave.KV) {
	<-kv.Landed()
	kv.Close()
}

func lost(err error) error {
	if errors.Is(err, cleave.ErrInvalidArgument) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}

// pairs are the caches that this one has been paired with, or is being paired with, by their addresses.
type pairs struct {
	mu    sync.Mutex
	known [][]byte
}

const mostPairs = 64 // addresses that are remembered

// pair sets up the connection to a cache that was not seen before, while the first import from it finds a way by
// itself.
func (p *pairs) pair(cache *cleave.Cache, address []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(address) == 0 || slices.ContainsFunc(p.known, func(k []byte) bool { return bytes.Equal(k, address) }) {
		return
	}
	p.known = append(p.known[max(0, len(p.known)-mostPairs+1):], address)
	go func() {
		report, err := cache.Pair(address, cleave.TransportAny)
		if err != nil {
			log.Printf("no KV from a prefill worker: %v", err)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.known = slices.DeleteFunc(p.known, func(k []byte) bool { return bytes.Equal(k, address) })
			return
		}
		log.Printf("KV from a prefill worker: %s, %.1f GB/s", report.Detail, float64(report.BytesPerSecond)/1e9)
	}()
}
