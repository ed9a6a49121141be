package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// apiError is what goes to a client as {"error": ...}.
type apiError struct {
	status  int
	Message string `json:"message"`
	Type    string `json:"type"`
	Param   any    `json:"param"` // a string or nil, as the code
	Code    any    `json:"code"`
}

func (e *apiError) Error() string { return e.Message }

func refused(status int, message string) *apiError {
	return &apiError{status: status, Message: message, Type: "invalid_request_error"}
}

func invalid(param, format string, args ...any) *apiError {
	err := refused(http.StatusBadRequest, fmt.Sprintf(format, args...))
	if param != "" {
		err.Param = param
	}
	return err
}

func unavailable(why string) *apiError {
	return &apiError{status: http.StatusServiceUnavailable, Message: why, Type: "service_unavailable"}
}

func unknownModel(name string) *apiError {
	err := refused(http.StatusNotFound, fmt.Sprintf("the model %q does not exist", name))
	err.Param, err.Code = "model", "model_not_found"
	return err
}

// reported is what a client is told of an error, in the context of its request.
func reported(ctx context.Context, err error) *apiError {
	var known *apiError
	switch {
	case context.Cause(ctx) == errShuttingDown:
		return unavailable(errShuttingDown.Error())
	case ctx.Err() != nil: // nobody reads this; other servers count it so
		return refused(499, "the client is gone")
	case errors.As(err, &known):
		return known
	}
	return engineError(err)
}

// request is the body of POST /v1/chat/completions or /v1/completions.
type request struct {
	Model         string    `json:"model"`
	Messages      []message `json:"messages"`
	Prompt        prompts   `json:"prompt"`
	MaxTokens     *int32    `json:"max_tokens"`
	MaxNewTokens  *int32    `json:"max_completion_tokens"`
	MinTokens     int32     `json:"min_tokens"`
	IgnoreEOS     bool      `json:"ignore_eos"`
	N             int       `json:"n"`
	Seed          *int64    `json:"seed"`
	Stop          texts     `json:"stop"`
	Stream        bool      `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	Temperature       float32           `json:"temperature"`
	TopK              int32             `json:"top_k"`
	TopP              float32           `json:"top_p"`
	MinP              float32           `json:"min_p"`
	RepetitionPenalty float32           `json:"repetition_penalty"`
	PresencePenalty   float32           `json:"presence_penalty"`
	FrequencyPenalty  float32           `json:"frequency_penalty"`
	LogitBias         map[int32]float32 `json:"logit_bias"`
	Logprobs          json.RawMessage   `json:"logprobs"` // chat: whether; completions: how many
	TopLogprobs       *int              `json:"top_logprobs"`
	Priority          uint32            `json:"priority"`
	KV                kvParams          `json:"kv_transfer_params"`
	BestOf            *int              `json:"best_of"`
	Echo              bool              `json:"echo"`
	ResponseFormat    struct {
		Type string `json:"type"`
	} `json:"response_format"`
	Tools     any `json:"tools"`
	Functions any `json:"functions"`
	Suffix    any `json:"suffix"`

	raw       []byte
	chat      bool
	maxTokens int32 // 0: until the context is full
	top       int   // alternatives beside each token; -1: no log-probabilities at all
}

// kvParams is what front and workers tell each other in a request, see "Workers" in ../README.md.
type kvParams struct {
	DoRemoteDecode  bool   `json:"do_remote_decode,omitempty"`
	DoRemotePrefill bool   `json:"do_remote_prefill,omitempty"`
	Ticket          []byte `json:"ticket,omitempty"`
	Resume          []int  `json:"resume,omitempty"`
}

// message is what a chat template takes of a message.
type message struct {
	Role    string   `json:"role,omitempty"`
	Content *content `json:"content,omitempty"`
}

func (m message) incomplete() bool { return m.Role == "" || m.Content == nil }

// content is a string or an array of text parts.
type content string

func (c *content) UnmarshalJSON(raw []byte) error {
	if json.Unmarshal(raw, (*string)(c)) == nil {
		return nil
	}
	var parts []struct {
		Type string
		Text *string
	}
	if json.Unmarshal(raw, &parts) != nil || len(parts) == 0 {
		return invalid("messages", "the content of a message must be a string or an array of text parts")
	}
	for _, part := range parts {
		if part.Type != "text" || part.Text == nil {
			return invalid("messages", "other parts of a message than text are not supported")
		}
		*c += content(*part.Text)
	}
	return nil
}

// prompts are texts, or lists of token ids.
type prompts []prompt

type prompt struct {
	text   string
	tokens []int32
}

func (p *prompts) UnmarshalJSON(raw []byte) error {
	var some texts
	var tokens []int32
	var lists [][]int32
	if json.Unmarshal(raw, &some) == nil {
		for _, text := range some {
			*p = append(*p, prompt{text: text})
		}
	} else if json.Unmarshal(raw, &tokens) == nil {
		*p = prompts{{tokens: tokens}}
	} else if json.Unmarshal(raw, &lists) == nil {
		for _, tokens := range lists {
			*p = append(*p, prompt{tokens: tokens})
		}
	} else {
		return invalid("prompt", "prompt must be a string, token ids, or an array of either")
	}
	return nil
}

// texts is a string or an array of strings.
type texts []string

func (t *texts) UnmarshalJSON(raw []byte) error {
	var one *string
	if json.Unmarshal(raw, &one) != nil {
		return json.Unmarshal(raw, (*[]string)(t))
	}
	if one != nil {
		*t = texts{*one}
	}
	return nil
}

// parseRequest reads a request and checks it as far as that goes without a model.
func parseRequest(body []byte, chat bool) (*request, error) {
	if !utf8.Valid(body) {
		return nil, invalid("", "the body is not UTF-8")
	}
	q := &request{raw: body, chat: chat, N: 1, Temperature: 1, TopP: 1, RepetitionPenalty: 1,
		Logprobs: json.RawMessage("null"), top: -1}
	q.ResponseFormat.Type = "text"
	var known *apiError
	var wrong *json.UnmarshalTypeError
	if err := json.Unmarshal(body, q); errors.As(err, &known) {
		return nil, known
	} else if errors.As(err, &wrong) {
		field, _, _ := strings.Cut(wrong.Field, ".")
		return nil, invalid(field, "%s is of a wrong type or out of range: %s", field, wrong.Value)
	} else if err != nil {
		return nil, invalid("", "the body: %v", err)
	}
	if limit := cmp.Or(q.MaxNewTokens, q.MaxTokens); limit != nil {
		q.maxTokens = *limit
	} else if !chat {
		q.maxTokens = 16
	}
	on := false
	if !chat && json.Unmarshal(q.Logprobs, &q.top) != nil || chat && json.Unmarshal(q.Logprobs, &on) != nil {
		return nil, invalid("logprobs", "logprobs must be true or false of a chat, a number of a completion")
	}
	if on {
		q.top = 0
		if q.TopLogprobs != nil {
			q.top = *q.TopLogprobs
		}
	}
	return q, q.check(on)
}

func within[T int | int32 | float32](low, value, high T) bool { return low <= value && value <= high }

func (q *request) check(on bool) error {
	const most = math.MaxInt32
	bias := func(v float32) bool { return !within(-100, v, 100) }
	for _, rule := range []struct {
		holds    bool
		param    string
		demanded string
	}{
		{q.Tools == nil, "tools", "is not supported"},
		{q.Functions == nil, "functions", "is not supported"},
		{q.Suffix == nil, "suffix", "is not supported"},
		{!q.Echo, "echo", "is not supported"},
		{q.ResponseFormat.Type == "text", "response_format", "other than text is not supported"},
		{q.BestOf == nil || *q.BestOf == q.N, "best_of", "must be equal to n"},
		{!q.chat || len(q.Messages) > 0, "messages", "must be an array of messages"},
		{!q.chat || !slices.ContainsFunc(q.Messages, message.incomplete), "messages", "must have a role and content each"},
		{q.chat || len(q.Prompt) > 0, "prompt", "must be a string, token ids, or an array of either"},
		{within(1, q.N, 128), "n", "must be from 1 to 128"},
		{len(q.Prompt)*q.N <= 1024, "n", "makes more than 1024 choices of these prompts"},
		{q.MaxTokens == nil || within(1, *q.MaxTokens, most), "max_tokens", "must be 1 or more"},
		{q.MaxNewTokens == nil || within(1, *q.MaxNewTokens, most), "max_completion_tokens", "must be 1 or more"},
		{q.MinTokens >= 0, "min_tokens", "must not be negative"},
		{q.maxTokens == 0 || q.MinTokens <= q.maxTokens, "min_tokens", "must not be above max_tokens"},
		{within(0, q.Temperature, 2), "temperature", "must be from 0 to 2"},
		{q.TopK >= -1, "top_k", "must be -1 or a count"},
		{q.TopP > 0 && q.TopP <= 1, "top_p", "must be above 0 and at most 1"},
		{within(0, q.MinP, 1), "min_p", "must be from 0 to 1"},
		{q.RepetitionPenalty > 0 && q.RepetitionPenalty <= 2, "repetition_penalty", "must be above 0 and at most 2"},
		{within(-2, q.PresencePenalty, 2), "presence_penalty", "must be from -2 to 2"},
		{within(-2, q.FrequencyPenalty, 2), "frequency_penalty", "must be from -2 to 2"},
		{!slices.ContainsFunc(slices.Collect(maps.Values(q.LogitBias)), bias), "logit_bias", "must be from -100 to 100"},
		{len(q.Stop) <= 4 && !slices.Contains(q.Stop, ""), "stop", "must be up to 4 strings, none of them empty"},
		{q.chat || q.top <= 5, "logprobs", "must be at most 5"},
		{q.TopLogprobs == nil || on, "top_logprobs", "needs logprobs to be true"},
		{within(-1, q.top, 20), "top_logprobs", "must be from 0 to 20"},
		{!slices.ContainsFunc(q.KV.Resume, func(n int) bool { return n < 0 }), "kv_transfer_params", "are wrong"},
	} {
		if !rule.holds {
			return invalid(rule.param, "%s %s", rule.param, rule.demanded)
		}
	}
	return nil
}
