package main

import (
	"context"
	"net/http"
	"time"

	cleave "cleave/go"
)

// prefill computes a prompt for a decode worker, which fetches the KV itself with the ticket. The answer is a line with
// the ticket as soon as the engine begins with the prompt, and another line once the prompt is computed.
func (h *engineHost) prefill(ctx context.Context, a *reply, q *request, prompts [][]int32) error {
	if !q.kv.DoRemoteDecode {
		return invalid("kv_transfer_params", "kv_transfer_params must have do_remote_decode: this is a prefill worker")
	}
	if h.options.front == "" {
		return h.prefillWhole(ctx, a, q, prompts)
	}
	if h.Role() != "prefill" { // the front does not know yet: the decode worker computes the prompt
		return unavailable("this is not a prefill worker any more")
	}
	if len(prompts) != 1 {
		return invalid("prompt", "prompt must be one prompt: a prefill worker computes one at a time")
	}
	a.stream = jsonLines
	began := time.Now()
	request := engineRequest(q, prompts[0], 0)
	request.StreamKV = true
	for event, err := range h.Engine.Generate(ctx, request.Request) {
		switch {
		case err != nil:
			return err
		case event.Type == cleave.EventKVStreamStarted:
			ticket, err := event.KV.Ticket()
			if err != nil {
				return err
			}
			a.data(map[string]any{"kv_transfer_params": kvParams{DoRemotePrefill: true, Ticket: ticket}})
		case event.Type == cleave.EventFinished && event.KV == nil:
			return invalid("", "the context has no room for another token")
		case event.Type == cleave.EventFinished:
			a.data(map[string]any{"prefilled": map[string]any{"prompt_tokens": len(prompts[0]),
				"cached_tokens": event.CachedTokens, "ms": milliseconds(time.Since(began))}})
			if ctx.Err() != nil {
				event.KV.Close() // nobody will fetch it
			}
		}
	}
	return nil
}

// prefillWhole does the same for a router that speaks vLLM's protocol: one answer, once the prompt is computed, so that
// the router knows how busy this worker is. With several prompts there is no ticket, and the decode worker computes them.
func (h *engineHost) prefillWhole(ctx context.Context, a *reply, q *request, prompts [][]int32) error {
	c := &completion{engineHost: h, reply: a, id: newID(q.chat), request: q}
	answer := c.answer(c.choice(0, piece{role: "assistant", finish: "length"}))
	answer["kv_transfer_params"] = nil
	if len(prompts) == 1 {
		prefilled, err := h.Prefill(ctx, engineRequest(q, prompts[0], 0))
		if err != nil {
			return err
		}
		answer["usage"] = usage(len(prompts[0]), 1)
		answer["kv_transfer_params"] = kvParams{DoRemotePrefill: true, Ticket: prefilled.Ticket.Ticket}
	}
	a.whole(http.StatusOK, encode(answer))
	return nil
}
