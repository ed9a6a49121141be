package main

import (
	"context"
	"log"
	"net/http"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
)

// completion is a request on its way through the engine. Each choice has a goroutine.
type completion struct {
	*engineHost
	*reply
	id      string
	request *request
	prompts [][]int32

	ctx    context.Context
	cancel context.CancelCauseFunc // called with the first error: ends all choices
	group  sync.WaitGroup

	cached, generated atomic.Int64 // prompt tokens found in the prefix cache; tokens of all choices

	choices []piece // their content so far, if the answer is not streamed
	sent    []int   // number of chunks of each choice, if it is streamed
}

// complete answers a request.
func (h *engineHost) complete(ctx context.Context, a *reply, q *request, prompts [][]int32, id string) error {
	n := len(prompts) * q.n
	c := &completion{engineHost: h, reply: a, id: id, request: q, prompts: prompts,
		choices: make([]piece, n), sent: make([]int, n)}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	if err := c.begin(); err != nil {
		return err
	}
	c.group.Wait()
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	prompted := 0
	for _, prompt := range prompts {
		prompted += len(prompt)
	}
	total := usage(prompted, int(c.generated.Load()))
	total["prompt_tokens_details"] = map[string]any{"cached_tokens": c.cached.Load()}
	answer := c.answer()
	answer["usage"] = total
	if !q.stream {
		choices := make([]any, n)
		for i, p := range c.choices {
			choices[i] = c.choice(i, p)
		}
		answer["choices"] = choices
		a.whole(http.StatusOK, encode(answer))
		return nil
	}
	c.trace("done", "worker", c.url)
	if q.includeUsage {
		a.data(answer)
	}
	a.done()
	return nil
}

func usage(prompt, completion int) map[string]any {
	return map[string]any{"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
}

// begin submits the first choice of each prompt. The others follow once the prompt's KV is computed.
func (c *completion) begin() error {
	if c.request.kv.DoRemotePrefill && len(c.prompts) == 1 {
		err := c.resume()
		if err == nil || c.ctx.Err() != nil {
			return err
		}
		log.Printf("the prompt of a ticket is computed here: %v", err)
	}
	c.trace("prefill", "worker", c.url)
	return c.submit(0, len(c.choices), c.request.n)
}

// submit submits every `step`-th choice from `first` up to, but not including, `end`.
func (c *completion) submit(first, end, step int) error {
	var requests []core.Request
	var batch []cleave.Request
	for i := first; i < end; i += step {
		request := engineRequest(c.request, c.prompts[i/c.request.n], i%c.request.n)
		requests, batch = append(requests, request), append(batch, request.Request)
	}
	streams, err := c.Engine.SubmitBatch(c.ctx, batch)
	if err != nil {
		return err
	}
	generations := make([]*core.Generation, len(streams))
	for i, stream := range streams {
		if generations[i], err = c.Follow(c.ctx, requests[i], stream); err != nil {
			return err
		}
	}
	for i, generation := range generations {
		c.follow(first+i*step, generation)
	}
	return nil
}

// resume continues from the KV of a prefill worker. The ticket also holds sampling parameters and limits, but those of
// this request count: other routers than a front ask the prefill worker for one token.
func (c *completion) resume() error {
	// A front passes the ticket on while the prompt is being computed.
	ticket := core.Ticket{Ticket: c.request.kv.Ticket, Streaming: c.options.front != ""}
	generation, err := c.Resume(c.ctx, engineRequest(c.request, c.prompts[0], 0), ticket)
	if err != nil {
		return err
	}
	c.follow(0, generation)
	c.group.Add(1)
	go func() { // the answer waits for this goroutine, so that "done" is the last trace event
		defer c.group.Done()
		err := generation.Arrived(c.ctx)
		if err != nil && c.ctx.Err() == nil {
			log.Printf("the KV of a prompt is computed anew: %v", err)
		}
		c.trace("kv_ready", "worker", c.url, "ok", err == nil)
	}()
	return nil
}

// follow starts a goroutine that reads the answer to a choice.
func (c *completion) follow(i int, generation *core.Generation) {
	if c.request.stream {
		c.send(nil) // sends the header: from now on errors are part of the stream
	}
	c.group.Add(1)
	go func() {
		defer c.group.Done()
		if err := c.read(i, generation); err != nil {
			c.cancel(err)
		}
	}()
}

// read turns the answer to a choice into chunks.
func (c *completion) read(i int, generation *core.Generation) error {
	if c.request.chat {
		c.emit(i, piece{role: "assistant"}, 0)
	}
	offset, begun := 0, false
	for p, err := range generation.Pieces() {
		if err != nil {
			return err
		}
		tokens := generation.Tokens()
		if !begun && c.request.n > 1 && i%c.request.n == 0 {
			if err := c.submit(i+1, i+c.request.n, 1); err != nil { // the other choices find the KV in the prefix cache
				return err
			}
		}
		begun = true
		if p.End == nil {
			if c.firstToken() {
				c.trace("decode", "worker", c.url)
			}
			next := piece{text: p.Text, tokens: c.logprobs(&p, offset)}
			offset += utf8.RuneCountInString(p.Raw)
			if next.text != "" || next.tokens != nil {
				c.emit(i, next, tokens)
			}
			continue
		}
		c.generated.Add(int64(tokens))
		if i%c.request.n == 0 { // its siblings reuse its KV
			c.cached.Add(int64(p.End.Cached))
		}
		if p.Text != "" {
			c.emit(i, piece{text: p.Text}, tokens)
		}
		c.emit(i, piece{finish: p.End.Reason.String()}, tokens)
	}
	return nil
}

// emit sends a piece to the client, unless a worker that is gone has already sent it. Only the choice's goroutine calls
// it. `tokens` is the number of tokens of the choice so far.
func (c *completion) emit(i int, p piece, tokens int) {
	if !c.request.stream {
		c.choices[i].add(p)
		return
	}
	c.sent[i]++
	if has := c.request.kv.Resume; i >= len(has) || c.sent[i] > has[i] {
		chunk := c.answer(c.choice(i, p))
		if c.request.usageInChunks {
			chunk["usage"] = usage(len(c.prompts[i/c.request.n]), tokens)
		}
		c.data(chunk)
	}
}

// logprobs returns the log-probabilities of a token, if the client wants them.
func (c *completion) logprobs(p *core.Piece, offset int) []tokenLogprob {
	if c.request.top < 0 {
		return nil
	}
	out := tokenLogprob{c.candidate(p.Token, p.Logprob), []candidate{}, offset}
	for _, top := range p.Top {
		out.Top = append(out.Top, c.candidate(top.Token, top.Logprob))
	}
	return []tokenLogprob{out}
}

func (c *completion) candidate(token int32, logprob float32) candidate {
	raw, _ := c.Model.TokenBytes(token) // cannot fail for a sampled token
	bytes := make([]int, len(raw))
	for i, b := range raw {
		bytes[i] = int(b)
	}
	return candidate{string(raw), max(float64(logprob), -9999), bytes} // JSON has no infinity
}
