package core

import (
	"context"
	"errors"
	"iter"
	"slices"

	cleave "cleave/go"
)

// Request is a request to the engine, with what the server does about its text.
type Request struct {
	cleave.Request
	StopStrings []string
	// KeepStop leaves the stop string, or the text of the stop token, in the text.
	KeepStop bool
	// Before holds the tokens whose text the generated text continues. Without them it begins a text of its own.
	Before []int32
}

// Piece is a token of a generation, or its end.
type Piece struct {
	Token   int32
	Logprob float32
	Top     []cleave.TokenLogprob
	// Raw is the text that the token completes, and Text the text that is decided with it. Held tells that some text
	// waits for what follows, because it may begin a stop string.
	Raw, Text string
	Held      bool
	// End is set in the last piece, which has no token. Its Text is what was left.
	End *End
}

// End describes how a generation ended.
type End struct {
	Reason     cleave.FinishReason // FinishStop or FinishLength
	StopString string              // the stop string that ended it, if one did
	StopToken  int32               // the stop id or EOS id that ended it, or -1
	Cached     int                 // prompt tokens found in the prefix cache
}

// Generation follows a request through the engine.
type Generation struct {
	host    *Host
	ctx     context.Context
	request Request
	stream  *cleave.Stream
	text    *text
	tokens  int
	last    int32

	imported *cleave.KV // the handle that the generation continues; nil if the prompt is computed here
}

// Generate submits a request. The end of ctx cancels it.
func (h *Host) Generate(ctx context.Context, r Request) (*Generation, error) {
	stream, err := h.Engine.Submit(ctx, r.Request)
	if err != nil {
		return nil, err
	}
	return h.Follow(ctx, r, stream)
}

// Follow follows a request that was submitted.
func (h *Host) Follow(ctx context.Context, r Request, stream *cleave.Stream) (*Generation, error) {
	text, err := newText(h.Model, r.Before, stopMatcher{stops: r.StopStrings, keep: r.KeepStop})
	if err != nil {
		stream.Close()
		return nil, err
	}
	return &Generation{host: h, ctx: ctx, request: r, stream: stream, text: text, last: -1}, nil
}

// Tokens returns the number of tokens so far.
func (g *Generation) Tokens() int { return g.tokens }

// Arrived waits until the KV from another process is here, and returns an error if it did not come. It returns nil at
// once if the prompt is computed here.
func (g *Generation) Arrived(ctx context.Context) error {
	if g.imported == nil {
		return nil
	}
	return g.imported.Wait(ctx)
}

// Pieces returns the pieces of the generation as they come. Leaving the loop cancels the request.
func (g *Generation) Pieces() iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		defer g.Close()
		for {
			event, err := g.stream.Next()
			stopped := g.text.stop.found != ""
			switch {
			case stopped && event.Type != cleave.EventFinished && err == nil:
				continue // tokens from before the engine was told
			case err != nil && !(stopped && errors.Is(err, cleave.ErrCancelled)):
				drop(event.KV)
				yield(Piece{}, err)
				return
			case event.Type == cleave.EventToken:
				piece, err := g.token(&event)
				if !yield(piece, err) || err != nil {
					return
				}
				if g.text.stop.found != "" {
					g.stream.Cancel() // the last event still reports the tokens found in the prefix cache
				}
			case event.Type == cleave.EventFinished && event.Reason == cleave.FinishPrefilled && !stopped:
				if err := g.proceed(event.KV); err != nil {
					yield(Piece{}, err)
					return
				}
			case event.Type == cleave.EventFinished:
				drop(event.KV)
				yield(g.end(&event))
				return
			}
		}
	}
}

// drop releases a handle that nobody continues. A request that was accepted while the engine's role was prefill ends with
// one, whatever ended it.
func drop(kv *cleave.KV) {
	if kv != nil {
		kv.Close()
	}
}

// Chunk is a part of an answer whose text is decided.
type Chunk struct {
	Tokens []Piece // without their texts
	Text   string
	End    *End // set in the last chunk
}

// Chunks returns the answer in chunks, of one token where possible. A token whose text is held back waits with those
// after it until the text is decided: then whoever continues the answer elsewhere, from the tokens that came, gives the
// text that is missing and no other.
func (g *Generation) Chunks() iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		var next Chunk
		for piece, err := range g.Pieces() {
			if err != nil {
				yield(Chunk{}, err)
				return
			}
			next.Text += piece.Text
			if next.End = piece.End; next.End == nil {
				next.Tokens = append(next.Tokens, piece)
			}
			if !piece.Held {
				if !yield(next, nil) {
					return
				}
				next = Chunk{}
			}
		}
	}
}

// Close cancels the request if it has not ended.
func (g *Generation) Close() {
	g.stream.Close()
	g.text.detokenizer.Close()
}

// token returns the piece of a token.
func (g *Generation) token(event *cleave.Event) (p Piece, err error) {
	g.tokens++
	g.last = event.Token
	p = Piece{Token: event.Token, Logprob: event.Logprob, Top: event.Top}
	counts := g.tokens >= g.request.MinNewTokens
	if counts && !g.request.KeepStop && slices.Contains(g.request.Stop, event.Token) {
		p.Held = g.text.stop.held != ""
		return p, nil // it ends the generation, and its text is not part of the answer
	}
	p.Raw, p.Text, err = g.text.push(event.Token, g.tokens > g.request.MinNewTokens)
	p.Held = g.text.stop.held != ""
	return p, err
}

// end returns the last piece.
func (g *Generation) end(event *cleave.Event) (p Piece, err error) {
	p.End = &End{Reason: event.Reason, StopToken: -1, Cached: event.CachedTokens}
	if g.text.stop.found == "" {
		if p.Text, err = g.text.rest(); err != nil {
			return Piece{}, err
		}
		if event.Reason == cleave.FinishStop {
			p.End.StopToken = g.last
		}
	}
	if found := g.text.stop.found; found != "" {
		p.End.Reason, p.End.StopString, p.End.StopToken = cleave.FinishStop, found, -1
	}
	return p, nil
}

// proceed continues a request that was accepted while the engine's role was prefill, with the same stream of pieces. It
// goes on token by token until the role changes.
func (g *Generation) proceed(kv *cleave.KV) error {
	defer kv.Close() // releases the handle if it was not submitted
	stream, err := g.host.Engine.Submit(g.ctx, cleave.Request{KV: kv, Priority: g.request.Priority})
	if err != nil {
		return err
	}
	g.stream.Close()
	g.stream = stream
	return nil
}
