package main

import "time"

// answer is a chat.completion, a text_completion, or a chunk of one.
type answer struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Created int64    `json:"created"`
	Model   string   `json:"model"`
	Choices []choice `json:"choices"`
	Usage   *usage   `json:"usage,omitempty"`
}

type choice struct {
	Index        int      `json:"index"`
	Delta        *message `json:"delta,omitempty"`   // of a chat's chunk
	Message      *message `json:"message,omitempty"` // of a whole chat
	Text         *string  `json:"text,omitempty"`    // of a completion, whole or not
	Logprobs     any      `json:"logprobs"`
	FinishReason *string  `json:"finish_reason"`
}

type usage struct {
	PromptTokens        int `json:"prompt_tokens"`
	CompletionTokens    int `json:"completion_tokens"`
	TotalTokens         int `json:"total_tokens"`
	PromptTokensDetails struct {
		CachedTokens int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// candidate is a token that could be, with its log-probability; tokenLogprob is the one that is, and the likeliest
// candidates for its place.
type candidate struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

type tokenLogprob struct {
	candidate
	Top    []candidate `json:"top_logprobs"`
	offset int         // of the token's text in that of the choice, in characters
}

// piece is what the next chunk of a choice holds. The pieces of a choice put together are the whole of it.
type piece struct {
	role, text, finish string
	tokens             []tokenLogprob // with log-probabilities only
}

func (p *piece) add(next piece) {
	p.role += next.role
	p.text += next.text
	p.finish += next.finish
	p.tokens = append(p.tokens, next.tokens...)
}

// format writes pieces as the client wants to have them.
type format struct {
	id, model    string
	created      int64
	chat, stream bool
}

func newFormat(id, model string, q *request) format {
	return format{id, model, time.Now().Unix(), q.chat, q.Stream}
}

func (f *format) answer(choices []choice, u *usage) answer {
	object := "text_completion"
	if f.chat && f.stream {
		object = "chat.completion.chunk"
	} else if f.chat {
		object = "chat.completion"
	}
	return answer{f.id, object, f.created, f.model, choices, u}
}

func (f *format) choice(index int, p piece) choice {
	c := choice{Index: index}
	if p.finish != "" {
		c.FinishReason = &p.finish
	}
	if len(p.tokens) > 0 && f.chat {
		c.Logprobs = map[string]any{"content": p.tokens}
	} else if len(p.tokens) > 0 {
		c.Logprobs = columns(p.tokens)
	}
	if !f.chat {
		c.Text = &p.text
		return c
	}
	m := &message{Role: p.role}
	if p.role != "" || p.text != "" {
		m.Content = (*content)(&p.text)
	}
	if f.stream {
		c.Delta = m
	} else {
		c.Message = m
	}
	return c
}

// columns is how completions have log-probabilities.
func columns(tokens []tokenLogprob) any {
	var c struct {
		Tokens        []string             `json:"tokens"`
		TokenLogprobs []float64            `json:"token_logprobs"`
		TopLogprobs   []map[string]float64 `json:"top_logprobs"`
		TextOffset    []int                `json:"text_offset"`
	}
	for _, t := range tokens {
		top := make(map[string]float64)
		for _, other := range append([]candidate{t.candidate}, t.Top...) {
			if _, there := top[other.Token]; !there { // pieces of characters look alike
				top[other.Token] = other.Logprob
			}
		}
		c.Tokens = append(c.Tokens, t.Token)
		c.TokenLogprobs = append(c.TokenLogprobs, t.Logprob)
		c.TopLogprobs = append(c.TopLogprobs, top)
		c.TextOffset = append(c.TextOffset, t.offset)
	}
	return c
}
