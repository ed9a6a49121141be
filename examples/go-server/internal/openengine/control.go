package openengine

import (
	"cmp"
	"context"
	"path/filepath"
	"time"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/openengine"
	"cleave/examples/go-server/internal/rpc"

	cleave "cleave/go"

	"google.golang.org/protobuf/proto"
)

// The revision of the schema that this server was generated from: see examples/proto/NOTICE.
const schemaRelease = "b5f2bd93721f7b888d3e2440679e0ae7012939d1"

var roles = map[cleave.Role]pb.EngineRole{
	cleave.RoleMixed:   pb.EngineRole_ENGINE_ROLE_AGGREGATED,
	cleave.RolePrefill: pb.EngineRole_ENGINE_ROLE_PREFILL,
	cleave.RoleDecode:  pb.EngineRole_ENGINE_ROLE_DECODE,
}

// GetModelInfo describes the model.
func (s *Service) GetModelInfo(_ context.Context, q *pb.GetModelInfoRequest) (*pb.ModelInfo, error) {
	if err := rpc.CheckModel(s.host, q.GetModel()); err != nil {
		return nil, err
	}
	directory, err := filepath.Abs(s.host.Config.Model)
	if err != nil {
		return nil, err
	}
	return &pb.ModelInfo{
		ModelId:               directory,
		ServedModelName:       s.host.Config.Name,
		MaxContextLength:      proto.Uint32(uint32(s.host.About.MaxContextTokens)),
		SupportsTextInput:     proto.Bool(true),
		SupportsTokenIdsInput: proto.Bool(true),
		SupportsLora:          proto.Bool(false),
		SupportsMultimodal:    proto.Bool(false),
		Generation: &pb.GenerationCapabilities{
			PromptLogprobs: &pb.LogprobCapabilities{Supported: proto.Bool(false)},
			OutputLogprobs: &pb.LogprobCapabilities{
				Supported:               proto.Bool(true),
				CandidateSelectionModes: []pb.CandidateTokenSelectionMode{pb.CandidateTokenSelectionMode_CANDIDATE_TOKEN_SELECTION_MODE_TOP_N},
				MaxTopN:                 proto.Uint32(rpc.MostCandidates),
			},
			GuidedDecoding:            &pb.GuidedDecodingCapabilities{Supported: proto.Bool(false)},
			MaxNumSequences:           proto.Uint32(1),
			SupportsPriority:          proto.Bool(true),
			SupportsStopInOutput:      proto.Bool(true),
			SupportsCacheSalt:         proto.Bool(true),
			SupportsPrefixCacheBypass: proto.Bool(true),
		},
	}, nil
}

// GetServerInfo describes this worker.
func (s *Service) GetServerInfo(ctx context.Context, _ *pb.GetServerInfoRequest) (*pb.ServerInfo, error) {
	metrics, err := s.host.Engine.Metrics()
	if err != nil {
		return nil, rpc.Status(ctx, err)
	}
	config := s.host.Config
	return &pb.ServerInfo{
		EngineName:      "cleave",
		EngineVersion:   cleave.Version(),
		EngineRole:      roles[metrics.Role],
		InstanceId:      s.instance,
		SupportedModels: []string{config.Name},
		Parallelism: &pb.ParallelismInfo{TensorParallelSize: proto.Uint32(1), PipelineParallelSize: proto.Uint32(1),
			DataParallelSize: proto.Uint32(1), DataParallelRank: proto.Uint32(0), DecodeContextParallelSize: proto.Uint32(1)},
		KvConnector: &pb.KvConnectorInfo{Enabled: proto.Bool(len(config.Secret) > 0), TransferBackend: transferBackend,
			SupportsRemotePrefill: proto.Bool(true), SupportsDecodePull: proto.Bool(true), SupportsAbortCleanup: proto.Bool(true)},
		SchemaRevision:        1,
		MinimumClientRevision: 1,
		SchemaRelease:         schemaRelease,
		Capacity: &pb.DeploymentCapacity{KvBlockSize: proto.Uint32(core.BlockTokens), TotalKvBlocks: proto.Uint64(uint64(metrics.BlocksTotal)),
			MaxRunningRequests: proto.Uint64(uint64(cmp.Or(config.MaxSequences, core.MaxSequences))),
			MaxBatchedTokens:   proto.Uint64(uint64(cmp.Or(config.MaxBatchTokens, core.MaxBatchTokens))), MaxLoras: proto.Uint32(0)},
	}, nil
}

// GetLoad reports what runs and waits.
func (s *Service) GetLoad(ctx context.Context, _ *pb.GetLoadRequest) (*pb.LoadInfo, error) {
	load, err := s.host.Engine.Load()
	if err != nil {
		return nil, rpc.Status(ctx, err)
	}
	metrics, err := s.host.Engine.Metrics()
	if err != nil {
		return nil, rpc.Status(ctx, err)
	}
	return &pb.LoadInfo{
		InstanceId:         s.instance,
		TimestampUnixNanos: proto.Uint64(uint64(time.Now().UnixNano())),
		RunningRequests:    proto.Uint32(uint32(load.Running)),
		QueuedRequests:     proto.Uint32(uint32(load.Waiting + load.Importing)),
		ActiveKvSessions:   proto.Uint32(uint32(metrics.ExportsOpen + metrics.ImportsOpen)),
		UsedKvBlocks:       proto.Uint64(uint64(load.BlocksTotal - load.BlocksFree)),
		TotalKvBlocks:      proto.Uint64(uint64(load.BlocksTotal)),
		PrefillBatchSize:   proto.Uint32(uint32(load.Prefilling)),
		DecodeBatchSize:    proto.Uint32(uint32(load.Decoding)),
	}, nil
}

// Health tells whether requests are taken.
func (s *Service) Health(context.Context, *pb.HealthRequest) (*pb.HealthResponse, error) {
	check := &pb.HealthCheck{Name: "scheduler", State: pb.HealthState_HEALTH_STATE_READY}
	if err := s.host.Engine.Err(); err != nil {
		check.State, check.Message = pb.HealthState_HEALTH_STATE_NOT_READY, err.Error()
	} else if s.host.Requests.Closing() {
		check.State, check.Message = pb.HealthState_HEALTH_STATE_NOT_READY, core.ErrShuttingDown.Error()
	}
	return &pb.HealthResponse{State: check.State, Checks: []*pb.HealthCheck{check}}, nil
}

// Abort ends a request or all at the next step, or releases the KV of a session.
func (s *Service) Abort(_ context.Context, q *pb.AbortRequest) (*pb.AbortResponse, error) {
	aborted := false
	switch target := q.GetTarget().(type) {
	case *pb.AbortRequest_RequestId:
		aborted = s.host.Requests.Abort(target.RequestId) > 0
	case *pb.AbortRequest_AllRequests:
		aborted = s.host.Requests.Running() > 0
		s.host.Requests.AbortAll(core.ErrAborted)
	case *pb.AbortRequest_KvSession:
		if kv, there := s.sessions.LoadAndDelete(target.KvSession.GetSessionId()); there {
			aborted = true
			kv.(*cleave.KV).Close()
		}
	default:
		return nil, rpc.Invalid("target", "it is missing")
	}
	if aborted {
		return &pb.AbortResponse{Status: pb.AbortStatus_ABORT_STATUS_ABORTED}, nil
	}
	return &pb.AbortResponse{Status: pb.AbortStatus_ABORT_STATUS_ALREADY_FINISHED}, nil
}

// ListLoras: there are no adapters.
func (s *Service) ListLoras(context.Context, *pb.ListLorasRequest) (*pb.ListLorasResponse, error) {
	return &pb.ListLorasResponse{}, nil
}
