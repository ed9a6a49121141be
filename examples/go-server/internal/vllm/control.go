package vllm

import (
	"cmp"
	"context"
	"path/filepath"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/kvevents"
	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/rpc"

	cleave "cleave/go"

	"google.golang.org/protobuf/proto"
)

// The version of the schema that this server was generated from: see examples/proto/NOTICE.
const protoVersion = "0.6.0"

// GetModelInfo describes the model. Sidecars read the tokenizer and the chat template from the directory model_id.
func (s *Service) GetModelInfo(context.Context, *pb.GetModelInfoRequest) (*pb.ModelInfo, error) {
	directory, err := filepath.Abs(s.host.Config.Model)
	if err != nil {
		return nil, err
	}
	return &pb.ModelInfo{
		ModelId:               directory,
		ServedModelName:       s.host.Config.Name,
		SupportsTextInput:     true,
		SupportsTokenIdsInput: true,
	}, nil
}

// GetServerInfo describes this worker. Sidecars ask twice and insist on the same answer.
func (s *Service) GetServerInfo(ctx context.Context, _ *pb.GetServerInfoRequest) (*pb.ServerInfo, error) {
	metrics, err := s.host.Engine.Metrics()
	if err != nil {
		return nil, rpc.Status(ctx, err)
	}
	block := uint64(core.BlockTokens)
	return &pb.ServerInfo{
		EngineVersion: "cleave " + cleave.Version(),
		ApiVersion:    "vllm",
		ProtoVersion:  protoVersion,
		InstanceId:    s.instance,
		Parallelism: &pb.ParallelismInfo{
			TensorParallelSize: 1, PipelineParallelSize: 1, DataParallelSize: 1, DataParallelSizeLocal: 1,
			DecodeContextParallelSize: 1, WorldSize: 1,
		},
		MaxModelLen:                 uint32(s.host.About.MaxContextTokens),
		KvBlockSize:                 uint32(block),
		EffectiveAttentionBlockSize: &block,
		TotalKvBlocks:               uint64(metrics.BlocksTotal),
		MaxRunningRequests:          uint64(cmp.Or(s.host.Config.MaxSequences, core.MaxSequences)),
		MaxBatchedTokens:            uint64(cmp.Or(s.host.Config.MaxBatchTokens, core.MaxBatchTokens)),
		RlCapabilities:              &pb.RlCapabilities{},
	}, nil
}

// Abort ends requests at the next step. Requests that are not there have ended before.
func (s *Service) Abort(_ context.Context, q *pb.AbortRequest) (*pb.AbortResponse, error) {
	for _, id := range q.GetRequestIds() {
		s.host.Requests.Abort(id)
	}
	return &pb.AbortResponse{}, nil
}

// GetKvEventSources tells where what is in the prefix cache is published. Sidecars do not start without an answer.
func (s *Service) GetKvEventSources(context.Context, *pb.GetKvEventSourcesRequest) (*pb.GetKvEventSourcesResponse, error) {
	r := &pb.GetKvEventSourcesResponse{}
	if s.events != nil {
		r.Sources = append(r.Sources, &pb.KvEventSource{
			Transport:        "zmq",
			Endpoint:         s.events.Address(),
			Topic:            kvevents.Topic,
			ReplayEndpoint:   s.events.Replay(),
			DataParallelRank: proto.Uint32(0),
			Encoding:         "msgpack",
			SchemaVersion:    1,
			BufferSteps:      kvevents.Kept,
			Hwm:              kvevents.Ahead,
			MaxQueueSize:     kvevents.Ahead,
		})
	}
	return r, nil
}

// IsPaused: generation cannot be paused.
func (s *Service) IsPaused(context.Context, *pb.IsPausedRequest) (*pb.IsPausedResponse, error) {
	return &pb.IsPausedResponse{}, nil
}

// IsSleeping: a worker does not sleep.
func (s *Service) IsSleeping(context.Context, *pb.IsSleepingRequest) (*pb.IsSleepingResponse, error) {
	return &pb.IsSleepingResponse{}, nil
}

// ListLoras: there are no adapters.
func (s *Service) ListLoras(context.Context, *pb.ListLorasRequest) (*pb.ListLorasResponse, error) {
	return &pb.ListLorasResponse{}, nil
}
