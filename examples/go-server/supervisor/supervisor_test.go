package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	pb "cleave/examples/go-server/internal/pb/worker"
)

// asSidecar makes this program behave like Dynamo's sidecar: "healthy", "silent" (it never becomes healthy) or "broken" (it
// ends at once).
const asSidecar = "CLEAVE_TEST_SIDECAR"

func TestMain(m *testing.M) {
	switch os.Getenv(asSidecar) {
	case "healthy":
		panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("DYN_SYSTEM_PORT"), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	case "silent":
		select {}
	case "broken":
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// engine answers a supervisor as an engine does.
type engine struct {
	pb.UnimplementedWorkerServer
	mu   sync.Mutex
	role pb.Role
}

func (e *engine) GetLoad(context.Context, *pb.GetLoadRequest) (*pb.Load, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return &pb.Load{Role: e.role}, nil
}

func (e *engine) SetRole(_ context.Context, r *pb.SetRoleRequest) (*pb.RoleState, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.role = r.Role
	return &pb.RoleState{Role: e.role}, nil
}

func serve(t *testing.T, as role) (endpoint string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterWorkerServer(server, &engine{role: toProto[as]})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// nobody returns an address at which nothing answers.
func nobody(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// planner is an etcd in which a planner has published a decision. It notes the answer.
type planner struct {
	mu              sync.Mutex
	prefill, decode int
	id, scaled      int
}

func (p *planner) start(t *testing.T) targets {
	t.Helper()
	mux := http.NewServeMux()
	type kv struct{ Key, Value []byte }
	prefix := targets{namespace: "dynamo"}.prefix()
	mux.HandleFunc("/v3/kv/range", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		var kvs []kv
		for name, n := range map[string]int{"num_prefill_workers": p.prefill, "num_decode_workers": p.decode, "decision_id": p.id, "scaled_decision_id": p.scaled} {
			kvs = append(kvs, kv{[]byte(prefix + name), []byte(strconv.Itoa(n))})
		}
		json.NewEncoder(w).Encode(map[string]any{"kvs": kvs})
	})
	mux.HandleFunc("/v3/kv/put", func(_ http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		var put kv
		if err := json.NewDecoder(r.Body).Decode(&put); err != nil || string(put.Key) != prefix+"scaled_decision_id" {
			t.Error(string(put.Key), err)
		}
		p.scaled, _ = strconv.Atoi(string(put.Value))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return targets{server.URL, "dynamo"}
}

// launch returns a launcher of sidecars of a kind.
func launch(t *testing.T, kind string) *launcher {
	t.Helper()
	t.Setenv(asSidecar, kind)
	return &launcher{command: []string{os.Args[0]}, firstPort: 20000 + os.Getpid()%10000, timeout: time.Minute}
}

// newFleet returns a fleet under a planner, whose sidecars are killed when the test ends.
func newFleet(t *testing.T, p *planner, l *launcher, endpoints ...string) *fleet {
	t.Helper()
	f := &fleet{targets: p.start(t)}
	for _, endpoint := range endpoints {
		w, err := newWorker(endpoint, l)
		if err != nil {
			t.Fatal(err)
		}
		f.workers = append(f.workers, w)
	}
	t.Cleanup(func() {
		for _, w := range f.workers {
			if w.sidecar != nil {
				w.sidecar.cmd.Process.Kill()
			}
		}
		l.ended.Wait()
	})
	return f
}

func (f *fleet) roles() (roles []role) {
	for _, w := range f.workers {
		if w.sidecar == nil {
			roles = append(roles, idle)
		} else {
			roles = append(roles, w.sidecar.role)
		}
	}
	return roles
}

func TestADecisionIsAnsweredWithoutAnEngineThatItDoesNotNeed(t *testing.T) {
	p := &planner{prefill: 1, decode: 1, id: 1}
	f := newFleet(t, p, launch(t, "healthy"), serve(t, decode), serve(t, decode), nobody(t))
	f.workers[2].heard = time.Now().Add(-2 * goneAfter)
	if err := f.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.roles(); p.scaled != 1 || !slices.Equal(got, []role{decode, prefill, idle}) {
		t.Errorf("answered %d, %v", p.scaled, got)
	}
	// It is not answered if it needs the engine that is gone.
	p.decode, p.id = 2, 2
	if err := f.step(t.Context()); err == nil || p.scaled != 1 {
		t.Error(err, p.scaled)
	}
}

// An engine that has just been there comes back soon: nobody takes its role, and the decision waits for it.
func TestADecisionWaitsForAnEngineThatRestarts(t *testing.T) {
	p := &planner{prefill: 1, decode: 1, id: 1}
	f := newFleet(t, p, launch(t, "healthy"), serve(t, prefill), nobody(t))
	f.workers[1].state.role = decode
	if err := f.step(t.Context()); err == nil || p.scaled != 0 {
		t.Error(err, p.scaled)
	}
	if got := f.roles(); !slices.Equal(got, []role{prefill, idle}) {
		t.Error(got)
	}
}

// A worker whose engine is gone gets no more requests, and serves again when the engine is back.
func TestTheSidecarOfAnEngineThatIsGoneEnds(t *testing.T) {
	p := &planner{prefill: 1, decode: 1, id: 1}
	f := newFleet(t, p, launch(t, "healthy"), serve(t, prefill), serve(t, decode))
	if err := f.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := f.workers[1]
	before, control := w.sidecar, w.control
	elsewhere, err := newWorker(nobody(t), w.launcher)
	if err != nil {
		t.Fatal(err)
	}
	w.control = elsewhere.control
	if f.step(t.Context()); w.sidecar != before {
		t.Error("an engine that may restart loses its sidecar")
	}
	w.heard = time.Now().Add(-2 * goneAfter)
	if f.step(t.Context()); w.sidecar != nil {
		t.Error("Dynamo still sends requests to an engine that is gone")
	}
	<-before.done
	w.control = control
	if err := f.step(t.Context()); err != nil || w.sidecar == nil || w.sidecar.role != decode {
		t.Error(err, w.sidecar)
	}
}

// The planner writes its numbers one by one, and then the id.
func TestHalfADecisionIsNotCarriedOut(t *testing.T) {
	p := &planner{prefill: 1, decode: -1, id: -1, scaled: -1}
	f := newFleet(t, p, launch(t, "healthy"), serve(t, decode), serve(t, decode))
	for _, now := range []struct {
		prefill, decode, id int
		want                []role
	}{
		{1, -1, -1, []role{decode, decode}}, {1, 1, -1, []role{decode, decode}}, {1, 1, 0, []role{decode, prefill}},
		{0, 1, 0, []role{decode, prefill}}, {0, 2, 0, []role{decode, prefill}}, {0, 2, 1, []role{decode, decode}},
	} {
		p.mu.Lock()
		p.prefill, p.decode, p.id = now.prefill, now.decode, now.id
		p.mu.Unlock()
		if err := f.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := f.roles(); !slices.Equal(got, now.want) || p.scaled != now.id {
			t.Errorf("%v: %v, answered %d", now, got, p.scaled)
		}
	}
}

func TestIdleEnginesStayIdleWhenTheSupervisorRestarts(t *testing.T) {
	p := &planner{prefill: 1, decode: 1, id: 5, scaled: 5}
	f := newFleet(t, p, launch(t, "healthy"), serve(t, prefill), serve(t, decode), serve(t, decode))
	url := f.targets.etcd
	f.targets.etcd = "http://" + nobody(t)
	if err := f.step(t.Context()); err == nil || !slices.Equal(f.roles(), []role{idle, idle, idle}) {
		t.Errorf("before etcd answers: %v, %v", f.roles(), err)
	}
	f.targets.etcd = url
	for range 2 {
		if err := f.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := f.roles(); !slices.Equal(got, []role{prefill, decode, idle}) {
			t.Error(got)
		}
	}
}

func TestASidecarThatHangsHoldsUpNobodyForLong(t *testing.T) {
	l := launch(t, "silent")
	l.timeout = 200 * time.Millisecond
	p := &planner{prefill: 1, id: 1}
	f := newFleet(t, p, l, serve(t, prefill))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.step(ctx); err == nil || ctx.Err() != nil || p.scaled != 0 {
		t.Error(err, ctx.Err(), p.scaled)
	}
}

func TestAfterAFailedStartComesAPause(t *testing.T) {
	l := launch(t, "broken")
	f := newFleet(t, &planner{prefill: 1, id: 1}, l, serve(t, prefill))
	w := f.workers[0]
	for _, pause := range []time.Duration{firstPause, 2 * firstPause, 4 * firstPause} {
		w.next = time.Time{} // the pause is over
		for i := range 3 {
			starts := l.starts
			if err := f.step(t.Context()); err == nil {
				t.Fatal("the sidecar ended at once")
			}
			if started := l.starts != starts; started != (i == 0) {
				t.Errorf("step %d after the pause: started %v", i, started)
			}
			w.next = time.Now().Add(time.Hour) // on a slow machine it would be over
		}
		if w.pause != pause {
			t.Errorf("a pause of %v: %v was expected", w.pause, pause)
		}
	}
}

func TestPortsComeFromAWindow(t *testing.T) {
	l := launch(t, "broken")
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", l.firstPort))
	if err == nil { // else somebody else has it
		defer taken.Close()
	}
	seen := make(map[int]bool)
	for range 2 * portWindow {
		port, err := l.port()
		if err != nil || port <= l.firstPort || port >= l.firstPort+portWindow {
			t.Fatal(port, err)
		}
		seen[port] = true
	}
	if len(seen) < portWindow/2 {
		t.Errorf("only %d ports are used", len(seen))
	}
}
