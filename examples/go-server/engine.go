package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	cleave "cleave/go"
)

// engineHost is the backend of every role but the front: a model, a cache and an engine over it.
type engineHost struct {
	options *options
	url     string // where this server is
	model   *cleave.Model
	about   cleave.ModelInfo
	cache   *cleave.Cache
	engine  *cleave.Engine
}

func openEngine(o *options, url string) (*engineHost, error) {
	h := &engineHost{options: o, url: url}
	if err := h.open(); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *engineHost) open() (err error) {
	o := h.options
	if h.model, err = cleave.Load(o.model); err != nil {
		return err
	}
	if h.about, err = h.model.Info(); err != nil {
		return err
	}
	config := cleave.CacheConfig{BytesPerDevice: uint64(o.kvMiB) << 20}
	if o.worker() {
		if config.Secret, err = readSecret(o.secretFile); err != nil {
			return err
		}
	}
	if h.cache, err = h.model.NewCache(config); err != nil {
		return err
	}
	if o.role == "prefill" && o.kvListen != "" { // before there is a ticket: tickets name what there is
		if _, err = h.cache.Listen(o.kvListen, cleave.ListenConfig{}); err != nil {
			return err
		}
	}
	role := map[string]cleave.Role{"mixed": cleave.RoleMixed, "prefill": cleave.RolePrefill, "decode": cleave.RoleDecode}
	h.engine, err = h.cache.NewEngine(cleave.EngineConfig{
		Role:           role[o.role],
		MaxSequences:   int(o.maxSequences),
		MaxBatchTokens: int(o.maxBatchTokens),
		Threads:        int(o.threads),
	})
	return err
}

func (h *engineHost) close() {
	if h.engine != nil {
		h.engine.Close()
	}
	if h.cache != nil {
		h.cache.Close()
	}
	if h.model != nil {
		h.model.Close()
	}
}

// readSecret reads the secret that a worker's peers have too.
func readSecret(path string) (secret [32]byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return secret, err
	}
	defer file.Close()
	if _, err := io.ReadFull(file, secret[:]); err != nil {
		return secret, fmt.Errorf("%s: a secret has 32 bytes: %w", path, err)
	}
	if secret == [32]byte{} {
		return secret, fmt.Errorf("%s: zeros are no secret", path)
	}
	return secret, nil
}

// generate answers according to the role.
func (h *engineHost) generate(a *reply, r *http.Request, q *request) error {
	if q.model != "" && q.model != h.options.modelName {
		return unknownModel(q.model)
	}
	prompts, err := h.tokenize(q)
	if err != nil {
		return err
	}
	switch {
	case h.options.role == "prefill":
		return h.prefill(a, r.Context(), q, prompts)
	case h.options.role == "decode" && q.kv.DoRemoteDecode:
		return invalid("kv_transfer_params", "a decode worker computes no prompts for others")
	}
	id := r.Header.Get("X-Request-Id")
	if !h.options.worker() || id == "" {
		id = newID(q.chat)
	}
	return h.complete(a, r.Context(), q, prompts, id)
}

// tokenize gives the tokens of each prompt.
func (h *engineHost) tokenize(q *request) ([][]int32, error) {
	param, inputs := "prompt", q.prompts
	if q.chat {
		param = "messages"
		text, err := h.model.ChatPromptJSON(q.messages)
		if err != nil {
			return nil, asAPIError(err, param)
		}
		tokens, err := h.model.TokenizeNoSpecial(text)
		if err != nil {
			return nil, asAPIError(err, param)
		}
		inputs = []prompt{{tokens: tokens}}
	}
	prompts := make([][]int32, len(inputs))
	for i, input := range inputs {
		tokens := input.tokens
		if tokens == nil {
			var err error
			if tokens, err = h.model.Tokenize(input.text); err != nil {
				return nil, asAPIError(err, param)
			}
		}
		for _, token := range tokens {
			if token < 0 || int(token) >= h.about.VocabSize {
				return nil, invalid(param, "the model has no token %d", token)
			}
		}
		if most := h.about.MaxContextTokens; len(tokens) > most {
			err := invalid(param, "the model's context has room for %d tokens, and the prompt has %d", most, len(tokens))
			err.code = "context_length_exceeded"
			return nil, err
		}
		prompts[i] = tokens
	}
	for token := range q.logitBias {
		if int(token) >= h.about.VocabSize {
			return nil, invalid("logit_bias", "the model has no token %d", token)
		}
	}
	return prompts, nil
}

// engineRequest is choice number `choice` of the n of a prompt.
func engineRequest(q *request, prompt []int32, choice int) cleave.Request {
	r := cleave.Request{
		Prompt:            prompt,
		MaxNewTokens:      int(q.maxTokens),
		MinNewTokens:      int(q.minTokens),
		IgnoreEOS:         q.ignoreEOS,
		Temperature:       q.temperature,
		TopK:              max(int(q.topK), 0),
		TopP:              q.topP,
		MinP:              q.minP,
		RepetitionPenalty: q.repetition,
		PresencePenalty:   q.presence,
		FrequencyPenalty:  q.frequency,
		LogitBias:         q.logitBias,
		Logprobs:          q.logprobs >= 0,
		TopLogprobs:       max(q.logprobs, 0),
		Priority:          int(q.priority),
	}
	if q.seed != nil {
		r.Seed = uint64(*q.seed + int64(choice))
		if r.Seed == 0 {
			r.Seed = 1 << 63 // 0 is a random one
		}
	}
	return r
}

// asAPIError is what a client is told of an error of cleave's. `param` is what is at fault if the request is.
func asAPIError(err error, param string) error {
	switch {
	case errors.Is(err, cleave.ErrWouldBlock):
		return &apiError{http.StatusTooManyRequests, err.Error(), "rate_limit_error", "", ""}
	case errors.Is(err, cleave.ErrInvalidArgument), errors.Is(err, cleave.ErrOutOfMemory): // more than the whole cache holds
		return invalid(param, "%v", err)
	case errors.Is(err, cleave.ErrShutdown):
		return unavailable(errShuttingDown.Error())
	}
	return err
}

func (h *engineHost) models() []string { return []string{h.options.modelName} }

func (h *engineHost) health() (fields map[string]any, problem string) {
	audit, err := h.cache.Audit()
	if err == nil {
		err = h.engine.Err()
	}
	if err != nil {
		log.Print(err)
		problem = "failed"
	}
	return map[string]any{"role": h.options.role, "model": h.options.modelName, "audit": map[string]int{
		"by_requests": audit.ByRequests, "by_transfers": audit.ByTransfers, "by_exports": audit.ByExports,
		"by_prefix_index": audit.ByPrefixIndex, "leaked": audit.Leaked, "total": audit.Total, "free": audit.Free,
	}}, problem
}

func (h *engineHost) writeMetrics(w io.Writer) {
	text, err := cleave.MetricsText()
	if err != nil {
		log.Print(err)
	}
	io.WriteString(w, strings.TrimSuffix(text, "# EOF\n")) // there is more to come
}

// idle tells whether nothing is left that another process may come for.
func (h *engineHost) idle() bool {
	m, err := h.engine.Metrics()
	return err != nil || h.options.role != "prefill" || m.ExportsOpen == 0
}
