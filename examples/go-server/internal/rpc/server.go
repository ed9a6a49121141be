package rpc

import (
	"context"
	"fmt"
	"log"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"cleave/examples/go-server/internal/core"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// MaxMessage is the size of the largest message that is received: a prompt of some million tokens.
const MaxMessage = 64 << 20

// Server serves gRPC and answers for the health of its services.
type Server struct {
	*grpc.Server
	health *health.Server
}

// NewServer creates a server. Register the services, then call Serve.
func NewServer(options ...grpc.ServerOption) *Server {
	options = append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage),
		// Sidecars and proxies ask more often than gRPC's default allows.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// A client whose machine is gone does not close its connection.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.UnaryInterceptor(guardCall),
		grpc.StreamInterceptor(guardStream),
	}, options...)
	s := &Server{grpc.NewServer(options...), health.NewServer()}
	grpc_health_v1.RegisterHealthServer(s, s.health)
	return s
}

// Serving sets the health of the services and of the server as a whole.
func (s *Server) Serving(serving bool, services ...string) {
	state := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if serving {
		state = grpc_health_v1.HealthCheckResponse_SERVING
	}
	for _, service := range append(services, "") {
		s.health.SetServingStatus(service, state)
	}
}

// Services returns the names of the registered services, without those of gRPC itself.
func (s *Server) Services() (names []string) {
	for name := range s.GetServiceInfo() {
		if !strings.HasPrefix(name, "grpc.") {
			names = append(names, name)
		}
	}
	return names
}

// Leave makes the server unhealthy for good: no router may choose it any more.
func (s *Server) Leave() { s.health.Shutdown() }

// Listen listens at HOST:PORT, or at the Unix socket unix:PATH.
func Listen(address string) (net.Listener, error) {
	if path, unix := strings.CutPrefix(address, "unix:"); unix {
		return net.Listen("unix", path)
	}
	return net.Listen("tcp", address)
}

// guardCall ends a call whose handler panics like one whose engine failed: another worker may serve it.
func guardCall(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (_ any, err error) {
	defer recovered(info.FullMethod, &err)
	return handle(ctx, request)
}

func guardStream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer recovered(info.FullMethod, &err)
	return handle(service, stream)
}

func recovered(method string, err *error) {
	if fault := recover(); fault != nil {
		log.Printf("%s: %v\n%s", method, fault, debug.Stack())
		*err = status.Error(codes.Unavailable, fmt.Sprintf("%s failed: %v", method, fault))
	}
}

// Drain refuses new requests, waits until those that run have ended, at most until ctx ends, and ends the others with
// UNAVAILABLE, so that routers move them to another worker.
func Drain(ctx context.Context, host *core.Host) {
	host.Requests.Close()
	host.Requests.Wait(ctx)
	host.Requests.AbortAll(core.ErrShuttingDown)
}
