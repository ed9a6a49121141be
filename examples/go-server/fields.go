package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Limits on parsed input keep the work before a prompt is tokenised small and linear in the size of the body.
const (
	maxDepth       = 64    // levels of nested JSON
	maxContainers  = 50000 // arrays and objects
	maxMessages    = 10000 // in a chat
	maxParts       = 10000 // content parts of all its messages together
	maxChoices     = 1024  // prompts times n
	maxStopStrings = 4
	maxStopBytes   = 1024
)

// fields is a JSON object whose values are not decoded yet. Names are case-sensitive, unlike those of a Go struct.
type fields map[string]json.RawMessage

// rule is the type and range that a field must have.
type rule struct {
	name      string
	kind      kind
	low, high float64
}

type kind int

const (
	boolean  kind = iota
	text          // a string
	object        // checked by its reader
	anything      // checked by its reader
	integer       // from low to high
	number        // from low to high
	positive      // a number above 0, at most high
	seed          // an integer of 64 bits
)

const maxCount = 2147483647 // tokens: more than any context

// Rules for the fields of both endpoints, of one of them, and of requests to a worker.
var (
	commonRules = []rule{
		{"model", text, 0, 0},
		{"n", integer, 1, 128},
		{"stream", boolean, 0, 0},
		{"stream_options", object, 0, 0},
		{"max_tokens", integer, 1, maxCount},
		{"min_tokens", integer, 0, maxCount},
		{"ignore_eos", boolean, 0, 0},
		{"temperature", number, 0, 2},
		{"top_p", positive, 0, 1},
		{"top_k", integer, -1, maxCount},
		{"min_p", number, 0, 1},
		{"repetition_penalty", positive, 0, 2},
		{"presence_penalty", number, -2, 2},
		{"frequency_penalty", number, -2, 2},
		{"logit_bias", object, 0, 0},
		{"seed", seed, 0, 0},
		{"stop", anything, 0, 0},
		{"priority", integer, 0, 4294967295},
		{"response_format", object, 0, 0},
		{"echo", boolean, 0, 0},
		{"include_reasoning", boolean, 0, 0},
		{"no_stop_trim", boolean, 0, 0},
		{"return_hidden_states", boolean, 0, 0},
		{"separate_reasoning", boolean, 0, 0},
		{"skip_special_tokens", boolean, 0, 0},
		{"stream_reasoning", boolean, 0, 0},
	}
	chatRules = append([]rule{
		{"messages", anything, 0, 0},
		{"chat_template_kwargs", object, 0, 0},
		{"add_generation_prompt", boolean, 0, 0},
		{"continue_final_message", boolean, 0, 0},
		{"max_completion_tokens", integer, 1, maxCount},
		{"logprobs", boolean, 0, 0},
		{"top_logprobs", integer, 0, 20},
	}, commonRules...)
	completionRules = append([]rule{
		{"prompt", anything, 0, 0},
		{"logprobs", integer, 0, 5},
		{"best_of", integer, 1, 128},
	}, commonRules...)
	workerRule = rule{"kv_transfer_params", object, 0, 0}
)

// onlyValue lists fields for which one value is accepted: the default, which vLLM's router sends in every request.
var onlyValue = map[string]bool{"echo": false, "include_reasoning": true, "no_stop_trim": false, "return_hidden_states": false,
	"separate_reasoning": true, "skip_special_tokens": true, "stream_reasoning": true}

// harmless fields do not change the answer. They are accepted and ignored. The list is in ../README.md.
var harmless = []string{"metadata", "parallel_tool_calls", "prompt_cache_key", "request_id", "safety_identifier",
	"service_tier", "store", "user"}

// parseFields reads a JSON object without its null fields, which count as absent.
func parseFields(body []byte) (fields, error) {
	if err := checkShape(body); err != nil {
		return nil, err
	}
	if !utf8.Valid(body) || !json.Valid(body) {
		return nil, invalid("", "the body is not valid JSON")
	}
	f, ok := decodeObject(body)
	if !ok {
		return nil, invalid("", "the body is not a JSON object")
	}
	return f, nil
}

func decodeObject(raw json.RawMessage) (f fields, ok bool) {
	if json.Unmarshal(raw, &f) != nil || f == nil {
		return nil, false
	}
	for name, value := range f {
		if string(value) == "null" {
			delete(f, name)
		}
	}
	return f, true
}

// checkShape refuses a body with too many arrays and objects, or too deeply nested ones, before memory is spent on
// them. The JSON may be malformed.
func checkShape(body []byte) error {
	open, deepest, containers, quoted := 0, 0, 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '[' || c == '{'):
			containers++
			open++
			deepest = max(deepest, open)
		case !quoted && (c == ']' || c == '}') && open > 0:
			open--
		}
	}
	if deepest > maxDepth {
		return invalid("", "the body is nested more than %d levels deep", maxDepth)
	}
	if containers > maxContainers {
		return invalid("", "the body has more than %d arrays and objects", maxContainers)
	}
	return nil
}

// check refuses fields that break a rule, and fields without a rule unless they are in `ignored`. `path` is the
// position of the object in the body: empty, or with a dot at its end.
func (f fields) check(path string, rules []rule, ignored []string) error {
	unknown := ""
	for name := range f {
		known := slices.Contains(ignored, name) || slices.ContainsFunc(rules, func(r rule) bool { return r.name == name })
		if !known && (unknown == "" || name < unknown) {
			unknown = name
		}
	}
	if unknown != "" {
		return invalid(path+unknown, "%s%s is not supported by this server", path, unknown)
	}
	for _, r := range rules {
		if raw, there := f[r.name]; there && !r.holds(raw) {
			return invalid(path+r.name, "%s%s must be %s", path, r.name, r.demand())
		}
	}
	return nil
}

func (r rule) holds(raw json.RawMessage) bool {
	value, numeric := 0.0, raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9'
	if numeric {
		var err error
		if value, err = strconv.ParseFloat(string(raw), 64); err != nil {
			return false
		}
	}
	inRange := numeric && r.low <= value && value <= r.high
	switch r.kind {
	case boolean:
		return raw[0] == 't' || raw[0] == 'f'
	case text:
		return raw[0] == '"'
	case object:
		return raw[0] == '{'
	case integer:
		return inRange && !bytes.ContainsAny(raw, ".eE")
	case number:
		return inRange
	case positive:
		return numeric && value > 0 && value <= r.high
	case seed:
		_, err := strconv.ParseInt(string(raw), 10, 64)
		return err == nil
	}
	return true
}

func (r rule) demand() string {
	switch r.kind {
	case boolean:
		return "true or false"
	case text:
		return "a string"
	case object:
		return "an object"
	case integer:
		return fmt.Sprintf("an integer from %.10g to %.10g", r.low, r.high)
	case number:
		return fmt.Sprintf("a number from %.10g to %.10g", r.low, r.high)
	case positive:
		return fmt.Sprintf("a number above 0 and at most %.10g", r.high)
	}
	return "an integer of 64 bits"
}

// get decodes a field that has passed its rule, or returns `missing`.
func get[T any](f fields, name string, missing T) T {
	if raw, there := f[name]; there {
		json.Unmarshal(raw, &missing)
	}
	return missing
}
