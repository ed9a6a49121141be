package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"time"

	cleave "cleave/go"
)

const kvLease = 10 * time.Second // of handles that nobody fetches

// engineHost is the backend of every role but the front: a model, a cache and an engine over it.
type engineHost struct {
	options *options
	url     string // where this server is
	model   *cleave.Model
	about   cleave.ModelInfo
	cache   *cleave.Cache
	engine  *cleave.Engine
}

// openEngine leaves open what it has opened if it fails: the process ends then.
func openEngine(o *options, url string) (*engineHost, error) {
	h := &engineHost{options: o, url: url}
	var err error
	if h.model, err = cleave.Load(o.model); err != nil {
		return nil, err
	}
	if h.about, err = h.model.Info(); err != nil {
		return nil, err
	}
	config := cleave.CacheConfig{
		Devices:        []int{o.device},
		BytesPerDevice: uint64(o.kvMiB) << 20,
		Lease:          kvLease,
		ShareWeights:   o.worker(), // those on one GPU have one copy there
	}
	if o.worker() {
		secret, err := os.ReadFile(o.secretFile)
		if err != nil {
			return nil, err
		}
		if copy(config.Secret[:], secret) < len(config.Secret) {
			return nil, fmt.Errorf("%s: a secret has 32 bytes", o.secretFile)
		}
	}
	if h.cache, err = h.model.NewCache(config); err != nil {
		return nil, err
	}
	if o.role == "prefill" && o.kvListen != "" { // before there is a ticket: tickets name what there is
		if _, err = h.cache.Listen(o.kvListen, cleave.ListenConfig{}); err != nil {
			return nil, err
		}
	}
	roles := map[string]cleave.Role{"mixed": cleave.RoleMixed, "prefill": cleave.RolePrefill, "decode": cleave.RoleDecode}
	h.engine, err = h.cache.NewEngine(cleave.EngineConfig{
		Role:           roles[o.role],
		MaxSequences:   int(o.maxSequences),
		MaxBatchTokens: int(o.maxBatchTokens),
		Threads:        int(o.threads),
	})
	return h, err
}

func (h *engineHost) close() {
	h.engine.Close()
	h.cache.Close()
	h.model.Close()
}

// generate answers according to the role.
func (h *engineHost) generate(a *reply, r *http.Request, q *request) error {
	if q.Model != "" && q.Model != h.options.modelName {
		return unknownModel(q.Model)
	}
	prompts, err := h.tokenize(q)
	if err != nil {
		return err
	}
	if h.options.role == "prefill" {
		return h.prefill(r.Context(), a, q, prompts)
	}
	id := r.Header.Get("X-Request-Id")
	if h.options.role == "mixed" || id == "" {
		id = newID(q.chat)
	}
	return h.complete(r.Context(), a, q, prompts, id)
}

func newID(chat bool) string {
	kind := "cmpl"
	if chat {
		kind = "chatcmpl"
	}
	return fmt.Sprintf("%s-%016x%016x", kind, rand.Uint64(), rand.Uint64())
}

// tokenize gives the tokens of each prompt, and checks what needs a model.
func (h *engineHost) tokenize(q *request) ([][]int32, error) {
	param, inputs := "prompt", q.Prompt
	if q.chat {
		param = "messages"
		text, err := h.model.ChatPromptJSON(encode(q.Messages))
		if err != nil {
			return nil, invalid(param, "%v", err)
		}
		inputs = prompts{{text: text}}
	}
	var all [][]int32
	for _, input := range inputs {
		tokens, err := input.tokens, error(nil)
		if q.chat { // the template has what is around a text
			tokens, err = h.model.TokenizeNoSpecial(input.text)
		} else if tokens == nil {
			tokens, err = h.model.Tokenize(input.text)
		}
		if err != nil {
			return nil, invalid(param, "%v", err)
		}
		if err := h.check(q, param, tokens); err != nil {
			return nil, err
		}
		all = append(all, tokens)
	}
	return all, nil
}

func (h *engineHost) check(q *request, param string, prompt []int32) error {
	if len(prompt) == 0 {
		return invalid(param, "a prompt is empty")
	}
	for _, token := range prompt {
		if token < 0 || int(token) >= h.about.VocabSize {
			return invalid(param, "the model has no token %d", token)
		}
	}
	for token := range q.LogitBias {
		if token < 0 || int(token) >= h.about.VocabSize {
			return invalid("logit_bias", "the model has no token %d", token)
		}
	}
	if most := h.about.MaxContextTokens; len(prompt) > most {
		err := invalid(param, "the prompt has %d tokens, the model's context has room for %d", len(prompt), most)
		err.Code = "context_length_exceeded"
		return err
	}
	return nil
}

// engineRequest is choice number `choice` of the n of a prompt.
func engineRequest(q *request, prompt []int32, choice int) cleave.Request {
	r := cleave.Request{
		Prompt:            prompt,
		MaxNewTokens:      int(q.maxTokens),
		MinNewTokens:      int(q.MinTokens),
		IgnoreEOS:         q.IgnoreEOS,
		Temperature:       q.Temperature,
		TopK:              max(int(q.TopK), 0),
		TopP:              q.TopP,
		MinP:              q.MinP,
		RepetitionPenalty: q.RepetitionPenalty,
		PresencePenalty:   q.PresencePenalty,
		FrequencyPenalty:  q.FrequencyPenalty,
		LogitBias:         q.LogitBias,
		Logprobs:          q.top >= 0,
		TopLogprobs:       max(q.top, 0),
		Priority:          int(q.Priority),
	}
	if q.Seed != nil {
		r.Seed = uint64(*q.Seed + int64(choice))
		if r.Seed == 0 {
			r.Seed = 1 << 63 // 0 is a random one
		}
	}
	return r
}

// engineError is what a client is told of an error of cleave's.
func engineError(err error) *apiError {
	switch {
	case errors.Is(err, cleave.ErrWouldBlock):
		return &apiError{status: http.StatusTooManyRequests, Message: err.Error(), Type: "rate_limit_error"}
	case errors.Is(err, cleave.ErrInvalidArgument), errors.Is(err, cleave.ErrOutOfMemory):
		return invalid("", "%v", err)
	case errors.Is(err, cleave.ErrShutdown):
		return unavailable(errShuttingDown.Error())
	}
	return &apiError{status: http.StatusInternalServerError, Message: err.Error(), Type: "server_error"}
}

func (h *engineHost) models() []string { return []string{h.options.modelName} }

func (h *engineHost) health() (fields map[string]any, problem string) {
	audit, err := h.cache.Audit()
	if err == nil {
		err = h.engine.Err()
	}
	if err != nil {
		problem = err.Error()
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
