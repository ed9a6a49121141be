package main

import (
	"context"
	"time"

	cleave "cleave/go"
)

// prefill computes a prompt for a decode worker, which fetches the KV itself with the ticket. The answer has a line
// with the ticket as soon as the prompt's turn has come, and one when it is computed.
func (h *engineHost) prefill(ctx context.Context, a *reply, q *request, prompts [][]int32) error {
	if !q.KV.DoRemoteDecode || len(prompts) != 1 {
		return invalid("kv_transfer_params", "a prefill worker computes prompts for decode workers, one at a time")
	}
	a.stream = jsonLines
	began := time.Now()
	request := engineRequest(q, prompts[0], 0)
	request.StreamKV = true
	var kv *cleave.KV
	done := false
	defer func() {
		if kv != nil && !done {
			kv.Close() // nobody will come for it
		}
	}()
	for event, err := range h.engine.Generate(ctx, request) {
		if err != nil {
			return err
		}
		if event.KV != nil && kv == nil {
			kv = event.KV
			ticket, err := kv.Ticket()
			if err != nil {
				return err
			}
			a.data(map[string]any{"kv_transfer_params": kvParams{DoRemotePrefill: true, Ticket: ticket}})
		}
		if event.Type != cleave.EventFinished {
			continue
		}
		if event.KV == nil {
			return invalid("", "the context has no room for another token")
		}
		a.data(map[string]any{"prefilled": map[string]any{"prompt_tokens": len(prompts[0]),
			"cached_tokens": event.CachedTokens, "ms": milliseconds(time.Since(began))}})
		done = ctx.Err() == nil
	}
	return nil
}
