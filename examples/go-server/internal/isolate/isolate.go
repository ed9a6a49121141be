// Package isolate runs a gRPC server in a child process behind a proxy. Routers move streams to another worker that end
// with UNAVAILABLE, but not those whose connection breaks; so the process that owns the connections must not be the one
// that may crash. The proxy knows nothing of the services that it passes on.
package isolate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"cleave/examples/go-server/internal/rpc"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	// variable is set in the environment of the child.
	variable = "CLEAVE_SERVER_ISOLATED"

	firstPause  = 100 * time.Millisecond // before the child is started again
	longest     = 10 * time.Second       // such pause, after several
	longEnough  = time.Minute            // that a child served well
	killedAfter = 10 * time.Second       // beyond the time for draining
)

// Child returns the listeners for HTTP and gRPC that the parent has passed on, or nil in a process that is not a child.
func Child() (web, grpc net.Listener, err error) {
	if os.Getenv(variable) == "" {
		return nil, nil, nil
	}
	if web, err = net.FileListener(os.NewFile(3, "web")); err != nil {
		return nil, nil, err
	}
	grpc, err = net.FileListener(os.NewFile(4, "grpc"))
	return web, grpc, err
}

// Options are what the parent has to know.
type Options struct {
	Web, GRPC string        // where to listen; see rpc.Listen
	Drain     time.Duration // time that the child may take at its end
	Services  []string      // names, for health
	Ready     string        // beginning of the line on the child's stdout that tells that it serves
}

// parent is the process that owns the connections.
type parent struct {
	Options
	server    *rpc.Server
	web       *net.TCPListener
	directory string // of sockets
	proxy     proxy

	mu      sync.Mutex
	child   *exec.Cmd // nil between two
	closing bool
	closed  chan struct{} // closed when closing is set
}

// ExitError is the status with which the child ended before it ever served.
type ExitError int

// Error says how the child ended.
func (e ExitError) Error() string {
	return fmt.Sprintf("the engine's process ended with status %d", int(e))
}

// Run serves until ctx ends. The child runs this program with the same arguments. It is started again when it has died.
func Run(ctx context.Context, o Options) error {
	web, err := net.Listen("tcp", o.Web)
	if err != nil {
		return err
	}
	defer web.Close()
	listener, err := rpc.Listen(o.GRPC)
	if err != nil {
		return err
	}
	p := &parent{Options: o, web: web.(*net.TCPListener), closed: make(chan struct{})}
	if p.directory, err = os.MkdirTemp("", "cleave"); err != nil {
		return err
	}
	defer os.RemoveAll(p.directory)
	p.server = rpc.NewServer(p.proxy.options()...)
	p.server.Serving(false, o.Services...)
	go p.server.Serve(listener)
	fmt.Printf("gRPC at %s\n", listener.Addr())

	ended := make(chan error, 1)
	go func() { ended <- p.keepRunning() }()
	select {
	case err := <-ended:
		p.server.Stop()
		return err
	case <-ctx.Done():
	}
	p.server.Leave()
	p.signal(syscall.SIGTERM)
	kill := time.AfterFunc(o.Drain+killedAfter, func() { p.signal(syscall.SIGKILL) })
	defer kill.Stop()
	<-ended
	rest := time.AfterFunc(time.Second, p.server.Stop) // for clients that do not read
	defer rest.Stop()
	p.server.GracefulStop()
	return nil
}

// signal tells the child to end, and that no other is to follow.
func (p *parent) signal(number syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closing {
		p.closing = true
		close(p.closed)
	}
	if p.child != nil {
		p.child.Process.Signal(number)
	}
}

// keepRunning starts the child again and again. It returns when the server is to end, or when the first child fails to
// start.
func (p *parent) keepRunning() error {
	// The kernel kills the child when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	served, pause := false, firstPause
	for {
		began := time.Now()
		ready, err := p.runOnce(!served)
		served = served || ready
		p.mu.Lock()
		closing := p.closing
		p.mu.Unlock()
		if closing || !served {
			return err
		}
		if time.Since(began) > longEnough {
			pause = firstPause
		}
		log.Printf("the engine's process has ended: %v; the next one starts in %v", err, pause)
		if !p.rest(pause) {
			return err
		}
		pause = min(2*pause, longest)
	}
}

// rest waits before the next start. It returns false at once when the server is to end.
func (p *parent) rest(pause time.Duration) bool {
	select {
	case <-time.After(pause):
		return true
	case <-p.closed:
		return false
	}
}

// runOnce runs a child to its end.
func (p *parent) runOnce(announce bool) (ready bool, err error) {
	path := filepath.Join(p.directory, fmt.Sprint(time.Now().UnixNano())) // a new one: nobody may mistake one child for another
	inner, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return false, err
	}
	defer os.Remove(path)
	inner.SetUnlinkOnClose(false)
	socket, err := inner.File()
	inner.Close()
	if err != nil {
		return false, err
	}
	web, err := p.web.File()
	if err != nil {
		socket.Close()
		return false, err
	}
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), variable+"=1")
	child.Stderr = os.Stderr
	child.ExtraFiles = []*os.File{web, socket}
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	stdout, err := child.StdoutPipe()
	if err == nil {
		err = p.start(child)
	}
	web.Close()
	socket.Close() // only the child has it now: after its end nobody can connect
	if err != nil {
		return false, err
	}
	log.Printf("the engine runs as process %d", child.Process.Pid)
	connection, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(rpc.MaxMessage), grpc.MaxCallSendMsgSize(rpc.MaxMessage)))
	if err != nil {
		child.Process.Kill()
		child.Wait()
		return false, err
	}
	backend := &backend{connection, make(chan struct{})}
	watching, unwatch := context.WithCancel(context.Background())
	defer unwatch()
	var watch sync.WaitGroup
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if !ready && strings.HasPrefix(lines.Text(), p.Ready) {
			ready = true
			p.proxy.set(backend)
			p.server.Serving(true, p.Services...)
			watch.Add(1)
			go func() {
				defer watch.Done()
				p.watch(watching, connection)
			}()
		}
		if announce && !strings.HasPrefix(lines.Text(), "gRPC at ") { // not where only this process connects
			fmt.Println(lines.Text())
		}
	}
	err = child.Wait()
	p.mu.Lock()
	p.child = nil
	p.mu.Unlock()
	p.proxy.set(nil)
	unwatch()
	watch.Wait()
	p.server.Serving(false, p.Services...)
	close(backend.dead)
	connection.Close()
	var exit *exec.ExitError
	if errors.As(err, &exit) && !ready {
		err = ExitError(exit.ExitCode())
	}
	return ready, err
}

// watch passes on the health of the child, which may refuse requests while it lives. It returns when the child is gone or
// ctx ends.
func (p *parent) watch(ctx context.Context, child *grpc.ClientConn) {
	health, err := grpc_health_v1.NewHealthClient(child).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	for err == nil {
		var now *grpc_health_v1.HealthCheckResponse
		if now, err = health.Recv(); err == nil {
			p.server.Serving(now.Status == grpc_health_v1.HealthCheckResponse_SERVING, p.Services...)
		}
	}
}

func (p *parent) start(child *exec.Cmd) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return context.Canceled
	}
	err := child.Start()
	if err == nil {
		p.child = child
	}
	return err
}
