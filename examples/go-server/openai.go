package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"unicode/utf8"
)

// apiError is what goes to a client as {"error": ...}.
type apiError struct {
	status                     int
	message, kind, param, code string
}

func (e *apiError) Error() string { return e.message }

func (e *apiError) MarshalJSON() ([]byte, error) {
	orNull := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	return json.Marshal(map[string]any{"error": map[string]any{
		"message": e.message, "type": e.kind, "param": orNull(e.param), "code": orNull(e.code)}})
}

func invalid(param, format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, fmt.Sprintf(format, args...), "invalid_request_error", param, ""}
}

func unavailable(why string) *apiError {
	return &apiError{http.StatusServiceUnavailable, why, "service_unavailable", "", ""}
}

func unknownModel(name string) *apiError {
	return &apiError{http.StatusNotFound, fmt.Sprintf("the model %q does not exist", name), "invalid_request_error", "model", "model_not_found"}
}

// request is what a client asks for, checked as far as that goes without a model.
type request struct {
	body     map[string]json.RawMessage
	chat     bool
	model    string   // "": whichever there is
	messages []byte   // chat: roles and contents, as the chat template takes them
	prompts  []prompt // completions
	n        int
	stop     []string
	stream   bool
	usage    bool // a last chunk with the usage
	logprobs int  // alternatives beside each token; -1: no log-probabilities at all

	maxTokens, minTokens            int64 // maxTokens 0: until the context is full
	temperature, topP, minP         float32
	topK                            int64
	repetition, presence, frequency float32
	logitBias                       map[int32]float32
	seed                            *int64
	ignoreEOS                       bool
	priority                        uint32
	kv                              kvParams
}

// prompt is a text, or token ids.
type prompt struct {
	text   string
	tokens []int32
}

// kvParams is what front and workers tell each other in a request, see "Workers" in ../README.md.
type kvParams struct {
	DoRemoteDecode  bool   `json:"do_remote_decode,omitempty"`
	DoRemotePrefill bool   `json:"do_remote_prefill,omitempty"`
	Ticket          []byte `json:"ticket,omitempty"`
	Resume          []int  `json:"resume,omitempty"`
}

// fields reads the members of a JSON object with strict types, and keeps the first thing that is wrong.
type fields struct {
	of  map[string]json.RawMessage
	err *apiError
}

// raw is a member as it stands; nil if it is missing or null.
func (f *fields) raw(name string) json.RawMessage {
	if raw := f.of[name]; string(raw) != "null" {
		return raw
	}
	return nil
}

func (f *fields) refuse(name, why string) {
	if f.err == nil {
		f.err = invalid(name, "%s %s", name, why)
	}
}

// read gives a member of type T, `missing` if there is none, or refuses what is not `what`.
func read[T any](f *fields, name, what string, missing T, right func(T) bool) T {
	raw := f.raw(name)
	if raw == nil {
		return missing
	}
	var value T
	if json.Unmarshal(raw, &value) != nil || right != nil && !right(value) {
		f.refuse(name, "must be "+what)
		return missing
	}
	return value
}

func within[T cmp.Ordered](low, high T) func(T) bool {
	return func(v T) bool { return low <= v && v <= high }
}

// list is a JSON array of T, without null in it.
func list[T any](raw []byte) ([]T, bool) {
	var pointers []*T
	if json.Unmarshal(raw, &pointers) != nil {
		return nil, false
	}
	values := make([]T, len(pointers))
	for i, p := range pointers {
		if p == nil {
			return nil, false
		}
		values[i] = *p
	}
	return values, true
}

const (
	anyCount    = 1 << 31 // of tokens: more than any context
	mostChoices = 1024    // of all prompts together
)

// parseRequest reads the body of POST /v1/chat/completions or /v1/completions.
func parseRequest(body []byte, chat bool) (*request, *apiError) {
	f := &fields{}
	if !utf8.Valid(body) {
		return nil, invalid("", "the body is not UTF-8")
	}
	if err := json.Unmarshal(body, &f.of); err != nil || f.of == nil {
		return nil, invalid("", "the body is not a JSON object")
	}
	for _, name := range []string{"tools", "functions", "suffix"} {
		if f.raw(name) != nil {
			f.refuse(name, "is not supported")
		}
	}
	q := &request{
		body:        f.of,
		chat:        chat,
		model:       read(f, "model", "a string", "", nil),
		n:           read(f, "n", "from 1 to 128", 1, within(1, 128)),
		stream:      read(f, "stream", "true or false", false, nil),
		temperature: read(f, "temperature", "from 0 to 2", 1, within[float32](0, 2)),
		topP:        read(f, "top_p", "above 0 and at most 1", 1, func(v float32) bool { return 0 < v && v <= 1 }),
		topK:        read(f, "top_k", "-1 or a count", 0, within[int64](-1, anyCount)),
		minP:        read(f, "min_p", "from 0 to 1", 0, within[float32](0, 1)),
		repetition:  read(f, "repetition_penalty", "above 0 and at most 2", 1, func(v float32) bool { return 0 < v && v <= 2 }),
		presence:    read(f, "presence_penalty", "from -2 to 2", 0, within[float32](-2, 2)),
		frequency:   read(f, "frequency_penalty", "from -2 to 2", 0, within[float32](-2, 2)),
		seed:        read[*int64](f, "seed", "an integer of 64 bits", nil, nil),
		ignoreEOS:   read(f, "ignore_eos", "true or false", false, nil),
		minTokens:   read(f, "min_tokens", "a count", 0, within[int64](0, anyCount)),
		priority:    read[uint32](f, "priority", "a number that is not negative", 0, nil),
		kv: read(f, "kv_transfer_params", "as a front sends them", kvParams{}, func(p kvParams) bool {
			for _, n := range p.Resume {
				if n < 0 {
					return false
				}
			}
			return true
		}),
	}
	q.usage = read(f, "stream_options", "an object", struct {
		IncludeUsage bool `json:"include_usage"`
	}{}, nil).IncludeUsage
	if best := read(f, "best_of", "equal to n", q.n, nil); best != q.n {
		f.refuse("best_of", "must be equal to n")
	}
	if read(f, "echo", "true or false", false, nil) {
		f.refuse("echo", "is not supported")
	}
	if read(f, "response_format", "an object", struct{ Type string }{"text"}, nil).Type != "text" {
		f.refuse("response_format", "other than text is not supported")
	}
	q.stop = parseStop(f)
	q.logitBias = parseLogitBias(f)
	if chat {
		q.parseChat(f)
	} else {
		q.parseCompletion(f)
	}
	if q.maxTokens > 0 && q.minTokens > q.maxTokens {
		f.refuse("min_tokens", "must not be above max_tokens")
	}
	return q, f.err
}

func (q *request) parseChat(f *fields) {
	q.messages = parseMessages(f)
	q.maxTokens = read(f, "max_tokens", "1 or more", 0, within[int64](1, anyCount))
	q.maxTokens = read(f, "max_completion_tokens", "1 or more", q.maxTokens, within[int64](1, anyCount))
	q.logprobs = -1
	if read(f, "logprobs", "true or false", false, nil) {
		q.logprobs = read(f, "top_logprobs", "from 0 to 20", 0, within(0, 20))
	} else if f.raw("top_logprobs") != nil {
		f.refuse("top_logprobs", "needs logprobs to be true")
	}
}

func (q *request) parseCompletion(f *fields) {
	q.prompts = parsePrompts(f)
	if len(q.prompts)*q.n > mostChoices {
		f.refuse("prompt", "and n make too many choices")
	}
	q.maxTokens = read(f, "max_tokens", "1 or more", 16, within[int64](1, anyCount))
	q.maxTokens = read(f, "max_completion_tokens", "1 or more", q.maxTokens, within[int64](1, anyCount))
	q.logprobs = read(f, "logprobs", "from 0 to 5", -1, within(0, 5))
}

// parseMessages leaves of each message what a chat template takes: its role, and its content as one string.
func parseMessages(f *fields) []byte {
	type message struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	messages, ok := list[message](f.raw("messages"))
	if !ok || len(messages) == 0 {
		f.refuse("messages", "must be an array of messages")
		return nil
	}
	for i, m := range messages {
		text, ok := contentText(m.Content)
		if !ok || m.Role == "" {
			f.refuse("messages", "must each have a role, and as content a string or an array of text parts")
			return nil
		}
		messages[i].Content = encode(text)
	}
	return encode(messages)
}

func contentText(raw []byte) (text string, ok bool) {
	if json.Unmarshal(raw, &text) == nil {
		return text, string(raw) != "null"
	}
	parts, ok := list[struct {
		Type string
		Text *string
	}](raw)
	for _, part := range parts {
		if part.Type != "text" || part.Text == nil {
			return "", false
		}
		text += *part.Text
	}
	return text, ok && len(parts) > 0
}

func parsePrompts(f *fields) []prompt {
	raw := f.raw("prompt")
	var prompts []prompt
	var text string
	if json.Unmarshal(raw, &text) == nil {
		prompts = []prompt{{text: text}}
	} else if texts, ok := list[string](raw); ok {
		for _, text := range texts {
			prompts = append(prompts, prompt{text: text})
		}
	} else if ids, ok := list[int32](raw); ok {
		prompts = []prompt{{tokens: ids}}
	} else if lists, ok := list[json.RawMessage](raw); ok {
		for _, raw := range lists {
			ids, ok := list[int32](raw)
			if !ok || len(ids) == 0 {
				prompts = nil
				break
			}
			prompts = append(prompts, prompt{tokens: ids})
		}
	}
	if len(prompts) == 0 {
		f.refuse("prompt", "must be a string, token ids, or an array of either")
	}
	return prompts
}

func parseStop(f *fields) []string {
	raw := f.raw("stop")
	if raw == nil {
		return nil
	}
	var one string
	stops, ok := list[string](raw)
	if json.Unmarshal(raw, &one) == nil {
		stops, ok = []string{one}, true
	}
	ok = ok && len(stops) <= 4
	for _, stop := range stops {
		ok = ok && stop != ""
	}
	if !ok {
		f.refuse("stop", "must be a string or up to 4 of them, none of them empty")
	}
	return stops
}

func parseLogitBias(f *fields) map[int32]float32 {
	biases := make(map[int32]float32)
	for key, bias := range read[map[string]float32](f, "logit_bias", "an object of numbers", nil, nil) {
		id, err := strconv.ParseInt(key, 10, 32)
		if err != nil || id < 0 || bias < -100 || bias > 100 {
			f.refuse("logit_bias", "must have token ids as keys, and values from -100 to 100")
		}
		biases[int32(id)] = bias
	}
	return biases
}
