package main

import (
	"context"
	"time"

	cleave "cleave/go"
)

// prefill computes a prompt for a decode worker, which fetches the KV itself with the ticket. The answer has a line with
// the ticket as soon as the prompt's turn has come, and one when it is computed.
func (h *engineHost) prefill(a *reply, ctx context.Context, q *request, prompts [][]int32) error {
	if !q.kv.DoRemoteDecode || len(prompts) != 1 {
		return invalid("kv_transfer_params", "a prefill worker computes prompts for decode workers, one at a time")
	}
	began := time.Now()
	request := engineRequest(q, prompts[0], 0)
	request.StreamKV = true
	stream, err := h.engine.Submit(ctx, request)
	if err != nil {
		return asAPIError(err, "")
	}
	var handle *cleave.KV // once its ticket is sent
	done := false
	defer func() {
		if handle != nil && !done {
			handle.Close() // nobody will come for it
		}
	}()
	for event, err := range stream.Events() {
		if event.KV != nil && handle == nil {
			ticket, err := event.KV.Ticket()
			if err != nil {
				return err
			}
			handle = event.KV
			a.line(map[string]any{"kv_transfer_params": kvParams{DoRemotePrefill: true, Ticket: ticket}})
		}
		if err == nil && event.Type != cleave.EventFinished {
			continue
		}
		if err == nil && event.KV == nil {
			err = invalid("", "the context has no room for another token")
		}
		if err != nil && handle == nil {
			return asAPIError(err, "")
		} else if err != nil {
			a.line(asReported(ctx, err))
			return nil
		}
		a.line(map[string]any{"prefilled": map[string]any{
			"prompt_tokens": len(prompts[0]), "cached_tokens": event.CachedTokens, "ms": milliseconds(time.Since(began))}})
		done = ctx.Err() == nil
	}
	return nil
}
