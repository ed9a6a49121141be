package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/kvevents"
)

// engineHost is the backend of every role but the front: a model, a cache and an engine over it.
type engineHost struct {
	*core.Host
	options *options
	url     string // address of this server for others
}

// openEngine loads the model.
func openEngine(o *options, url string) (*engineHost, error) {
	config := core.Config{
		Model:          o.model,
		Name:           o.modelName,
		Role:           core.Roles[o.role],
		Device:         o.device,
		KVBytes:        uint64(o.kvMiB) << 20,
		MaxSequences:   int(o.maxSequences),
		MaxBatchTokens: int(o.maxBatchTokens),
		Threads:        int(o.threads),
		KVListen:       o.kvListen,
		Lease:          time.Duration(o.kvLease) * time.Second,
		ShareWeights:   o.worker(), // workers on one GPU share one copy
	}
	if o.secretFile != "" {
		secret, err := readSecret(o.secretFile)
		if err != nil {
			return nil, err
		}
		config.Secret = secret
	}
	if o.kvEvents != "" {
		config.CacheEvents = kvevents.Events
	}
	host, err := core.Open(config)
	if err != nil {
		return nil, err
	}
	return &engineHost{host, o, url}, nil
}

// generate answers a request, which is one of those that a drain counts and ends.
func (h *engineHost) generate(a *reply, r *http.Request, q *request) error {
	ctx, end, err := h.Requests.Begin(r.Context(), "")
	if err != nil {
		return err
	}
	defer end()
	if err = h.answer(ctx, a, r, q); err != nil && errors.Is(context.Cause(ctx), core.ErrShuttingDown) {
		return core.ErrShuttingDown
	}
	return err
}

// answer answers a request according to the server's role.
func (h *engineHost) answer(ctx context.Context, a *reply, r *http.Request, q *request) error {
	if q.model != "" && q.model != h.options.modelName {
		return unknownModel(q.model)
	}
	prompts, err := h.tokenize(q)
	if err != nil {
		return err
	}
	if h.Role() == "prefill" || q.kv.DoRemoteDecode {
		return h.prefill(ctx, a, q, prompts)
	}
	id := r.Header.Get("X-Request-Id")
	if h.options.front == "" || id == "" {
		id = newID(q.chat)
	}
	return h.complete(ctx, a, q, prompts, id)
}

func newID(chat bool) string {
	kind := "cmpl"
	if chat {
		kind = "chatcmpl"
	}
	return fmt.Sprintf("%s-%016x%016x", kind, rand.Uint64(), rand.Uint64())
}

// tokenize returns the tokens of each prompt, and makes the checks that need a model. Text that cannot fit into the
// context is refused before it is tokenised.
func (h *engineHost) tokenize(q *request) ([][]int32, error) {
	for token := range q.logitBias {
		if int(token) >= h.About.VocabSize {
			return nil, invalid("logit_bias", "logit_bias: the model has no token %d", token)
		}
	}
	if q.chat {
		tokens, err := h.tokenizeChat(q)
		return [][]int32{tokens}, err
	}
	var all [][]int32
	for _, prompt := range q.prompts {
		tokens := make([]int32, len(prompt.tokens))
		for i, token := range prompt.tokens {
			if token < 0 || token >= int64(h.About.VocabSize) {
				return nil, invalid("prompt", "prompt: the model has no token %d", token)
			}
			tokens[i] = int32(token)
		}
		if prompt.tokens == nil {
			if err := h.fitsBytes("prompt", len(prompt.text)); err != nil {
				return nil, err
			}
			var err error
			if tokens, err = h.Model.Tokenize(prompt.text); err != nil {
				return nil, invalid("prompt", "%v", err)
			}
		}
		if err := h.fits("prompt", len(tokens)); err != nil {
			return nil, err
		}
		all = append(all, tokens)
	}
	return all, nil
}

func (h *engineHost) tokenizeChat(q *request) ([]int32, error) {
	if err := h.fitsBytes("messages", q.contentBytes); err != nil {
		return nil, err
	}
	arguments := q.fields["chat_template_kwargs"]
	if err := h.fitsBytes("chat_template_kwargs", len(arguments)); err != nil {
		return nil, err
	}
	prompt, err := h.Model.ChatPromptWith(q.messages, cleave.ChatOptions{
		Arguments:            arguments,
		NoGenerationPrompt:   !get(q.fields, "add_generation_prompt", true),
		ContinueFinalMessage: get(q.fields, "continue_final_message", false),
	})
	if err != nil {
		return nil, invalid("messages", "%v", err)
	}
	if err := h.fitsBytes("messages", len(prompt)); err != nil {
		return nil, err
	}
	tokens, err := h.Model.TokenizeNoSpecial(prompt) // the template has added the special tokens
	if err != nil {
		return nil, invalid("messages", "%v", err)
	}
	return tokens, h.fits("messages", len(tokens))
}

// fitsBytes refuses text that would not fit into the context even with the longest tokens.
func (h *engineHost) fitsBytes(param string, bytes int) error {
	if bytes <= h.MaxPromptBytes {
		return nil
	}
	return h.tooLong(param, fmt.Sprintf("%d bytes, and at most %d can fit", bytes, h.MaxPromptBytes))
}

func (h *engineHost) fits(param string, tokens int) error {
	if tokens == 0 {
		return invalid(param, "%s: a prompt is empty", param)
	}
	if tokens <= h.About.MaxContextTokens {
		return nil
	}
	return h.tooLong(param, fmt.Sprintf("%d tokens", tokens))
}

// tooLong returns an error with the text of OpenAI's error, because clients recognise it by that.
func (h *engineHost) tooLong(param, size string) error {
	err := invalid(param, "This model's maximum context length is %d tokens. However, the prompt has %s.",
		h.About.MaxContextTokens, size)
	err.Code = "context_length_exceeded"
	return err
}

// engineRequest converts choice number `choice` of the n choices of a prompt.
func engineRequest(q *request, prompt []int32, choice int) core.Request {
	f := q.fields
	r := cleave.Request{
		Prompt:            prompt,
		MaxNewTokens:      q.maxTokens,
		MinNewTokens:      q.minTokens,
		IgnoreEOS:         get(f, "ignore_eos", false),
		Temperature:       get(f, "temperature", float32(1)),
		TopK:              max(get(f, "top_k", 0), 0), // -1 means all
		TopP:              get(f, "top_p", float32(1)),
		MinP:              get(f, "min_p", float32(0)),
		RepetitionPenalty: get(f, "repetition_penalty", float32(1)),
		PresencePenalty:   get(f, "presence_penalty", float32(0)),
		FrequencyPenalty:  get(f, "frequency_penalty", float32(0)),
		LogitBias:         q.logitBias,
		Logprobs:          q.top >= 0,
		TopLogprobs:       max(q.top, 0),
		Priority:          get(f, "priority", 0),
	}
	if q.seed != nil {
		r.Seed = uint64(*q.seed + int64(choice))
		if r.Seed == 0 {
			r.Seed = 1 << 63 // the library takes 0 for a random seed
		}
	}
	return core.Request{Request: r, StopStrings: q.stop}
}

// engineError translates an error of the library for a client.
func engineError(err error) *apiError {
	switch {
	case errors.Is(err, cleave.ErrWouldBlock):
		return &apiError{status: http.StatusTooManyRequests, Message: err.Error(), Type: "rate_limit_error"}
	case errors.Is(err, cleave.ErrInvalidArgument), errors.Is(err, cleave.ErrOutOfMemory):
		return invalid("", "%v", err)
	case errors.Is(err, cleave.ErrShutdown), errors.Is(err, core.ErrShuttingDown):
		return unavailable(core.ErrShuttingDown.Error())
	}
	return &apiError{status: http.StatusInternalServerError, Message: err.Error(), Type: "server_error"}
}

func (h *engineHost) models() []string { return []string{h.options.modelName} }

func (h *engineHost) health() (fields map[string]any, problem string) {
	audit, err := h.Cache.Audit()
	if err == nil {
		err = h.Engine.Err()
	}
	if err != nil {
		problem = err.Error()
	} else if h.Requests.Closing() {
		problem = shuttingDown
	}
	return map[string]any{"role": h.Role(), "model": h.options.modelName, "audit": map[string]int{
		"by_requests": audit.ByRequests, "by_transfers": audit.ByTransfers, "by_exports": audit.ByExports,
		"by_prefix_index": audit.ByPrefixIndex, "leaked": audit.Leaked, "total": audit.Total, "free": audit.Free,
	}}, problem
}

func (h *engineHost) writeMetrics(w io.Writer) {
	text, err := cleave.MetricsText()
	if err != nil {
		log.Print(err)
	}
	io.WriteString(w, strings.TrimSuffix(text, "# EOF\n")) // the server's own metrics follow
}

// idle reports whether no other process has KV left to fetch here.
func (h *engineHost) idle() bool {
	m, err := h.Engine.Metrics()
	return err != nil || m.ExportsOpen == 0
}
