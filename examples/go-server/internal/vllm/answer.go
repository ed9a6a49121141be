package vllm

import (
	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/vllm"
)

// answer sends the pieces of a generation. A token whose text is held back, because a stop string may begin in it, waits
// with the tokens after it until the text is decided: then whoever continues the answer elsewhere, from the tokens that
// were sent, sends the text that is missing and no other.
type answer struct {
	generation *generation
	send       func(*pb.GenerateResponse) error
	piece      *pb.SequenceOutput // what waits to be sent
	begun      bool
	sent       uint32 // tokens
}

// token adds a token and sends what is decided.
func (a *answer) token(p *core.Piece) error {
	a.add(p)
	a.piece.Text += p.Text
	if p.Held {
		return nil
	}
	return a.flush()
}

func (a *answer) add(p *core.Piece) {
	a.piece.NumTokens++
	a.piece.TokenIds = append(a.piece.TokenIds, uint32(p.Token))
	if !a.generation.Logprobs {
		return
	}
	// A rank beyond the alternatives that the engine reports is given as the first one beyond them.
	rank := uint32(len(p.Top)) + 1
	others := &pb.CandidateTokenInfo{}
	for i, other := range p.Top {
		switch {
		case other.Token == p.Token:
			rank = uint32(i) + 1
		case i < a.generation.candidates:
			others.Tokens = append(others.Tokens, &pb.CandidateTokenInfo_TokenInfo{
				Id: uint32(other.Token), Logprob: other.Logprob, Rank: uint32(i) + 1,
			})
		}
	}
	a.piece.Logprobs = append(a.piece.Logprobs, p.Logprob)
	a.piece.Ranks = append(a.piece.Ranks, rank)
	a.piece.CandidateTokens = append(a.piece.CandidateTokens, others)
}

// finish sends what is left, with the end. An aborted answer leaves out what was not decided.
func (a *answer) finish(info *pb.FinishInfo) error {
	if info.FinishReason == pb.FinishInfo_ABORTED {
		a.piece = &pb.SequenceOutput{}
	}
	info.NumOutputTokens = a.sent + a.piece.NumTokens
	a.piece.FinishInfo = info
	return a.flush()
}

func (a *answer) flush() error {
	output := a.piece
	a.piece = &pb.SequenceOutput{}
	a.sent += output.NumTokens
	if !a.generation.tokenIDs {
		output.TokenIds = nil
	}
	if !a.generation.text {
		output.Text = ""
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
