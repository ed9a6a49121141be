package vllm

import (
	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/rpc"
)

// answer sends a generation.
type answer struct {
	generation *generation
	send       func(*pb.GenerateResponse) error
	begun      bool
	sent       uint32 // tokens
}

// chunk sends a part of the answer, the last one with its end.
func (a *answer) chunk(c core.Chunk, end *pb.FinishInfo) error {
	output := &pb.SequenceOutput{NumTokens: uint32(len(c.Tokens)), FinishInfo: end}
	if a.generation.text {
		output.Text = c.Text
	}
	for i := range c.Tokens {
		a.token(output, &c.Tokens[i])
	}
	if a.sent += output.NumTokens; end != nil {
		end.NumOutputTokens = a.sent
	}
	response := &pb.GenerateResponse{Outputs: output}
	if !a.begun {
		a.begun = true
		response.PromptInfo = &pb.PromptInfo{NumPromptTokens: uint32(len(a.generation.Before))}
		if a.generation.promptIDs {
			for _, token := range a.generation.Before {
				response.PromptInfo.TokenIds = append(response.PromptInfo.TokenIds, uint32(token))
			}
		}
	}
	return a.send(response)
}

// token adds a token, and its alternatives other than itself.
func (a *answer) token(output *pb.SequenceOutput, p *core.Piece) {
	if a.generation.tokenIDs {
		output.TokenIds = append(output.TokenIds, uint32(p.Token))
	}
	if !a.generation.Logprobs {
		return
	}
	others := &pb.CandidateTokenInfo{}
	for i, other := range p.Top[:min(len(p.Top), a.generation.candidates)] {
		if other.Token != p.Token {
			others.Tokens = append(others.Tokens, &pb.CandidateTokenInfo_TokenInfo{
				Id: uint32(other.Token), Logprob: other.Logprob, Rank: uint32(i) + 1,
			})
		}
	}
	output.Logprobs = append(output.Logprobs, p.Logprob)
	output.Ranks = append(output.Ranks, rpc.Rank(p))
	output.CandidateTokens = append(output.CandidateTokens, others)
}
