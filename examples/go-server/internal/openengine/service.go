// Package openengine serves the OpenEngine protocol (openengine.v1), which Dynamo's sidecar for TensorRT-LLM speaks. It is
// experimental, like the protocol.
package openengine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/kvevents"
	pb "cleave/examples/go-server/internal/pb/openengine"
	"cleave/examples/go-server/internal/rpc"

	cleave "cleave/go"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Services are the names under which health is asked for.
var Services = []string{pb.Inference_ServiceDesc.ServiceName, pb.Control_ServiceDesc.ServiceName}

// transferBackend names the transfer of KV by tickets.
const transferBackend = "cleave"

// Service answers requests of both services.
type Service struct {
	pb.UnimplementedInferenceServer
	pb.UnimplementedControlServer
	host     *core.Host
	events   *kvevents.Publisher // may be missing
	instance string              // a name for this process
	sessions sync.Map            // handles that wait for a decode worker, by session id
}

// Register adds the services to a server. Without a publisher of KV events there are none.
func Register(server grpc.ServiceRegistrar, host *core.Host, events *kvevents.Publisher) *Service {
	s := &Service{host: host, events: events, instance: fmt.Sprintf("cleave-%016x", rand.Uint64())}
	pb.RegisterInferenceServer(server, s)
	pb.RegisterControlServer(server, s)
	return s
}

// Generate answers a request as its tokens come. The header goes out with the first one.
func (s *Service) Generate(q *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	ctx := stream.Context()
	g, err := s.parse(ctx, q)
	if err != nil {
		return err
	}
	ctx, end, err := s.host.Requests.Begin(ctx, q.GetRequestId())
	if err != nil {
		return rpc.Status(context.Background(), err)
	}
	defer end()
	a := &answer{generation: g, id: q.GetRequestId(), stream: stream}
	if g.contextOnly {
		err = s.prefill(ctx, g, a)
	} else {
		err = s.decode(ctx, g, a)
	}
	if errors.Is(context.Cause(ctx), core.ErrAborted) && err != nil {
		return a.finish(&pb.GenerationFinished{Reason: pb.FinishReason_FINISH_REASON_CANCELLED}, 0)
	}
	return rpc.Status(ctx, err)
}

// prefill computes the prompt for a decode worker. The first token travels in the KV's snapshot.
func (s *Service) prefill(ctx context.Context, g *generation, a *answer) error {
	prefilled, err := s.host.Prefill(ctx, g.Request)
	if err != nil {
		return err
	}
	session := fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
	s.sessions.Store(session, prefilled.KV)
	time.AfterFunc(s.host.Config.Lease, func() { s.sessions.Delete(session) })
	err = a.send(&pb.GenerateResponse{
		Event: &pb.GenerateResponse_PrefillReady{PrefillReady: &pb.PrefillReady{KvSession: &pb.KvSessionRef{
			SessionId: session, TransferBackend: transferBackend, AttributesStruct: rpc.TicketStruct(prefilled.Ticket),
		}}},
		Usage: a.usage(prefilled.Cached),
	})
	if err != nil {
		prefilled.KV.Close() // nobody has the ticket
	}
	return err
}

// decode answers with the tokens of a request, which continues a session if it has one.
func (s *Service) decode(ctx context.Context, g *generation, a *answer) error {
	for chunk, err := range s.host.Run(ctx, g.Request, g.ticket) {
		if err != nil {
			return err
		}
		if err := a.chunk(chunk); err != nil {
			return err
		}
	}
	return nil
}

// answer sends a generation.
type answer struct {
	generation *generation
	id         string
	stream     grpc.ServerStreamingServer[pb.GenerateResponse]
	sent       int // tokens
}

func (a *answer) send(r *pb.GenerateResponse) error {
	r.RequestId = a.id
	return a.stream.Send(r)
}

// chunk sends a part of the answer, and after the last one its end.
func (a *answer) chunk(c core.Chunk) error {
	a.sent += len(c.Tokens)
	if len(c.Tokens) > 0 || c.Text != "" {
		output := &pb.TokenOutput{OutputIndex: proto.Uint32(0), Text: c.Text}
		for i := range c.Tokens {
			output.Tokens = append(output.Tokens, a.token(&c.Tokens[i]))
		}
		if err := a.send(&pb.GenerateResponse{Event: &pb.GenerateResponse_Token{Token: output}}); err != nil {
			return err
		}
	}
	if c.End == nil {
		return nil
	}
	finished := &pb.GenerationFinished{Reason: pb.FinishReason_FINISH_REASON_LENGTH}
	if c.End.Reason == cleave.FinishStop {
		finished.Reason = pb.FinishReason_FINISH_REASON_STOP
		switch {
		case c.End.StopString != "":
			finished.StopMatch = &pb.StopMatch{Match: &pb.StopMatch_StopText{StopText: c.End.StopString}}
		case slices.Contains(a.generation.Stop, c.End.StopToken):
			finished.StopMatch = &pb.StopMatch{Match: &pb.StopMatch_StopTokenId{StopTokenId: uint32(c.End.StopToken)}}
		default:
			finished.StopMatch = &pb.StopMatch{Match: &pb.StopMatch_EosTokenId{EosTokenId: uint32(c.End.StopToken)}}
		}
	}
	return a.finish(finished, c.End.Cached)
}

func (a *answer) finish(finished *pb.GenerationFinished, cached int) error {
	finished.OutputIndex = proto.Uint32(0)
	return a.send(&pb.GenerateResponse{Event: &pb.GenerateResponse_Finished{Finished: finished}, Usage: a.usage(cached)})
}

func (a *answer) usage(cached int) *pb.Usage {
	prompt := len(a.generation.Before)
	return &pb.Usage{PromptTokens: uint32(prompt), CompletionTokens: uint32(a.sent), TotalTokens: uint32(prompt + a.sent),
		CachedPromptTokens: proto.Uint32(uint32(cached))}
}

// token describes a token and the likeliest ones at its place.
func (a *answer) token(p *core.Piece) *pb.TokenInfo {
	info := &pb.TokenInfo{TokenId: uint32(p.Token)}
	if !a.generation.Logprobs {
		return info
	}
	info.Logprob, info.Rank = proto.Float64(float64(p.Logprob)), proto.Uint32(rpc.Rank(p))
	for i, other := range p.Top[:min(len(p.Top), a.generation.candidates)] {
		info.Candidates = append(info.Candidates, &pb.LogProb{
			TokenId: uint32(other.Token), Logprob: float64(other.Logprob), Rank: proto.Uint32(uint32(i) + 1),
		})
	}
	return info
}

// priority reads the priority of a request, higher first.
func priority(ctx context.Context) (int, error) {
	const header = "openengine-priority"
	var given int64
	for _, value := range metadata.ValueFromIncomingContext(ctx, header) {
		var err error
		if given, err = strconv.ParseInt(value, 10, 32); err != nil {
			return 0, rpc.Invalid(header, "must be an integer of 32 bits")
		}
	}
	return rpc.Priority(given), nil
}
