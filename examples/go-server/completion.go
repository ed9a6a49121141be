package main

import (
	"context"
	"errors"
	"log"
	"maps"
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

	mu     sync.Mutex
	usage  usage
	pieces [][]piece // of each choice, if the answer is not streamed
}

// complete answers a request.
func (h *engineHost) complete(a *reply, ctx context.Context, q *request, prompts [][]int32, id string) error {
	c := &completion{engineHost: h, reply: a, request: q, prompts: prompts, format: newFormat(id, h.options.modelName, q.chat),
		pieces: make([][]piece, len(prompts)*q.n)}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	streams, err := c.submit()
	if err != nil {
		return asAPIError(err, "")
	}
	if q.stream {
		a.begin(eventStream)
	}
	for _, prompt := range prompts {
		c.usage.PromptTokens += len(prompt)
	}
	for i, stream := range streams {
		c.start(i*q.n, stream)
	}
	c.group.Wait()
	if c.ctx.Err() != nil {
		return asAPIError(context.Cause(c.ctx), "")
	}
	c.usage.TotalTokens = c.usage.PromptTokens + c.usage.CompletionTokens
	c.tell("done", nil)
	if !q.stream {
		a.whole(encode(c.format.whole(c.pieces, &c.usage)))
		return nil
	}
	if q.usage {
		a.data(c.format.answer(true, []choice{}, &c.usage))
	}
	a.done()
	return nil
}

// submit submits the first choice of each prompt. The others follow once the prompt's KV is there, see siblings.
func (c *completion) submit() (streams []*cleave.Stream, err error) {
	if c.request.kv.DoRemotePrefill && len(c.prompts) == 1 {
		stream, err := c.submitTicket()
		if err == nil {
			return []*cleave.Stream{stream}, nil
		} else if c.ctx.Err() != nil {
			return nil, err
		}
		log.Printf("a ticket is no good, the prompt is computed here: %v", err)
	}
	c.tell("prefill", nil)
	requests := make([]cleave.Request, len(c.prompts))
	for i, prompt := range c.prompts {
		requests[i] = engineRequest(c.request, prompt, 0)
	}
	return c.engine.SubmitBatch(c.ctx, requests)
}

// submitTicket goes on from the KV that a prefill worker computes, or is still computing: the engine waits for it. If it
// does not come, the engine computes it from the ticket's tokens. Sampling and limits are the ticket's too.
func (c *completion) submitTicket() (*cleave.Stream, error) {
	kv, err := c.cache.Import(c.request.kv.Ticket)
	if err != nil {
		return nil, err
	}
	defer kv.Close() // if it is not submitted
	stream, err := c.engine.Submit(c.ctx, cleave.Request{KV: kv, EmitPending: true, Recompute: true})
	if err != nil {
		return nil, err
	}
	c.group.Add(1)
	go func() {
		defer c.group.Done()
		err := kv.Wait(c.ctx)
		if c.ctx.Err() != nil {
			return
		} else if err != nil {
			log.Printf("the KV of a prompt is computed anew: %v", err)
		}
		c.tell("kv_ready", map[string]any{"ok": err == nil})
	}()
	return stream, nil
}

// siblings submits the other choices of a prompt, whose KV they find in the prefix cache.
func (c *completion) siblings(first int) error {
	prompt := c.prompts[first/c.request.n]
	var requests []cleave.Request
	for i := 1; i < c.request.n; i++ {
		requests = append(requests, engineRequest(c.request, prompt, i))
	}
	streams, err := c.engine.SubmitBatch(c.ctx, requests)
	if err != nil {
		return err
	}
	for i, stream := range streams {
		c.start(first+1+i, stream)
	}
	return nil
}

func (c *completion) start(i int, stream *cleave.Stream) {
	c.group.Add(1)
	go func() {
		defer c.group.Done()
		if err := c.follow(i, stream); err != nil {
			c.cancel(err)
		}
	}()
}

// follow turns the events of a choice into pieces.
func (c *completion) follow(i int, stream *cleave.Stream) error {
	defer stream.Close()
	detokenizer, err := c.model.NewDetokenizer()
	if err != nil {
		return err
	}
	defer detokenizer.Close()
	q, first := c.request, i%c.request.n == 0
	out := output{completion: c, choice: i}
	if q.chat {
		out.emit(piece{role: true})
	}
	stop := stopMatcher{stops: q.stop}
	tokens, at, stopped := 0, 0, false
	for event, err := range stream.Events() {
		if stopped && event.Type != cleave.EventFinished {
			continue
		}
		if err != nil && !(stopped && errors.Is(err, cleave.ErrCancelled)) {
			return err
		}
		if first && q.n > 1 && tokens == 0 && !stopped {
			if err := c.siblings(i); err != nil {
				return err
			}
		}
		switch event.Type {
		case cleave.EventToken:
			if c.firstToken() {
				c.tell("decode", nil)
			}
			text, err := detokenizer.Push(event.Token)
			if err != nil {
				return err
			}
			p := piece{text: text, at: at, token: c.logprob(&event)}
			at += utf8.RuneCountInString(text)
			if tokens++; tokens > int(q.minTokens) {
				p.text, stopped = stop.push(text)
			}
			if p.text != "" || p.token != nil {
				out.emit(p)
			}
			if stopped {
				out.emit(piece{finish: "stop"})
				stream.Cancel() // its end still tells what the prefix cache saved
			}
		case cleave.EventFinished:
			c.count(tokens, event.CachedTokens, first)
			if !stopped {
				return c.finish(&out, detokenizer, &stop, event.Reason)
			}
		}
	}
	return nil
}

// finish emits what was held back, and why the choice ended.
func (c *completion) finish(out *output, detokenizer *cleave.Detokenizer, stop *stopMatcher, reason cleave.FinishReason) error {
	rest, err := detokenizer.Flush()
	if err != nil {
		return err
	}
	text, stopped := stop.push(rest)
	if text += stop.held; text != "" {
		out.emit(piece{text: text})
	}
	if stopped {
		reason = cleave.FinishStop
	}
	out.emit(piece{finish: reason.String()})
	return nil
}

func (c *completion) count(tokens, cached int, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.usage.CompletionTokens += tokens
	if first { // the others find what it has left
		c.usage.PromptTokensDetails.CachedTokens += cached
	}
}

// logprob is what is reported of a token, if anything is.
func (c *completion) logprob(event *cleave.Event) *tokenLogprob {
	if c.request.logprobs < 0 {
		return nil
	}
	out := &tokenLogprob{c.candidate(event.Token, event.Logprob), []candidate{}}
	for _, top := range event.Top {
		out.Top = append(out.Top, c.candidate(top.Token, top.Logprob))
	}
	return out
}

func (c *completion) candidate(token int32, logprob float32) candidate {
	raw, _ := c.model.TokenBytes(token) // of a token of the model's own
	bytes := make([]int, len(raw))
	for i, b := range raw {
		bytes[i] = int(b)
	}
	return candidate{string(raw), max(float64(logprob), -9999), bytes} // JSON has no infinity
}

// tell traces a phase, and that it is here.
func (c *completion) tell(phase string, more map[string]any) {
	fields := map[string]any{"worker": c.url}
	maps.Copy(fields, more)
	c.trace(phase, fields)
}

// output is where the pieces of a choice go: to the client, but for those that it has of a worker that is gone.
type output struct {
	*completion
	choice, n int
}

func (o *output) emit(p piece) {
	p.choice = o.choice
	if !o.request.stream {
		o.pieces[p.choice] = append(o.pieces[p.choice], p)
		return
	}
	o.n++
	if has := o.request.kv.Resume; p.choice >= len(has) || o.n > has[p.choice] {
		o.data(o.format.chunk(p))
	}
}
