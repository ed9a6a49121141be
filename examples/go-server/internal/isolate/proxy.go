package isolate

import (
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that this one falls back to
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// settle is how long an error waits for the news that the child has died, if it may have been caused by that.
const settle = time.Second

// proxy passes calls of any service on to the child.
type proxy struct {
	mu      sync.Mutex
	backend *backend // nil while there is none
}

// backend is a child that serves.
type backend struct {
	*grpc.ClientConn
	dead chan struct{} // closed when the child has ended
}

func (p *proxy) set(b *backend) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backend = b
}

func (p *proxy) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(codec{}), grpc.UnknownServiceHandler(p.handle)}
}

var errNoEngine = status.Error(codes.Unavailable, "the engine's process is not there; it is being started again")

func (p *proxy) handle(_ any, server grpc.ServerStream) error {
	p.mu.Lock()
	backend := p.backend
	p.mu.Unlock()
	method, named := grpc.MethodFromServerStream(server)
	if backend == nil || !named {
		return errNoEngine
	}
	ctx := server.Context()
	if given, there := metadata.FromIncomingContext(ctx); there {
		ctx = metadata.NewOutgoingContext(ctx, given.Copy())
	}
	client, err := backend.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodecV2(codec{}))
	if err == nil {
		go forwardRequests(server, client)
		err = forwardAnswers(server, client)
	}
	if err != nil && ctx.Err() == nil {
		err = backend.explain(err)
	}
	return err
}

// forwardRequests ends with the stream, because then reading from it fails.
func forwardRequests(server grpc.ServerStream, client grpc.ClientStream) {
	for {
		var message frame
		if err := server.RecvMsg(&message); err != nil {
			client.CloseSend()
			return
		}
		if client.SendMsg(&message) != nil {
			return // the answer says why
		}
	}
}

// forwardAnswers sends the header with the first message: a router may still ask another worker before that.
func forwardAnswers(server grpc.ServerStream, client grpc.ClientStream) error {
	for first := true; ; first = false {
		var message frame
		err := client.RecvMsg(&message)
		if first && err == nil {
			header, failed := client.Header()
			if failed == nil {
				failed = server.SetHeader(header)
			}
			err = failed
		}
		if err != nil {
			server.SetTrailer(client.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := server.SendMsg(&message); err != nil {
			return err
		}
	}
}

// explain turns the traces that the child's death leaves in a stream into UNAVAILABLE.
func (b *backend) explain(err error) error {
	switch status.Code(err) {
	case codes.Internal, codes.Unknown, codes.Canceled:
	default:
		return err
	}
	select {
	case <-b.dead:
		return status.Error(codes.Unavailable, "the engine's process has ended")
	case <-time.After(settle):
		return err
	}
}

// frame is a message that is not decoded.
type frame struct{ data []byte }

// codec passes frames as they are. The proxy's own services, such as health, have messages as usual.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, raw := v.(*frame); raw {
		return mem.BufferSlice{mem.SliceBuffer(f.data)}, nil
	}
	return encoding.GetCodecV2("proto").Marshal(v)
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, raw := v.(*frame); raw {
		f.data = data.Materialize()
		return nil
	}
	return encoding.GetCodecV2("proto").Unmarshal(data, v)
}
