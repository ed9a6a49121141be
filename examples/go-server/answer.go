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

type message struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
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
	Top []candidate `json:"top_logprobs"`
}

// piece is what a choice's next chunk holds: a role, text, or why it ended.
type piece struct {
	choice int
	role   bool
	text   string
	at     int // where the token's text begins in that of the choice, in characters
	token  *tokenLogprob
	finish string
}

// format writes pieces as the client wants to have them.
type format struct {
	id, model string
	created   int64
	chat      bool
}

func newFormat(id, model string, chat bool) format {
	return format{id: id, model: model, created: time.Now().Unix(), chat: chat}
}

func (f format) answer(stream bool, choices []choice, u *usage) answer {
	object := "text_completion"
	if f.chat && stream {
		object = "chat.completion.chunk"
	} else if f.chat {
		object = "chat.completion"
	}
	return answer{f.id, object, f.created, f.model, choices, u}
}

func (f format) chunk(p piece) answer {
	c := choice{Index: p.choice, Logprobs: f.logprobs([]piece{p})}
	switch {
	case !f.chat:
		c.Text = &p.text
	case p.role:
		c.Delta = &message{"assistant", &p.text}
	case p.finish != "":
		c.Delta = &message{}
	default:
		c.Delta = &message{Content: &p.text}
	}
	if p.finish != "" {
		c.FinishReason = &p.finish
	}
	return f.answer(true, []choice{c}, nil)
}

// whole puts the pieces of all choices together.
func (f format) whole(choices [][]piece, u *usage) answer {
	all := make([]choice, len(choices))
	for i, pieces := range choices {
		text, finish := "", ""
		for _, p := range pieces {
			text += p.text
			finish = p.finish
		}
		all[i] = choice{Index: i, Logprobs: f.logprobs(pieces), FinishReason: &finish}
		if f.chat {
			all[i].Message = &message{"assistant", &text}
		} else {
			all[i].Text = &text
		}
	}
	return f.answer(false, all, u)
}

// logprobs is what the pieces' tokens have, in the form that chats or completions have it; nil without any.
func (f format) logprobs(pieces []piece) any {
	var content []*tokenLogprob
	old := struct {
		Tokens        []string             `json:"tokens"`
		TokenLogprobs []float64            `json:"token_logprobs"`
		TopLogprobs   []map[string]float64 `json:"top_logprobs"`
		TextOffset    []int                `json:"text_offset"`
	}{}
	for _, p := range pieces {
		if p.token == nil {
			continue
		}
		content = append(content, p.token)
		top := map[string]float64{p.token.Token: p.token.Logprob}
		for _, t := range p.token.Top {
			if _, there := top[t.Token]; !there { // pieces of characters look alike
				top[t.Token] = t.Logprob
			}
		}
		old.Tokens = append(old.Tokens, p.token.Token)
		old.TokenLogprobs = append(old.TokenLogprobs, p.token.Logprob)
		old.TopLogprobs = append(old.TopLogprobs, top)
		old.TextOffset = append(old.TextOffset, p.at)
	}
	if len(content) == 0 {
		return nil
	}
	if f.chat {
		return map[string]any{"content": content}
	}
	return old
}
