package vllm

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math"
	"math/rand/v2"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/rpc"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	mostCandidates  = 128 // alternatives of a token; the library's limit
	rankCandidates  = 20  // alternatives that the engine is asked for at least, so that ranks up to here are exact
	mostStopStrings = 128
	mostStopBytes   = 1024
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
	if name := q.GetModel(); name != "" && name != s.host.Config.Name {
		return nil, status.Errorf(codes.NotFound, "model: there is no model %q here", name)
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
			CacheSalt:         salt(q.GetKv()),
			// vLLM serves lower numbers first, cleave higher ones.
			Priority: int(int64(math.MaxInt32) - int64(q.GetPriority())),
		},
		StopStrings: stopping.GetStopStrings(),
		KeepStop:    stopping.GetIncludeStopStrings(),
		Before:      prompt,
	}
	if sampling.GetSeed() != 0 {
		g.Seed = uint64(sampling.GetSeed())
	} else if sampling != nil && sampling.Seed != nil {
		g.Seed = 1 << 63 // the library takes 0 for a random seed
	}
	if g.Stop, err = s.tokens("stopping.stop_token_ids", stopping.GetStopTokenIds()); err != nil {
		return nil, err
	}
	if len(g.StopStrings) > mostStopStrings {
		return nil, rpc.Invalid("stopping.stop_strings", "at most %d", mostStopStrings)
	}
	for _, stop := range g.StopStrings {
		if stop == "" || len(stop) > mostStopBytes {
			return nil, rpc.Invalid("stopping.stop_strings", "each must have 1 to %d bytes", mostStopBytes)
		}
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
		g.Logprobs, g.TopLogprobs = true, max(g.candidates, min(rankCandidates, s.host.About.VocabSize))
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
	for name, message := range map[string]proto.Message{"": q, "sampling.": q.GetSampling(), "decoding.": decoding,
		"stopping.": stopping, "response.": response, "kv.": kv} {
		if unknown := message.ProtoReflect().GetUnknown(); len(unknown) > 0 {
			number, _ := binary.Uvarint(unknown)
			return rpc.Invalid(name, "field number %d is unknown to this server", number>>3)
		}
	}
	return nil
}

// prompt returns the tokens of the prompt.
func (s *Service) prompt(q *pb.GenerateRequest) (tokens []int32, err error) {
	limit := s.host.About.MaxContextTokens
	switch prompt := q.GetPrompt().(type) {
	case *pb.GenerateRequest_TokenIds:
		if tokens, err = s.tokens("token_ids", prompt.TokenIds.GetIds()); err != nil {
			return nil, err
		}
	case *pb.GenerateRequest_Text:
		if len(prompt.Text) > s.host.MaxPromptBytes {
			return nil, rpc.Invalid("text", "%d bytes, and at most %d fit into the context", len(prompt.Text), s.host.MaxPromptBytes)
		}
		if tokens, err = s.host.Model.Tokenize(prompt.Text); err != nil {
			return nil, rpc.Invalid("text", "%v", err)
		}
	}
	if keep := int(q.GetTruncatePromptTokens()); keep > 0 && keep < len(tokens) {
		tokens = tokens[len(tokens)-keep:]
	}
	if len(tokens) == 0 {
		return nil, rpc.Invalid("prompt", "it is empty")
	}
	if len(tokens) >= limit {
		return nil, rpc.Invalid("prompt", "%d tokens, and the context has room for %d with one to follow", len(tokens), limit-1)
	}
	return tokens, nil
}

func (s *Service) tokens(field string, ids []uint32) ([]int32, error) {
	tokens := make([]int32, len(ids))
	for i, id := range ids {
		if id >= uint32(s.host.About.VocabSize) {
			return nil, rpc.Invalid(field, "the model has no token %d", id)
		}
		tokens[i] = int32(id)
	}
	return tokens, nil
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
	if !right || top.TopN > mostCandidates {
		return 0, rpc.Invalid("response.output_candidates", "must be top_n, at most %d", mostCandidates)
	}
	return int(top.TopN), nil
}

// salt separates the prefixes of a request in the cache from those of requests with other salts.
func salt(kv *pb.KVCacheParameters) uint64 {
	if kv.GetBypassPrefixCache() {
		return rand.Uint64() | 1 // one that no other request has
	}
	if kv.GetCacheSalt() == "" {
		return 0
	}
	digest := sha256.Sum256([]byte(kv.GetCacheSalt()))
	return binary.LittleEndian.Uint64(digest[:]) | 1
}

func parseKV(params *structpb.Struct) (kv kvParams, err error) {
	const name = "kv.kv_transfer_params"
	fields := params.GetFields()
	kv.doRemoteDecode = fields["do_remote_decode"].GetBoolValue()
	for key, into := range map[string]*[]byte{"cleave_ticket": &kv.ticket.Ticket, "cleave_address": &kv.ticket.Address} {
		if *into, err = base64.StdEncoding.DecodeString(fields[key].GetStringValue()); err != nil {
			return kv, rpc.Invalid(name, "%s is not base64", key)
		}
	}
	if kv.doRemoteDecode && len(kv.ticket.Ticket) > 0 {
		return kv, rpc.Invalid(name, "do_remote_decode and a ticket exclude each other")
	}
	return kv, nil
}

// kvStruct returns the kv_transfer_params with which a decode worker continues.
func kvStruct(t core.Ticket) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"do_remote_prefill": structpb.NewBoolValue(true),
		"cleave_ticket":     structpb.NewStringValue(base64.StdEncoding.EncodeToString(t.Ticket)),
		"cleave_address":    structpb.NewStringValue(base64.StdEncoding.EncodeToString(t.Address)),
	}}
}
