package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"sync"
	"unicode/utf8"

	cleave "cleave/go"
)

// completion is a request on its way through the engine. Each choice has a goroutine.
type completion struct {
	*engineHost
	*reply
	request *request
	prompts [][]int32
	format  format

	ctx    context.Context
	cancel context.CancelCauseFunc // with the first error: ends all choices
	group  sync.WaitGroup

	mu    sync.Mutex
	usage usage
	whole []piece // the choices, if the answer is not streamed
	sent  []int   // chunks of each, if it is
}

// complete answers a request.
func (h *engineHost) complete(ctx context.Context, a *reply, q *request, prompts [][]int32, id string) error {
	choices := len(prompts) * q.N
	c := &completion{engineHost: h, reply: a, request: q, prompts: prompts, format: newFormat(id, h.options.modelName, q),
		whole: make([]piece, choices), sent: make([]int, choices)}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	if err := c.submit(); err != nil {
		return err
	}
	c.group.Wait()
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	for _, prompt := range prompts {
		c.usage.PromptTokens += len(prompt)
	}
	c.usage.TotalTokens = c.usage.PromptTokens + c.usage.CompletionTokens
	if !q.Stream {
		all := make([]choice, choices)
		for i := range all {
			all[i] = c.format.choice(i, c.whole[i])
		}
		a.whole(http.StatusOK, encode(c.format.answer(all, &c.usage)))
		return nil
	}
	c.trace("done", "worker", c.url)
	if q.StreamOptions.IncludeUsage {
		a.data(c.format.answer([]choice{}, &c.usage))
	}
	a.done()
	return nil
}

// submit submits the first choice of each prompt. The others follow once the prompt's KV is there, see siblings.
func (c *completion) submit() error {
	if c.request.KV.DoRemotePrefill && len(c.prompts) == 1 {
		err := c.submitTicket()
		if err == nil || c.ctx.Err() != nil {
			return err
		}
		log.Printf("the prompt of a ticket is computed here: %v", err)
	}
	c.trace("prefill", "worker", c.url)
	requests := make([]cleave.Request, len(c.prompts))
	for i, prompt := range c.prompts {
		requests[i] = engineRequest(c.request, prompt, 0)
	}
	streams, err := c.engine.SubmitBatch(c.ctx, requests)
	if err != nil {
		return err
	}
	c.start(streams, 0, c.request.N)
	return nil
}

// submitTicket goes on from the KV that a prefill worker computes, or is still computing: the engine waits for it. If
// it does not come, the engine computes it from the ticket's tokens. Sampling and limits are the ticket's too.
func (c *completion) submitTicket() error {
	kv, err := c.cache.Import(c.request.KV.Ticket)
	if err != nil {
		return err
	}
	defer kv.Close() // if it is not submitted
	stream, err := c.engine.Submit(c.ctx, cleave.Request{KV: kv, EmitPending: true, Recompute: true})
	if err != nil {
		return err
	}
	c.start([]*cleave.Stream{stream}, 0, 1)
	c.group.Go(func() { // the answer ends after this, so that "done" is the last that is told
		err := kv.Wait(c.ctx)
		if err != nil && c.ctx.Err() == nil {
			log.Printf("the KV of a prompt is computed anew: %v", err)
		}
		c.trace("kv_ready", "worker", c.url, "ok", err == nil)
	})
	return nil
}

// siblings submits the other choices of a prompt, whose KV they find in the prefix cache.
func (c *completion) siblings(first int) error {
	var requests []cleave.Request
	for i := 1; i < c.request.N; i++ {
		requests = append(requests, engineRequest(c.request, c.prompts[first/c.request.N], i))
	}
	streams, err := c.engine.SubmitBatch(c.ctx, requests)
	if err == nil {
		c.start(streams, first+1, 1)
	}
	return err
}

// start follows streams, whose choices are `first` and every `step` from there.
func (c *completion) start(streams []*cleave.Stream, first, step int) {
	if c.request.Stream {
		c.begin()
	}
	for i, stream := range streams {
		c.group.Go(func() {
			if err := c.follow(first+i*step, stream); err != nil {
				c.cancel(err)
			}
		})
	}
}

// follow turns the events of a choice into pieces.
func (c *completion) follow(i int, stream *cleave.Stream) error {
	defer stream.Close()
	detokenizer, err := c.model.NewDetokenizer()
	if err != nil {
		return err
	}
	defer detokenizer.Close()
	if c.request.chat {
		c.emit(i, piece{role: "assistant"})
	}
	stop := stopMatcher{stops: c.request.Stop}
	tokens, offset := 0, 0
	for event, err := range stream.Events() {
		if err == nil && tokens == 0 && c.request.N > 1 && i%c.request.N == 0 {
			if err := c.siblings(i); err != nil {
				return err
			}
		}
		switch {
		case stop.found && event.Type != cleave.EventFinished:
		case err != nil && !(stop.found && errors.Is(err, cleave.ErrCancelled)):
			return err
		case event.Type == cleave.EventToken:
			tokens++
			if c.firstToken() {
				c.trace("decode", "worker", c.url)
			}
			text, err := detokenizer.Push(event.Token)
			if err != nil {
				return err
			}
			p := piece{text: text, tokens: c.logprobs(&event, offset)}
			offset += utf8.RuneCountInString(text)
			if tokens > int(c.request.MinTokens) {
				p.text = stop.push(text)
			}
			if p.text != "" || p.tokens != nil {
				c.emit(i, p)
			}
			if stop.found {
				c.emit(i, piece{finish: "stop"})
				stream.Cancel() // its end still tells what the prefix cache saved
			}
		case event.Type == cleave.EventFinished:
			c.count(i, tokens, event.CachedTokens)
			if !stop.found {
				return c.finish(i, detokenizer, &stop, event.Reason)
			}
		}
	}
	return nil
}

// finish emits what was held back, and why the choice ended.
func (c *completion) finish(i int, d *cleave.Detokenizer, stop *stopMatcher, reason cleave.FinishReason) error {
	rest, err := d.Flush()
	if err != nil {
		return err
	}
	if text := stop.push(rest) + stop.held; text != "" {
		c.emit(i, piece{text: text})
	}
	if stop.found {
		reason = cleave.FinishStop
	}
	c.emit(i, piece{finish: reason.String()})
	return nil
}

// emit gives a piece to the client, unless it has it of a worker that is gone. Each choice has one goroutine for that.
func (c *completion) emit(i int, p piece) {
	if !c.request.Stream {
		c.whole[i].add(p)
		return
	}
	c.sent[i]++
	if has := c.request.KV.Resume; i >= len(has) || c.sent[i] > has[i] {
		c.data(c.format.answer([]choice{c.format.choice(i, p)}, nil))
	}
}

func (c *completion) count(i, tokens, cached int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.usage.CompletionTokens += tokens
	if i%c.request.N == 0 { // its siblings find what it has left
		c.usage.PromptTokensDetails.CachedTokens += cached
	}
}

// logprobs is what is reported of a token, if anything is.
func (c *completion) logprobs(event *cleave.Event, offset int) []tokenLogprob {
	if c.request.top < 0 {
		return nil
	}
	out := tokenLogprob{c.candidate(event.Token, event.Logprob), []candidate{}, offset}
	for _, top := range event.Top {
		out.Top = append(out.Top, c.candidate(top.Token, top.Logprob))
	}
	return []tokenLogprob{out}
}

func (c *completion) candidate(token int32, logprob float32) candidate {
	raw, _ := c.model.TokenBytes(token) // of a token of the model's own
	bytes := make([]int, len(raw))
	for i, b := range raw {
		bytes[i] = int(b)
	}
	return candidate{string(raw), max(float64(logprob), -9999), bytes} // JSON has no infinity
}
