package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"cleave/examples/go-server/internal/core"
)

// apiError is the body of an error answer, {"error": ...}.
type apiError struct {
	status  int
	Message string `json:"message"`
	Type    string `json:"type"`
	Param   any    `json:"param"` // string or nil; so is Code
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
	err := refused(http.StatusNotFound, fmt.Sprintf("the model '%s' does not exist", name))
	err.Param, err.Code = "model", "model_not_found"
	return err
}

// reported converts an error for the client of a request with this context.
func reported(ctx context.Context, err error) *apiError {
	var known *apiError
	switch {
	case context.Cause(ctx) == core.ErrShuttingDown:
		return unavailable(core.ErrShuttingDown.Error())
	case ctx.Err() != nil: // only for the metrics: nobody reads this answer
		return refused(499, "the client is gone")
	case errors.As(err, &known):
		return known
	}
	return engineError(err)
}

// request is a checked request for a chat or text completion.
type request struct {
	fields fields // the client's fields, without null ones
	chat   bool
	stream bool
	n      int // choices for each prompt

	model        string          // empty means any
	messages     json.RawMessage // chat: input of the template
	contentBytes int             // chat: size of the texts in the messages
	prompts      []prompt        // completions
	maxTokens    int             // 0 means until the context is full
	minTokens    int
	stop         []string
	logitBias    map[int32]float32
	seed         *int64
	top          int  // alternatives beside each token; -1: no log-probabilities at all
	includeUsage bool // in a last chunk of a stream

	usageInChunks bool // usage in every other chunk, of its choice so far
	kv            kvParams
}

// prompt is a text or a list of token ids.
type prompt struct {
	text   string
	tokens []int64
}

// kvParams holds the fields that workers exchange through a front or another router: see "Workers" in ../README.md.
type kvParams struct {
	DoRemoteDecode  bool   `json:"do_remote_decode,omitempty"`
	DoRemotePrefill bool   `json:"do_remote_prefill,omitempty"`
	Ticket          []byte `json:"ticket,omitempty"`
	Resume          []int  `json:"resume,omitempty"`
}

// parseRequest reads a request and checks it as far as possible without a model. Only a request to a worker may have
// kv_transfer_params.
func parseRequest(body []byte, chat, toWorker bool) (*request, error) {
	f, err := parseFields(body)
	if err != nil {
		return nil, err
	}
	rules := completionRules
	if chat {
		rules = chatRules
	}
	if toWorker {
		rules = append(slices.Clone(rules), workerRule)
	}
	if err := f.check("", rules, harmless); err != nil {
		return nil, err
	}
	q := &request{fields: f, chat: chat, stream: get(f, "stream", false), n: get(f, "n", 1), model: get(f, "model", ""),
		minTokens: get(f, "min_tokens", 0), top: -1}
	if _, there := f["seed"]; there {
		seed := get(f, "seed", int64(0))
		q.seed = &seed
	}
	for _, read := range []func() error{q.readInput, q.readOptions, q.readLimits, q.readStop, q.readLogprobs, q.readLogitBias} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	return q, nil
}

func (q *request) readInput() (err error) {
	if get(q.fields, "continue_final_message", false) && get(q.fields, "add_generation_prompt", true) {
		return invalid("continue_final_message", "continue_final_message needs add_generation_prompt to be false")
	}
	if q.chat {
		q.messages, q.contentBytes, err = parseMessages(q.fields["messages"])
		return err
	}
	q.prompts, err = parsePrompts(q.fields["prompt"])
	if err == nil && len(q.prompts)*q.n > maxChoices {
		err = invalid("n", "n times the number of prompts must be at most %d", maxChoices)
	}
	return err
}

func (q *request) readLimits() error {
	missing := 16
	if q.chat {
		missing = 0
	}
	q.maxTokens = get(q.fields, "max_completion_tokens", get(q.fields, "max_tokens", missing))
	if q.maxTokens > 0 && q.minTokens > q.maxTokens && !q.kv.DoRemoteDecode { // routers then set max_tokens alone
		return invalid("min_tokens", "min_tokens must not be above max_tokens")
	}
	return nil
}

func (q *request) readStop() error {
	raw, there := q.fields["stop"]
	if !there {
		return nil
	}
	var one string
	var several []*string // pointers, so that null is not mistaken for a string
	wrong := json.Unmarshal(raw, &several) != nil
	if raw[0] == '"' {
		wrong = json.Unmarshal(raw, &one) != nil
		several = []*string{&one}
	}
	wrong = wrong || len(several) > maxStopStrings
	for _, stop := range several {
		if wrong = wrong || stop == nil || *stop == "" || len(*stop) > maxStopBytes; !wrong {
			q.stop = append(q.stop, *stop)
		}
	}
	if wrong {
		return invalid("stop", "stop must be a string or up to %d strings, of 1 to %d bytes each", maxStopStrings, maxStopBytes)
	}
	return nil
}

func (q *request) readLogprobs() error {
	if !q.chat {
		q.top = get(q.fields, "logprobs", -1)
		return nil
	}
	if get(q.fields, "logprobs", false) {
		q.top = get(q.fields, "top_logprobs", 0)
	} else if _, there := q.fields["top_logprobs"]; there {
		return invalid("top_logprobs", "top_logprobs needs logprobs to be true")
	}
	return nil
}

func (q *request) readLogitBias() error {
	biases, _ := decodeObject(q.fields["logit_bias"])
	q.logitBias = make(map[int32]float32, len(biases))
	for key, raw := range biases {
		token, err := strconv.ParseUint(key, 10, 31)
		if err != nil || !(rule{kind: number, low: -100, high: 100}).holds(raw) {
			return invalid("logit_bias", "logit_bias must have token ids as keys, and numbers from -100 to 100 as values")
		}
		q.logitBias[int32(token)] = get(biases, key, float32(0))
	}
	return nil
}

// readOptions reads the fields that accept only one value, and those that have fields of their own.
func (q *request) readOptions() error {
	if format, there := decodeObject(q.fields["response_format"]); there {
		if err := format.check("response_format.", []rule{{"type", text, 0, 0}}, nil); err != nil {
			return err
		}
		if get(format, "type", "") != "text" {
			return invalid("response_format", "response_format must be of type text: other types are not supported")
		}
	}
	if get(q.fields, "best_of", q.n) != q.n {
		return invalid("best_of", "best_of must be equal to n")
	}
	for name, only := range onlyValue {
		if get(q.fields, name, only) != only {
			return invalid(name, "%s must be %t: it is not supported otherwise", name, only)
		}
	}
	options, _ := decodeObject(q.fields["stream_options"])
	rules := []rule{{"include_usage", boolean, 0, 0}, {"continuous_usage_stats", boolean, 0, 0}}
	if err := options.check("stream_options.", rules, []string{"include_obfuscation"}); err != nil {
		return err
	}
	q.includeUsage = get(options, "include_usage", false)
	q.usageInChunks = q.includeUsage && get(options, "continuous_usage_stats", false)
	if raw, there := q.fields["kv_transfer_params"]; there {
		wrong := json.Unmarshal(raw, &q.kv) != nil
		if wrong || slices.ContainsFunc(q.kv.Resume, func(n int) bool { return n < 0 }) {
			return invalid("kv_transfer_params", "kv_transfer_params are malformed")
		}
	}
	return nil
}

// parsePrompts reads a string, token ids, or an array of either.
func parsePrompts(raw json.RawMessage) ([]prompt, error) {
	wrong := invalid("prompt", "prompt must be a string, token ids, or an array of either")
	items := []json.RawMessage{raw}
	if len(raw) > 0 && raw[0] == '[' {
		var elements []json.RawMessage
		json.Unmarshal(raw, &elements)
		if len(elements) == 0 {
			return nil, wrong
		}
		if first := elements[0][0]; first == '"' || first == '[' {
			items = elements
		}
	}
	if len(items) > maxChoices {
		return nil, invalid("prompt", "prompt must have at most %d prompts", maxChoices)
	}
	all := make([]prompt, len(items))
	for i, item := range items {
		isText := len(item) > 0 && item[0] == '"'
		if isText {
			json.Unmarshal(item, &all[i].text)
		} else if json.Unmarshal(item, &all[i].tokens) != nil || len(all[i].tokens) == 0 {
			return nil, wrong
		}
	}
	return all, nil
}
