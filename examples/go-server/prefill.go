package main

import (
	"context"
	"time"

	cleave "cleave/go"
)

// prefill computes a prompt for a decode worker, which fetches the KV itself with the ticket. The answer is a line with
// the ticket as soon as the engine begins with the prompt, and another line once the prompt is computed.
func (h *engineHost) prefill(ctx context.Context, a *reply, q *request, prompts [][]int32) error {
	if !q.kv.DoRemoteDecode || len(prompts) != 1 {
		return invalid("kv_transfer_params", "a prefill worker computes prompts for decode workers, one at a time")
	}
	a.stream = jsonLines
	began := time.Now()
	request := engineRequest(q, prompts[0], 0)
	request.StreamKV = true
	for event, err := range h.engine.Generate(ctx, request) {
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
