package openengine

import (
	"context"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/openengine"
	"cleave/examples/go-server/internal/rpc"
)

// generation is a checked request.
type generation struct {
	core.Request
	contextOnly bool // only the prompt, for a decode worker
	ticket      core.Ticket
	candidates  int // alternatives to report with each token
}

// parse checks a request and converts it. Fields that this server cannot serve are refused by name.
func (s *Service) parse(ctx context.Context, q *pb.GenerateRequest) (*generation, error) {
	if err := rpc.CheckModel(s.host, q.GetModel()); err != nil {
		return nil, err
	}
	if err := rpc.CheckRank(ctx, "openengine-target-dp-rank"); err != nil {
		return nil, err
	}
	if err := refuse(q); err != nil {
		return nil, err
	}
	prompt, err := s.prompt(q)
	if err != nil {
		return nil, err
	}
	sampling, stopping, response, kv := q.GetSampling(), q.GetStopping(), q.GetResponse(), q.GetKv()
	g := &generation{contextOnly: q.GetExtra().GetFields()["request_type"].GetStringValue() == "context_only"}
	g.Request = core.Request{
		Request: cleave.Request{
			Prompt:            prompt,
			MaxNewTokens:      int(stopping.GetMaxTokens()),
			MinNewTokens:      int(stopping.GetMinTokens()),
			IgnoreEOS:         stopping.GetIgnoreEos(),
			Temperature:       1, // OpenAI's default, which clients mean when they say nothing
			TopK:              int(max(sampling.GetTopK(), 0)),
			TopP:              float32(sampling.GetTopP()),
			MinP:              float32(sampling.GetMinP()),
			RepetitionPenalty: float32(sampling.GetRepetitionPenalty()),
			PresencePenalty:   float32(sampling.GetPresencePenalty()),
			FrequencyPenalty:  float32(sampling.GetFrequencyPenalty()),
			CacheSalt:         s.host.Salts.Salt(kv.GetCacheSalt(), kv.GetBypassPrefixCache()),
		},
		KeepStop: stopping.GetIncludeStopInOutput(),
		Before:   prompt,
	}
	if sampling != nil && sampling.Temperature != nil {
		g.Temperature = float32(*sampling.Temperature)
	}
	if sampling != nil && sampling.Seed != nil {
		g.Seed = rpc.Seed(*sampling.Seed)
	}
	var ids []uint32
	for _, condition := range stopping.GetConditions() {
		switch c := condition.GetCondition().(type) {
		case *pb.StopCondition_StopText:
			g.StopStrings = append(g.StopStrings, c.StopText)
		case *pb.StopCondition_StopTokenId:
			ids = append(ids, c.StopTokenId)
		default:
			return nil, rpc.Invalid("stopping.conditions", "each must have a stop_text or a stop_token_id")
		}
	}
	if g.Stop, err = rpc.Tokens(s.host, "stopping.conditions", ids); err != nil {
		return nil, err
	}
	if err := rpc.CheckStopStrings("stopping.conditions", g.StopStrings); err != nil {
		return nil, err
	}
	if response.GetReturnOutputLogprobs() || response.GetOutputCandidates() != nil {
		g.candidates = int(response.GetOutputCandidates().GetTopN())
		g.Logprobs, g.TopLogprobs = true, rpc.Alternatives(s.host, g.candidates)
	}
	if g.Priority, err = priority(ctx); err != nil {
		return nil, err
	}
	if session := kv.GetSession(); session != nil {
		if g.ticket, err = rpc.ParseTicket("kv.session.attributes_struct", session.GetAttributesStruct()); err != nil {
			return nil, err
		}
		if len(g.ticket.Ticket) == 0 || session.GetTransferBackend() != transferBackend || g.contextOnly {
			return nil, rpc.Invalid("kv.session", "must be the session of a prefill worker of this kind, in a request for decoding")
		}
	}
	return g, nil
}

// prompt returns the tokens of the prompt.
func (s *Service) prompt(q *pb.GenerateRequest) (tokens []int32, err error) {
	if text, there := q.GetInput().(*pb.GenerateRequest_Prompt); there {
		tokens, err = rpc.Tokenize(s.host, "prompt", text.Prompt)
	} else {
		tokens, err = rpc.Tokens(s.host, "token_ids", q.GetTokenIds().GetIds())
	}
	if err != nil {
		return nil, err
	}
	return tokens, rpc.CheckPrompt(s.host, tokens)
}

// refuse names the first field that this server cannot serve.
func refuse(q *pb.GenerateRequest) error {
	sampling, stopping, response := q.GetSampling(), q.GetStopping(), q.GetResponse()
	candidates := response.GetOutputCandidates()
	_, top := candidates.GetSelection().(*pb.CandidateTokenSelection_TopN)
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"sampling.num_sequences above 1", sampling.GetNumSequences() > 1},
		{"sampling.top_k below -1", sampling.GetTopK() < -1},
		{"stopping.max_tokens 0", stopping != nil && stopping.MaxTokens != nil && *stopping.MaxTokens == 0},
		{"response.return_prompt_logprobs", response.GetReturnPromptLogprobs()},
		{"response.prompt_candidates", response.GetPromptCandidates() != nil},
		{"response.output_candidates other than top_n up to 128", candidates != nil && (!top || candidates.GetTopN() > rpc.MostCandidates)},
		{"guided", q.GetGuided().GetGuide() != nil},
		{"media", len(q.GetMedia()) > 0},
		{"lora_name", q.GetLoraName() != ""},
	} {
		if field.set {
			return rpc.Invalid(field.name, "not supported by this server")
		}
	}
	return rpc.CheckFields(q)
}
