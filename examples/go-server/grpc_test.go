package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	cleave "cleave/go"

	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/testkit"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// TestMain runs the tests, or the server for tests of whole processes.
func TestMain(m *testing.M) {
	if os.Getenv("CLEAVE_TEST_SERVER") != "" {
		main()
		return
	}
	testkit.Main(m)
}

// process is a server in a process of its own.
type process struct {
	*exec.Cmd
	*grpc.ClientConn
	web   string
	lines chan string // of stderr
}

func startProcess(t *testing.T, arguments ...string) *process {
	t.Helper()
	_, dir := testkit.Model(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, testkit.Secret, 0o600); err != nil {
		t.Fatal(err)
	}
	arguments = append([]string{"--model", dir, "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--secret-file", secret,
		"--kv-mib", "16", "--threads", "1"}, arguments...)
	p := &process{Cmd: exec.Command(os.Args[0], arguments...), lines: make(chan string, 1000)}
	p.Env = append(os.Environ(), "CLEAVE_TEST_SERVER=1")
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.lines <- lines.Text()
		}
		close(p.lines)
	}()
	lines := bufio.NewScanner(stdout)
	address := ""
	for lines.Scan() {
		if at, there := strings.CutPrefix(lines.Text(), "gRPC at "); there {
			address = at
		}
		if at, there := strings.CutPrefix(lines.Text(), "listening on "); there {
			p.web = at
			break
		}
	}
	if p.ClientConn, err = grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil || p.web == "" {
		t.Fatal(err, p.web)
	}
	return p
}

// engine returns the id of the process that was last said to run the engine.
func (p *process) engine(t *testing.T) (pid int) {
	t.Helper()
	for line := range p.lines {
		if _, after, there := strings.Cut(line, "the engine runs as process "); there {
			if _, err := fmt.Sscan(after, &pid); err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no engine")
	return 0
}

func (p *process) serving(t *testing.T) bool {
	t.Helper()
	r, err := grpc_health_v1.NewHealthClient(p).Check(testkit.Context(t), &grpc_health_v1.HealthCheckRequest{Service: "vllm.Inference"})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status == grpc_health_v1.HealthCheckResponse_SERVING
}

func (p *process) stream(t *testing.T, q *pb.GenerateRequest) grpc.ServerStreamingClient[pb.GenerateResponse] {
	t.Helper()
	stream, err := pb.NewInferenceClient(p).GenerateStream(testkit.Context(t), q)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func (p *process) ask(t *testing.T, q *pb.GenerateRequest) (text string, finish *pb.FinishInfo) {
	t.Helper()
	for stream := p.stream(t, q); ; {
		r, err := stream.Recv()
		if err == io.EOF {
			return text, finish
		} else if err != nil {
			t.Fatal(err)
		}
		text += r.Outputs.Text
		finish = r.Outputs.FinishInfo
	}
}

func question(t *testing.T, tokens int) (*pb.GenerateRequest, cleave.Request) {
	prompt := testkit.Tokens(t, "the old farmer")
	return &pb.GenerateRequest{
		RequestId: t.Name(),
		Prompt:    &pb.GenerateRequest_TokenIds{TokenIds: &pb.TokenIds{Ids: testkit.Unsigned(prompt)}},
		Stopping:  &pb.StoppingCriteria{MaxNewTokens: uint32(tokens), IgnoreEos: true},
		Response:  &pb.ResponseOptions{OutputTokenIds: true},
	}, cleave.Request{Prompt: prompt, MaxNewTokens: tokens, IgnoreEOS: true}
}

func with(q *pb.GenerateRequest, params *structpb.Struct) *pb.GenerateRequest {
	q = proto.Clone(q).(*pb.GenerateRequest)
	q.Kv = &pb.KVCacheParameters{KvTransferParams: params}
	return q
}

var remoteDecode = &structpb.Struct{Fields: map[string]*structpb.Value{"do_remote_decode": structpb.NewBoolValue(true)}}

// Two processes, with KV through shared memory.
func TestProcesses(t *testing.T) {
	prefill, decode := startProcess(t, "--role", "prefill"), startProcess(t, "--role", "decode", "--isolate")
	q, alone := question(t, 50)
	_, wanted := testkit.Alone(t, alone)
	for range 3 {
		_, finish := prefill.ask(t, with(q, remoteDecode))
		if text, _ := decode.ask(t, with(q, finish.KvTransferParams)); text != wanted {
			t.Errorf("%q, and alone %q", text, wanted)
		}
	}
	// A lost prefill worker is another worker's chance, not this client's fault.
	_, finish := prefill.ask(t, with(q, remoteDecode))
	prefill.Process.Kill()
	prefill.Wait()
	_, err := decode.stream(t, with(q, finish.KvTransferParams)).Recv()
	if status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

// A crash of the engine ends streams with UNAVAILABLE, and the next engine serves at the same addresses.
func TestCrash(t *testing.T) {
	p := startProcess(t, "--isolate")
	q, alone := question(t, 50)
	_, wanted := testkit.Alone(t, alone)
	for range 2 {
		engine := p.engine(t)
		testkit.Eventually(t, "service", func() (bool, any) { return p.serving(t), nil })
		if text, _ := p.ask(t, q); text != wanted {
			t.Errorf("%q, and alone %q", text, wanted)
		}
		long, _ := question(t, 0)
		var streams []grpc.ServerStreamingClient[pb.GenerateResponse]
		for range 3 {
			streams = append(streams, p.stream(t, long))
		}
		for _, stream := range streams {
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Kill(engine, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for _, stream := range streams {
			var err error
			for err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
		}
	}
	testkit.Eventually(t, "service", func() (bool, any) { return p.serving(t), nil })
	if r, err := http.Get(p.web + "/health"); err != nil || r.StatusCode != 200 {
		t.Error(r, err)
	}
	// The parent's end is the engine's end.
	engine := p.engine(t)
	p.Process.Kill()
	p.Wait()
	testkit.Eventually(t, "end of the engine", func() (bool, any) { return syscall.Kill(engine, 0) != nil, nil })
}

// On SIGTERM a stream may end by itself. The rest is told that another worker should go on.
func TestTermination(t *testing.T) {
	for _, arguments := range [][]string{{"--drain", "0"}, {"--drain", "0", "--isolate"}, {"--drain", "600"}, {"--drain", "600", "--isolate"}} {
		p := startProcess(t, arguments...)
		tokens := 0
		if arguments[1] != "0" {
			tokens = 100
		}
		q, alone := question(t, tokens)
		stream := p.stream(t, q)
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		p.Process.Signal(syscall.SIGTERM)
		text := r.Outputs.Text
		for err == nil {
			if r, err = stream.Recv(); err == nil {
				text += r.Outputs.Text
			}
		}
		if tokens == 0 && status.Code(err) != codes.Unavailable {
			t.Error(arguments, err)
		}
		if tokens > 0 {
			if _, wanted := testkit.Alone(t, alone); text != wanted || err != io.EOF {
				t.Errorf("%v: %q %v", arguments, text, err)
			}
		}
		if err := p.Wait(); err != nil {
			t.Error(arguments, err)
		}
		if _, err := pb.NewInferenceClient(p).Generate(context.Background(), q); status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
	}
}

// The role is switched over HTTP too.
func TestRoleOverHTTP(t *testing.T) {
	p := startProcess(t, "--role", "prefill")
	post := func(body string) (int, string) {
		t.Helper()
		r, err := http.Post(p.web+"/role", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(text)
	}
	if code, text := post(`{"role": "both"}`); code != 400 {
		t.Error(code, text)
	}
	for _, role := range []string{"decode", "mixed", "prefill", "decode"} {
		var state struct {
			Role     string
			InFlight map[string]int `json:"in_flight"`
		}
		if code, text := post(`{"role": "` + role + `"}`); code != 200 || json.Unmarshal([]byte(text), &state) != nil || state.Role != role || len(state.InFlight) != 4 {
			t.Error(code, text)
		}
	}
	q, alone := question(t, 20)
	if _, wanted := testkit.Alone(t, alone); wanted == "" {
		t.Error("nothing to compare with")
	} else if text, _ := p.ask(t, q); text != wanted {
		t.Errorf("%q, and alone %q", text, wanted)
	}
	health, err := http.Get(p.web + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer health.Body.Close()
	if text, err := io.ReadAll(health.Body); err != nil || !strings.Contains(string(text), `"role":"decode"`) {
		t.Error(string(text), err)
	}
}

// A child that cannot start is an ordinary failure to start.
func TestIsolatedStartFails(t *testing.T) {
	p := exec.Command(os.Args[0], "--model", "/nowhere", "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--isolate")
	p.Env = append(os.Environ(), "CLEAVE_TEST_SERVER=1")
	output, err := p.CombinedOutput()
	if p.ProcessState.ExitCode() != 1 || !strings.Contains(string(output), "/nowhere") {
		t.Errorf("%v: %s", err, output)
	}
}
