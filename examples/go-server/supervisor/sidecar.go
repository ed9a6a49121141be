package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Dynamo refuses status ports of 32768 and more.
const (
	portWindow       = 768
	highestFirstPort = 32768 - portWindow
)

// launcher starts sidecars.
type launcher struct {
	command   []string
	drain     time.Duration
	timeout   time.Duration // for a switch: see becomeTimeout
	firstPort int           // of portWindow ports for sidecars' status
	mu        sync.Mutex
	starts    int
	ended     sync.WaitGroup // of all sidecars
}

// port returns the next free port of the window. Each start takes another one, so that the status of a sidecar is not
// mistaken for that of its successor.
func (l *launcher) port() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range portWindow {
		port := l.firstPort + l.starts%portWindow
		l.starts++
		if listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			listener.Close()
			return port, nil
		}
	}
	return 0, fmt.Errorf("no port from %d to %d is free for the status of a sidecar", l.firstPort, l.firstPort+portWindow-1)
}

// sidecar is a process of Dynamo's that registers an engine in one role.
type sidecar struct {
	role   role
	status string // URL
	drain  time.Duration
	cmd    *exec.Cmd
	done   chan struct{}
}

// start returns once Dynamo knows the engine in this role.
func (l *launcher) start(ctx context.Context, endpoint string, as role) (*sidecar, error) {
	port, err := l.port()
	if err != nil {
		return nil, err
	}
	arguments := append(l.command[1:len(l.command):len(l.command)], "--grpc-endpoint", endpoint)
	switch as {
	case prefill:
		arguments = append(arguments, "--component", "prefill", "--disaggregation-mode", "prefill")
	case decode:
		arguments = append(arguments, "--disaggregation-mode", "decode")
	}
	s := &sidecar{role: as, status: fmt.Sprintf("http://127.0.0.1:%d", port), drain: l.drain, cmd: exec.Command(l.command[0], arguments...), done: make(chan struct{})}
	// A sidecar that was told to end cuts off its streams after the grace period. It ends before that: see retire.
	grace := strconv.Itoa(int(l.drain.Seconds()) + 60)
	s.cmd.Env = append(os.Environ(), "DYN_SYSTEM_HOST=127.0.0.1", fmt.Sprintf("DYN_SYSTEM_PORT=%d", port), "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS="+grace)
	s.cmd.Stdout, s.cmd.Stderr = os.Stderr, os.Stderr
	// Ctrl-C reaches the supervisor alone, which drains. If it is killed, nobody would end the sidecars of old roles.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	l.ended.Add(1)
	go func() {
		defer l.ended.Done()
		s.cmd.Wait()
		close(s.done)
	}()
	for s.running() {
		if status, _, err := s.ask("/health"); err == nil && status == http.StatusOK {
			return s, nil
		}
		select {
		case <-ctx.Done():
			s.cmd.Process.Kill()
			return nil, fmt.Errorf("its sidecar is not healthy: %w", ctx.Err())
		case <-s.done:
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil, errors.New("its sidecar ended at once")
}

func (s *sidecar) running() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// retire takes the sidecar out of Dynamo's discovery at once, and in the background waits until its streams have ended. What
// is left after the drain time is continued by the frontend at another worker, as after any death of a sidecar.
func (s *sidecar) retire() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	go func() {
		defer s.cmd.Process.Kill()
		end := time.After(s.drain)
		for quiet := 0; quiet < 5; { // requests that were on their way when it left discovery still come
			select {
			case <-s.done:
				return
			case <-end:
				return
			case <-time.After(200 * time.Millisecond):
			}
			if quiet++; s.inFlight() != 0 {
				quiet = 0
			}
		}
	}()
}

var inFlight = regexp.MustCompile(`(?m)^dynamo_component_inflight_requests\{.*\} (\d+)$`)

// inFlight returns the number of requests that the sidecar passes on, or -1 if it does not tell.
func (s *sidecar) inFlight() int {
	_, metrics, err := s.ask("/metrics")
	found := inFlight.FindStringSubmatch(metrics)
	if err != nil || found == nil {
		return -1
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

func (s *sidecar) ask(path string) (status int, body string, err error) {
	client := http.Client{Timeout: 2 * time.Second}
	response, err := client.Get(s.status + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}
