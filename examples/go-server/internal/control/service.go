// Package control serves cleave.v1.Worker: role, load and end of a worker, for whoever runs several.
package control

import (
	"context"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/worker"
	"cleave/examples/go-server/internal/rpc"
)

// ServiceName is the name under which health is asked for.
const ServiceName = "cleave.v1.Worker"

var roles = map[pb.Role]cleave.Role{
	pb.Role_ROLE_MIXED: cleave.RoleMixed, pb.Role_ROLE_PREFILL: cleave.RolePrefill, pb.Role_ROLE_DECODE: cleave.RoleDecode,
}

type service struct {
	pb.UnimplementedWorkerServer
	host   *core.Host
	server *rpc.Server
}

// Register adds the service to a server.
func Register(server *rpc.Server, host *core.Host) {
	pb.RegisterWorkerServer(server, &service{host: host, server: server})
}

// GetRole returns the role in effect.
func (s *service) GetRole(ctx context.Context, _ *pb.GetRoleRequest) (*pb.RoleState, error) {
	load, err := s.host.Engine.Load()
	return state(load), rpc.Status(ctx, err)
}

// SetRole switches the role, and returns once it is in effect.
func (s *service) SetRole(ctx context.Context, q *pb.SetRoleRequest) (*pb.RoleState, error) {
	role, known := roles[q.GetRole()]
	if !known {
		return nil, rpc.Invalid("role", "must be ROLE_MIXED, ROLE_PREFILL or ROLE_DECODE")
	}
	load, err := s.host.SetRole(ctx, role)
	return state(load), rpc.Status(ctx, err)
}

func state(load cleave.EngineLoad) *pb.RoleState {
	return &pb.RoleState{
		Role:           message(load.Role),
		SinceStep:      load.RoleSinceStep,
		SinceUnixNanos: uint64(load.RoleSince().UnixNano()),
		Prefilling:     uint32(load.PrefillingAtSwitch),
		Decoding:       uint32(load.DecodingAtSwitch),
		Waiting:        uint32(load.WaitingAtSwitch),
		Importing:      uint32(load.ImportingAtSwitch),
	}
}

func message(role cleave.Role) pb.Role {
	for message, same := range roles {
		if same == role {
			return message
		}
	}
	return pb.Role_ROLE_UNSPECIFIED
}

// GetLoad reports what the engine is doing and has room for.
func (s *service) GetLoad(ctx context.Context, _ *pb.GetLoadRequest) (*pb.Load, error) {
	load, err := s.host.Engine.Load()
	if err != nil {
		return nil, rpc.Status(ctx, err)
	}
	metrics, err := s.host.Engine.Metrics()
	if err != nil {
		return nil, rpc.Status(ctx, err)
	}
	return &pb.Load{
		Role:                   message(load.Role),
		Prefilling:             uint32(load.Prefilling),
		Decoding:               uint32(load.Decoding),
		Waiting:                uint32(load.Waiting),
		Importing:              uint32(load.Importing),
		Exports:                uint32(metrics.ExportsOpen),
		BlocksTotal:            uint32(load.BlocksTotal),
		BlocksFree:             uint32(load.BlocksFree),
		BlocksCached:           uint32(load.BlocksCached),
		BlockTokens:            uint32(load.BlockTokens),
		MaxSequences:           uint32(load.MaxSequences),
		MaxBatchTokens:         uint32(load.MaxBatchTokens),
		PrefillTokensPerSecond: load.PrefillTokensPerSecond,
		DecodeTokensPerSecond:  load.DecodeTokensPerSecond,
		Draining:               s.host.Requests.Closing(),
	}, nil
}

// Drain refuses new requests from now on, and returns once those that run have ended.
func (s *service) Drain(ctx context.Context, q *pb.DrainRequest) (*pb.DrainResponse, error) {
	if seconds := q.GetTimeoutSeconds(); seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	s.server.Leave()
	s.host.Requests.Close()
	s.host.Requests.Wait(ctx)
	return &pb.DrainResponse{Running: uint32(s.host.Requests.Running())}, nil
}
