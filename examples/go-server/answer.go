package main

// piece is the content of the next chunk of a choice. The pieces of a choice together are its whole answer.
type piece struct {
	role, text, finish string
	tokens             []tokenLogprob // set only if log-probabilities are wanted
}

func (p *piece) add(next piece) {
	p.role += next.role
	p.text += next.text
	p.finish += next.finish
	p.tokens = append(p.tokens, next.tokens...)
}

// candidate is a possible token with its log-probability; tokenLogprob is the one that was sampled, with the likeliest
// candidates for its place.
type candidate struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

type tokenLogprob struct {
	candidate
	Top    []candidate `json:"top_logprobs"`
	offset int         // position of the token's text in the choice's text, in characters
}

// answer is the whole answer, or a chunk, without usage.
func (c *completion) answer(choices ...any) map[string]any {
	object := "text_completion"
	if c.request.chat && c.request.stream {
		object = "chat.completion.chunk"
	} else if c.request.chat {
		object = "chat.completion"
	}
	return map[string]any{"id": c.id, "object": object, "created": c.start.Unix(), "model": c.options.modelName,
		"choices": append([]any{}, choices...)}
}

// choice is a piece in the form of the client's endpoint.
func (c *completion) choice(index int, p piece) map[string]any {
	out := map[string]any{"index": index, "logprobs": nil, "finish_reason": nil}
	if p.finish != "" {
		out["finish_reason"] = p.finish
	}
	if len(p.tokens) > 0 && c.request.chat {
		out["logprobs"] = map[string]any{"content": p.tokens}
	} else if len(p.tokens) > 0 {
		out["logprobs"] = columns(p.tokens)
	}
	if !c.request.chat {
		out["text"] = p.text
		return out
	}
	message := map[string]any{}
	if p.role != "" {
		message["role"] = p.role
	}
	if p.role != "" || p.text != "" {
		message["content"] = p.text
	}
	if c.request.stream {
		out["delta"] = message
	} else {
		out["message"] = message
	}
	return out
}

// columns is the form of log-probabilities in text completions.
func columns(tokens []tokenLogprob) map[string]any {
	var texts []string
	var logprobs []float64
	var tops []map[string]float64
	var offsets []int
	for _, t := range tokens {
		top := make(map[string]float64)
		for _, other := range append([]candidate{t.candidate}, t.Top...) {
			if _, there := top[other.Token]; !there { // incomplete characters may have the same text
				top[other.Token] = other.Logprob
			}
		}
		texts = append(texts, t.Token)
		logprobs = append(logprobs, t.Logprob)
		tops = append(tops, top)
		offsets = append(offsets, t.offset)
	}
	return map[string]any{"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}
}
