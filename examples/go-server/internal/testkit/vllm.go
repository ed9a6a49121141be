package testkit

import (
	"context"
	"io"
	"testing"
	"unicode/utf8"

	cleave "cleave/go"

	pb "cleave/examples/go-server/internal/pb/vllm"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// Stream is a stream of vllm.Inference.
type Stream = grpc.ServerStreamingClient[pb.GenerateResponse]

// Request returns a request as Dynamo's sidecar sends it.
func Request(t testing.TB, question string, tokens uint32) *pb.GenerateRequest {
	return &pb.GenerateRequest{
		RequestId:   t.Name(),
		Prompt:      &pb.GenerateRequest_TokenIds{TokenIds: &pb.TokenIds{Ids: Unsigned(Tokens(t, question))}},
		Temperature: proto.Float32(1),
		Sampling:    &pb.RandomSampling{NumSequences: 1, TopK: proto.Uint32(0), MinP: proto.Float32(0), Seed: proto.Int64(7)},
		Decoding:    &pb.DecodingParameters{},
		Stopping:    &pb.StoppingCriteria{MaxNewTokens: tokens, StopTokenIds: []uint32{1, 2}},
		Response:    &pb.ResponseOptions{OutputText: proto.Bool(true), OutputTokenIds: true},
		Kv:          &pb.KVCacheParameters{},
	}
}

// Unstoppable returns a request for a number of tokens that nothing in them ends; 0 stands for all that fit.
func Unstoppable(t testing.TB, tokens uint32) *pb.GenerateRequest {
	q := Request(t, "the old farmer", tokens)
	q.Stopping.IgnoreEos, q.Stopping.StopTokenIds = true, nil
	return q
}

// RemoteDecode returns the request that Dynamo's sidecar sends to a prefill worker.
func RemoteDecode(q *pb.GenerateRequest) *pb.GenerateRequest {
	p := WithKV(q, &structpb.Struct{Fields: map[string]*structpb.Value{"do_remote_decode": structpb.NewBoolValue(true)}})
	p.Stopping.MaxNewTokens, p.Stopping.MinNewTokens = 1, 1
	return p
}

// WithKV returns a request with other kv_transfer_params.
func WithKV(q *pb.GenerateRequest, params *structpb.Struct) *pb.GenerateRequest {
	q = proto.Clone(q).(*pb.GenerateRequest)
	q.Kv.KvTransferParams = params
	return q
}

// Same returns the library's request of the same meaning.
func Same(q *pb.GenerateRequest) cleave.Request {
	r := cleave.Request{Temperature: q.GetTemperature(), Seed: uint64(q.Sampling.GetSeed()), MaxNewTokens: int(q.Stopping.MaxNewTokens),
		MinNewTokens: int(q.Stopping.MinNewTokens), IgnoreEOS: q.Stopping.IgnoreEos, Logprobs: q.Response.OutputLogprobs}
	r.RepetitionPenalty, r.PresencePenalty = q.Decoding.RepetitionPenalty, q.Decoding.PresencePenalty
	for id, bias := range q.Decoding.LogitBias {
		r.LogitBias = map[int32]float32{int32(id): bias}
	}
	for _, id := range q.GetTokenIds().GetIds() {
		r.Prompt = append(r.Prompt, int32(id))
	}
	return r
}

// Answer is a whole answer.
type Answer struct {
	Text      string
	Tokens    []uint32
	Logprobs  []float32
	Responses []*pb.GenerateResponse
	Finish    *pb.FinishInfo
}

// Open sends a request.
func Open(t testing.TB, ctx context.Context, c grpc.ClientConnInterface, q *pb.GenerateRequest) Stream {
	t.Helper()
	stream, err := pb.NewInferenceClient(c).GenerateStream(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// Read reads a stream to its end and checks what holds for every stream with token ids.
func Read(t testing.TB, stream Stream) (a Answer, err error) {
	t.Helper()
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			break
		} else if err != nil {
			return a, err
		}
		if (r.PromptInfo != nil) != (len(a.Responses) == 0) {
			t.Error("prompt info belongs into the first message and no other")
		}
		if a.Finish != nil {
			t.Error("a message after the end")
		}
		o := r.Outputs
		if int(o.NumTokens) != len(o.TokenIds) || !utf8.ValidString(o.Text) {
			t.Errorf("%d tokens counted: %v", o.NumTokens, o)
		}
		a.Text += o.Text
		a.Tokens = append(a.Tokens, o.TokenIds...)
		a.Logprobs = append(a.Logprobs, o.Logprobs...)
		a.Responses = append(a.Responses, r)
		a.Finish = o.FinishInfo
	}
	if a.Finish == nil {
		t.Fatal("a stream without an end")
	}
	if int(a.Finish.NumOutputTokens) != len(a.Tokens) {
		t.Errorf("%d tokens reported, %d streamed", a.Finish.NumOutputTokens, len(a.Tokens))
	}
	return a, nil
}

// Ask sends a request and reads the answer.
func Ask(t testing.TB, c grpc.ClientConnInterface, q *pb.GenerateRequest) (Answer, error) {
	t.Helper()
	return Read(t, Open(t, Context(t), c, q))
}

// Answered is Ask for a request that cannot fail.
func Answered(t testing.TB, c grpc.ClientConnInterface, q *pb.GenerateRequest) Answer {
	t.Helper()
	a, err := Ask(t, c, q)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
