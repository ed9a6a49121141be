package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseRequestRefuses(t *testing.T) {
	chat := func(more string) string { return `{"messages": [{"role": "user", "content": "hi"}]` + more + `}` }
	text := func(more string) string { return `{"prompt": "hi"` + more + `}` }
	for _, c := range []struct{ body, param string }{
		{`{`, ""}, {`[]`, ""}, {`null`, ""}, {`{} {}`, ""}, {"{\"user\": \"\xff\"}", ""},
		{`{}`, "messages"},
		{`{"messages": []}`, "messages"}, {`{"messages": "hi"}`, "messages"}, {`{"messages": [null]}`, "messages"},
		{`{"messages": [{"content": "hi"}]}`, "messages"}, {`{"messages": [{"role": 1, "content": "hi"}]}`, "messages[0].role"},
		{`{"messages": [{"content": [{"type": "text", "text": "hi"}]}]}`, "messages"},
		{`{"messages": [{"role": "user"}]}`, "messages"}, {`{"messages": [{"role": "user", "content": null}]}`, "messages"},
		{`{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}`, "messages"},
		{`{"messages": [{"role": "user", "content": [{"type": "text"}]}]}`, "messages"},
		{chat(`, "model": 1`), "model"},
		{chat(`, "n": 0`), "n"}, {chat(`, "n": 129`), "n"}, {chat(`, "n": 1.5`), "n"}, {chat(`, "n": "1"`), "n"},
		{chat(`, "stream": 1`), "stream"}, {chat(`, "stream_options": true`), "stream_options"},
		{chat(`, "stream_options": {"include_usage": "yes"}`), "stream_options.include_usage"},
		{chat(`, "max_tokens": 0`), "max_tokens"}, {chat(`, "max_completion_tokens": -1`), "max_completion_tokens"},
		{chat(`, "max_tokens": true`), "max_tokens"},
		{chat(`, "temperature": 2.1`), "temperature"}, {chat(`, "temperature": "1"`), "temperature"}, {chat(`, "temperature": 1e999`), "temperature"},
		{chat(`, "top_p": 0`), "top_p"}, {chat(`, "top_p": 1.1`), "top_p"}, {chat(`, "top_k": -2`), "top_k"}, {chat(`, "min_p": 2`), "min_p"},
		{chat(`, "repetition_penalty": 0`), "repetition_penalty"}, {chat(`, "presence_penalty": 3`), "presence_penalty"},
		{chat(`, "frequency_penalty": -3`), "frequency_penalty"},
		{chat(`, "seed": 1.5`), "seed"}, {chat(`, "seed": 9223372036854775808`), "seed"},
		{chat(`, "stop": 1`), "stop"}, {chat(`, "stop": ""`), "stop"}, {chat(`, "stop": ["a", null]`), "stop"},
		{chat(`, "stop": ["a", "b", "c", "d", "e"]`), "stop"},
		{chat(`, "logprobs": 1`), "logprobs"}, {chat(`, "logprobs": true, "top_logprobs": 21`), "top_logprobs"},
		{chat(`, "top_logprobs": 1`), "top_logprobs"},
		{chat(`, "logit_bias": {"x": 1}`), "logit_bias"}, {chat(`, "logit_bias": {"1": 101}`), "logit_bias"}, {chat(`, "logit_bias": [1]`), "logit_bias"},
		{chat(`, "ignore_eos": 1`), "ignore_eos"}, {chat(`, "min_tokens": -1`), "min_tokens"},
		{chat(`, "min_tokens": 3, "max_tokens": 2`), "min_tokens"}, {chat(`, "priority": -1`), "priority"},
		{chat(`, "tools": []`), "tools"}, {chat(`, "functions": [{}]`), "functions"},
		{chat(`, "response_format": {"type": "json_object"}`), "response_format"}, {chat(`, "response_format": "text"`), "response_format"},
		{chat(`, "kv_transfer_params": {}`), "kv_transfer_params"}, {chat(`, "nonsense": 1`), "nonsense"}, {chat(`, "Temperature": 1`), "Temperature"},
		{chat(`, "guided_json": {}`), "guided_json"}, {chat(`, "continue_final_message": true`), "continue_final_message"}, {chat(`, "prompt": "hi"`), "messages"}, {text(`, "messages": []`), "messages"},
		{chat(`, "logprobs": true, "top_logprobs": -1`), "top_logprobs"}, {chat(`, "stop": "` + strings.Repeat("x", maxStopBytes+1) + `"`), "stop"},
		{chat(`, "stream_options": {"include_usage": true, "more": 1}`), "stream_options.more"},
		{chat(`, "response_format": {"type": "text", "schema": {}}`), "response_format.schema"},
		{`{"messages": [{"role": "user", "content": "hi", "tool_calls": []}]}`, "messages[0].tool_calls"},
		{`{"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "more": 1}]}]}`, "messages[0].content[0].more"},
		{strings.Repeat("[", maxDepth+1), ""}, {`[` + strings.Repeat("{},", maxContainers) + `{}]`, ""},
		{`{"prompt": []}`, "prompt"}, {`{"prompt": {}}`, "prompt"}, {`{"prompt": [1, "a"]}`, "prompt"},
		{`{"prompt": [[1], 1]}`, "prompt"}, {`{"prompt": [[1], []]}`, "prompt"}, {`{"prompt": [1.5]}`, "prompt"},
		{text(`, "echo": true`), "echo"}, {text(`, "suffix": "x"`), "suffix"}, {text(`, "best_of": 2`), "best_of"},
		{text(`, "logprobs": 6`), "logprobs"}, {text(`, "logprobs": true`), "logprobs"}, {text(`, "logprobs": -1`), "logprobs"},
		{text(`, "max_completion_tokens": 1`), "max_completion_tokens"}, {text(`, "max_tokens": 2147483648`), "max_tokens"},
	} {
		_, refusal := parseRequest([]byte(c.body), !strings.Contains(c.body, "prompt"), false)
		var err *apiError
		if !errors.As(refusal, &err) {
			t.Errorf("%s: taken", c.body)
		} else if err.status != 400 || fmt.Sprint(err.Param) != cmp.Or(c.param, "<nil>") || err.Message == "" {
			t.Errorf("%s: status %d, param %q, %s", c.body, err.status, err.Param, err.Message)
		}
	}
}

func TestParseRequestTakes(t *testing.T) {
	q, err := parseRequest([]byte(`{"messages": [{"role": "system", "content": "a", "name": "x"}, {"role": "user", "refusal": null, "content":
		[{"type": "text", "text": "b"}, {"type": "text", "text": "\"c\""}]}], "max_tokens": 5, "max_completion_tokens": 7, "stop": "x",
		"logprobs": true, "top_logprobs": 2, "seed": -1, "temperature": 0, "tools": null, "response_format": {"type": "text"},
		"user": "u", "metadata": {}, "stream_options": {"include_usage": true}, "logit_bias": {"5": -100}}`), true, false)
	if err != nil {
		t.Fatal(err)
	}
	const messages = `[{"content":"a","name":"x","role":"system"},{"content":"b\"c\"","role":"user"}]`
	if string(q.messages) != messages || q.contentBytes != 5 || q.maxTokens != 7 || len(q.stop) != 1 || q.top != 2 || *q.seed != -1 ||
		!q.includeUsage || q.logitBias[5] != -100 || q.n != 1 || engineRequest(q, nil, 0).Temperature != 0 {
		t.Errorf("%+v\n%s", q, q.messages)
	}
	for body, prompts := range map[string]int{
		`{"prompt": ""}`: 1, `{"prompt": ["a", "b"]}`: 2, `{"prompt": [1, 2, 3]}`: 1, `{"prompt": [[1], [2]]}`: 2,
		`{"prompt": ["a", [1]]}`: 2, `{"prompt": "a", "echo": false, "best_of": 2, "n": 2, "logprobs": 0}`: 1,
	} {
		q, err := parseRequest([]byte(body), false, false)
		if err != nil || len(q.prompts) != prompts || q.maxTokens != 16 {
			t.Errorf("%s: %+v, %v", body, q, err)
		}
	}
	if q, err := parseRequest([]byte(`{"prompt": "a", "kv_transfer_params": {"resume": [1]}}`), false, true); err != nil || q.kv.Resume[0] != 1 {
		t.Error(q, err)
	}
}
