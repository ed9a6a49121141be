package vllm

import (
	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/rpc"

	"google.golang.org/protobuf/types/known/structpb"
)

// generation is a checked request.
type generation struct {
	core.Request
	kv         kvParams
	text       bool // whether the answer has text, token ids, and so on
	tokenIDs   bool
	promptIDs  bool
	candidates int // alternatives to report with each token
}

// kvParams are the kv_transfer_params of a request.
type kvParams struct {
	doRemoteDecode bool
	ticket         core.Ticket
}

// parse checks a request and converts it. Fields that this server cannot serve are refused by name; a field that is
// ignored might change what the answer means.
func (s *Service) parse(q *pb.GenerateRequest) (*generation, error) {
	if err := rpc.CheckModel(s.host, q.GetModel()); err != nil {
		return nil, err
	}
	if err := refuse(q); err != nil {
		return nil, err
	}
	g := &generation{}
	prompt, err := s.prompt(q)
	if err != nil {
		return nil, err
	}
	sampling, decoding, stopping, response := q.GetSampling(), q.GetDecoding(), q.GetStopping(), q.GetResponse()
	g.Request = core.Request{
		Request: cleave.Request{
			Prompt:            prompt,
			MaxNewTokens:      int(stopping.GetMaxNewTokens()),
			MinNewTokens:      int(stopping.GetMinNewTokens()),
			IgnoreEOS:         stopping.GetIgnoreEos(),
			Temperature:       q.GetTemperature(),
			TopK:              int(sampling.GetTopK()),
			TopP:              sampling.GetTopP(),
			MinP:              sampling.GetMinP(),
			RepetitionPenalty: decoding.GetRepetitionPenalty(),
			PresencePenalty:   decoding.GetPresencePenalty(),
			FrequencyPenalty:  decoding.GetFrequencyPenalty(),
			CacheSalt:         s.host.Salts.Salt(q.GetKv().GetCacheSalt(), q.GetKv().GetBypassPrefixCache()),
			// vLLM serves lower numbers first, cleave higher ones.
			Priority: rpc.Priority(-int64(q.GetPriority())),
		},
		StopStrings: stopping.GetStopStrings(),
		KeepStop:    stopping.GetIncludeStopStrings(),
		Before:      prompt,
	}
	if sampling != nil && sampling.Seed != nil {
		g.Seed = rpc.Seed(uint64(*sampling.Seed))
	}
	if g.Stop, err = rpc.Tokens(s.host, "stopping.stop_token_ids", stopping.GetStopTokenIds()); err != nil {
		return nil, err
	}
	if err := rpc.CheckStopStrings("stopping.stop_strings", g.StopStrings); err != nil {
		return nil, err
	}
	if g.LogitBias, err = s.logitBias(decoding.GetLogitBias()); err != nil {
		return nil, err
	}
	g.text = response == nil || response.OutputText == nil || *response.OutputText
	g.tokenIDs, g.promptIDs = response.GetOutputTokenIds(), response.GetPromptTokenIds()
	if g.candidates, err = candidates(response); err != nil {
		return nil, err
	}
	if response.GetOutputLogprobs() || response.GetOutputCandidates() != nil {
		g.Logprobs, g.TopLogprobs = true, rpc.Alternatives(s.host, g.candidates)
	}
	g.kv, err = parseKV(q.GetKv().GetKvTransferParams())
	return g, err
}

// refuse names the first field that this server cannot serve.
func refuse(q *pb.GenerateRequest) error {
	decoding, stopping, response, kv := q.GetDecoding(), q.GetStopping(), q.GetResponse(), q.GetKv()
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"sampling.num_sequences above 1", q.GetSampling().GetNumSequences() > 1},
		{"decoding.allowed_token_ids", len(decoding.GetAllowedTokenIds()) > 0},
		{"decoding.structured_output", decoding.GetStructuredOutput() != nil},
		{"decoding.bad_words_token_ids", len(decoding.GetBadWordsTokenIds()) > 0},
		{"stopping.thinking_token_budget", stopping.GetThinkingTokenBudget() > 0 ||
			stopping != nil && stopping.ThinkingTokenBudget != nil && *stopping.ThinkingTokenBudget == 0},
		{"response.prompt_logprobs", response.GetPromptLogprobs()},
		{"response.prompt_candidates", response.GetPromptCandidates() != nil},
		{"response.skip_special_tokens false", response != nil && response.SkipSpecialTokens != nil && !*response.SkipSpecialTokens},
		{"kv.ec_transfer_params", kv.GetEcTransferParams() != nil},
		{"kv_hints", len(q.GetKvHints().GetActions()) > 0},
		{"media", len(q.GetMedia()) > 0},
		{"lora_name", q.GetLoraName() != ""},
	} {
		if field.set {
			return rpc.Invalid(field.name, "not supported by this server")
		}
	}
	return rpc.CheckFields(q)
}

// prompt returns the tokens of the prompt.
func (s *Service) prompt(q *pb.GenerateRequest) (tokens []int32, err error) {
	if text, there := q.GetPrompt().(*pb.GenerateRequest_Text); there {
		tokens, err = rpc.Tokenize(s.host, "text", text.Text)
	} else {
		tokens, err = rpc.Tokens(s.host, "token_ids", q.GetTokenIds().GetIds())
	}
	if err != nil {
		return nil, err
	}
	if keep := int(q.GetTruncatePromptTokens()); keep > 0 && keep < len(tokens) {
		tokens = tokens[len(tokens)-keep:]
	}
	return tokens, rpc.CheckPrompt(s.host, tokens)
}

func (s *Service) logitBias(biases map[uint32]float32) (map[int32]float32, error) {
	if len(biases) == 0 {
		return nil, nil
	}
	converted := make(map[int32]float32, len(biases))
	for id, bias := range biases {
		if id >= uint32(s.host.About.VocabSize) {
			return nil, rpc.Invalid("decoding.logit_bias", "the model has no token %d", id)
		}
		converted[int32(id)] = bias
	}
	return converted, nil
}

// candidates returns how many alternatives to report with each token.
func candidates(response *pb.ResponseOptions) (int, error) {
	selection := response.GetOutputCandidates()
	if selection == nil {
		return 0, nil
	}
	top, right := selection.GetSelect().(*pb.CandidateTokens_TopN)
	if !right || top.TopN > rpc.MostCandidates {
		return 0, rpc.Invalid("response.output_candidates", "must be top_n, at most %d", rpc.MostCandidates)
	}
	return int(top.TopN), nil
}

func parseKV(params *structpb.Struct) (kv kvParams, err error) {
	const name = "kv.kv_transfer_params"
	kv.doRemoteDecode = params.GetFields()["do_remote_decode"].GetBoolValue()
	if kv.ticket, err = rpc.ParseTicket(name, params); err != nil {
		return kv, err
	}
	if kv.doRemoteDecode && len(kv.ticket.Ticket) > 0 {
		return kv, rpc.Invalid(name, "do_remote_decode and a ticket exclude each other")
	}
	if params.GetFields()["do_remote_prefill"].GetBoolValue() && len(kv.ticket.Ticket) == 0 {
		return kv, rpc.Invalid(name, "do_remote_prefill without the cleave_ticket of a prefill worker of this kind")
	}
	return kv, nil
}

// kvStruct returns the kv_transfer_params with which a decode worker continues.
func kvStruct(t core.Ticket) *structpb.Struct {
	params := rpc.TicketStruct(t)
	params.Fields["do_remote_prefill"] = structpb.NewBoolValue(true)
	return params
}
