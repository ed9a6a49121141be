// Package vllm serves vLLM's gRPC protocol (vllm.Inference and vllm.Control), which Dynamo's sidecar for vLLM speaks.
package vllm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/kvevents"
	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/rpc"

	cleave "cleave/go"

	"google.golang.org/grpc"
)

// Services are the names under which health is asked for.
var Services = []string{pb.Inference_ServiceDesc.ServiceName, pb.Control_ServiceDesc.ServiceName}

// Service answers requests of both services.
type Service struct {
	pb.UnimplementedInferenceServer
	pb.UnimplementedControlServer
	host     *core.Host
	instance string              // a name for this process
	events   *kvevents.Publisher // may be missing
}

// Register adds the services to a server. Without a publisher of KV events there are none.
func Register(server grpc.ServiceRegistrar, host *core.Host, events *kvevents.Publisher) *Service {
	s := &Service{host: host, events: events, instance: fmt.Sprintf("cleave-%016x", rand.Uint64())}
	pb.RegisterInferenceServer(server, s)
	pb.RegisterControlServer(server, s)
	return s
}

// Generate answers a request in one piece.
func (s *Service) Generate(ctx context.Context, q *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	whole := &pb.GenerateResponse{Outputs: &pb.SequenceOutput{}}
	err := s.generate(ctx, q, func(r *pb.GenerateResponse) error {
		if r.PromptInfo != nil {
			whole.PromptInfo = r.PromptInfo
		}
		to, from := whole.Outputs, r.Outputs
		to.Text += from.Text
		to.NumTokens += from.NumTokens
		to.TokenIds = append(to.TokenIds, from.TokenIds...)
		to.Logprobs = append(to.Logprobs, from.Logprobs...)
		to.Ranks = append(to.Ranks, from.Ranks...)
		to.CandidateTokens = append(to.CandidateTokens, from.CandidateTokens...)
		to.FinishInfo = from.FinishInfo
		return nil
	})
	if err != nil {
		return nil, err
	}
	return whole, nil
}

// GenerateStream answers a request as its tokens come. The header goes out with the first one.
func (s *Service) GenerateStream(q *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	return s.generate(stream.Context(), q, stream.Send)
}

func (s *Service) generate(ctx context.Context, q *pb.GenerateRequest, send func(*pb.GenerateResponse) error) error {
	if err := rpc.CheckRank(ctx, "x-data-parallel-rank"); err != nil {
		return err
	}
	g, err := s.parse(q)
	if err != nil {
		return err
	}
	ctx, end, err := s.host.Requests.Begin(ctx, q.GetRequestId())
	if err != nil {
		return rpc.Status(context.Background(), err)
	}
	defer end()
	a := &answer{generation: g, send: send}
	if g.kv.doRemoteDecode {
		err = s.prefill(ctx, g, a)
	} else {
		err = s.decode(ctx, g, a)
	}
	if errors.Is(context.Cause(ctx), core.ErrAborted) && err != nil {
		return a.chunk(core.Chunk{}, &pb.FinishInfo{FinishReason: pb.FinishInfo_ABORTED})
	}
	return rpc.Status(ctx, err)
}

// prefill computes the prompt for a decode worker and answers with a ticket. The first token travels in the KV's
// snapshot: a token that ends the generation is no end here, or the router would not ask a decode worker at all.
func (s *Service) prefill(ctx context.Context, g *generation, a *answer) error {
	prefilled, err := s.host.Prefill(ctx, g.Request)
	if err != nil {
		return err
	}
	cached := uint32(prefilled.Cached)
	err = a.chunk(core.Chunk{Tokens: []core.Piece{prefilled.First}},
		&pb.FinishInfo{FinishReason: pb.FinishInfo_LENGTH, KvTransferParams: kvStruct(prefilled.Ticket), NumCachedTokens: &cached})
	if err != nil {
		prefilled.KV.Close() // nobody has the ticket
	}
	return err
}

// decode answers with the tokens of a request, which continues a ticket if it has one. A decode worker without a ticket
// computes the prompt itself.
func (s *Service) decode(ctx context.Context, g *generation, a *answer) error {
	for chunk, err := range s.host.Run(ctx, g.Request, g.kv.ticket) {
		if err != nil {
			return err
		}
		if err := a.chunk(chunk, finishInfo(chunk.End, g.Stop)); err != nil {
			return err
		}
	}
	return nil
}

// finishInfo describes the end of a generation, if it is there.
func finishInfo(end *core.End, stops []int32) *pb.FinishInfo {
	if end == nil {
		return nil
	}
	cached := uint32(end.Cached)
	info := &pb.FinishInfo{FinishReason: pb.FinishInfo_LENGTH, NumCachedTokens: &cached}
	if end.Reason == cleave.FinishStop {
		info.FinishReason = pb.FinishInfo_STOP
		switch {
		case end.StopString != "":
			info.StopReason = &pb.FinishInfo_StopString{StopString: end.StopString}
		case slices.Contains(stops, end.StopToken):
			info.StopReason = &pb.FinishInfo_StopTokenId{StopTokenId: uint32(end.StopToken)}
		default:
			info.StopReason = &pb.FinishInfo_EosTokenId{EosTokenId: uint32(end.StopToken)}
		}
	}
	return info
}
