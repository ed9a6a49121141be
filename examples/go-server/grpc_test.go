package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	pb "cleave/examples/go-server/internal/pb/vllm"
	workerpb "cleave/examples/go-server/internal/pb/worker"
	"cleave/examples/go-server/internal/testkit"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
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

// post sends a request over HTTP.
func (p *process) post(t *testing.T, path, body string) (code int, text string) {
	t.Helper()
	r, err := http.Post(p.web+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	answer, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(answer)
}

// Two processes, with KV through shared memory.
func TestProcesses(t *testing.T) {
	prefill, decode := startProcess(t, "--role", "prefill"), startProcess(t, "--role", "decode", "--isolate")
	q := testkit.Unstoppable(t, 50)
	_, wanted := testkit.Alone(t, testkit.Same(q))
	for range 3 {
		params := testkit.Answered(t, prefill, testkit.RemoteDecode(q)).Finish.KvTransferParams
		if a := testkit.Answered(t, decode, testkit.WithKV(q, params)); a.Text != wanted {
			t.Errorf("%q, and alone %q", a.Text, wanted)
		}
	}
	// A lost prefill worker is another worker's chance, not this client's fault.
	params := testkit.Answered(t, prefill, testkit.RemoteDecode(q)).Finish.KvTransferParams
	prefill.Process.Kill()
	prefill.Wait()
	if _, err := testkit.Ask(t, decode, testkit.WithKV(q, params)); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

// A crash of the engine ends streams with UNAVAILABLE, and the next engine serves at the same addresses.
func TestCrash(t *testing.T) {
	p := startProcess(t, "--isolate")
	q := testkit.Unstoppable(t, 50)
	_, wanted := testkit.Alone(t, testkit.Same(q))
	for range 2 {
		engine := p.engine(t)
		testkit.Eventually(t, "service", func() (bool, any) { return p.serving(t), nil })
		if a := testkit.Answered(t, p, q); a.Text != wanted {
			t.Errorf("%q, and alone %q", a.Text, wanted)
		}
		long := testkit.Unstoppable(t, 0)
		var streams []testkit.Stream
		for range 3 {
			streams = append(streams, testkit.Open(t, testkit.Context(t), p, long))
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

// Requests over HTTP are among those that a drain waits for and refuses, and the health over gRPC says so, whichever
// process answers.
func TestDrain(t *testing.T) {
	for _, arguments := range [][]string{nil, {"--isolate"}} {
		p := startProcess(t, arguments...)
		ctx, leave := context.WithCancel(testkit.Context(t))
		q, err := http.NewRequestWithContext(ctx, "POST", p.web+"/v1/completions",
			strings.NewReader(`{"prompt": "the old farmer", "max_tokens": 16000, "ignore_eos": true, "logprobs": 5, "stream": true}`))
		if err != nil {
			t.Fatal(err)
		}
		running, err := http.DefaultClient.Do(q) // megabytes that nobody reads, so it cannot end by itself
		if err != nil || running.StatusCode != 200 {
			t.Fatal(running, err)
		}
		worker := workerpb.NewWorkerClient(p)
		if r, err := worker.Drain(testkit.Context(t), &workerpb.DrainRequest{TimeoutSeconds: 1}); err != nil || r.Running != 1 {
			t.Error(arguments, r, err)
		}
		if code, text := p.post(t, "/v1/completions", `{"prompt": "the old farmer", "max_tokens": 1}`); code != 503 || !strings.Contains(text, "shutting down") {
			t.Error(arguments, code, text)
		}
		testkit.Eventually(t, "bad health", func() (bool, any) { return !p.serving(t), nil })
		leave()
		running.Body.Close()
		if r, err := worker.Drain(testkit.Context(t), &workerpb.DrainRequest{}); err != nil || r.Running != 0 {
			t.Error(arguments, r, err)
		}
	}
}

// A front that takes its time to let a worker go does not keep the worker from telling gRPC's clients.
func TestTerminationWithAFront(t *testing.T) {
	leaving := make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/workers/leave" {
			close(leaving)
			io.Copy(io.Discard, r.Body) // from now on the end of the connection is noticed
			<-r.Context().Done()
			return
		}
		io.WriteString(w, `{"workers": []}`)
	}))
	t.Cleanup(front.Close)
	p := startProcess(t, "--role", "decode", "--front", front.URL, "--drain", "600")
	if _, err := testkit.Open(t, testkit.Context(t), p, testkit.Unstoppable(t, 0)).Recv(); err != nil {
		t.Fatal(err)
	}
	p.Process.Signal(syscall.SIGTERM)
	<-leaving
	testkit.Eventually(t, "bad health", func() (bool, any) { return !p.serving(t), nil })
}

// A prefill worker does not know that its token must not end the generation: min_tokens of the decode request counts.
func TestMinTokensOverHTTP(t *testing.T) {
	prefill, decode := startProcess(t, "--role", "prefill"), startProcess(t, "--role", "decode")
	const body = `"prompt": "the old farmer", "temperature": 0, "logit_bias": {"1": 100, "2": 100}, "logprobs": 1`
	code, text := prefill.post(t, "/v1/completions", `{`+body+`, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true}}`)
	var prefilled struct {
		KV json.RawMessage `json:"kv_transfer_params"`
	}
	if err := json.Unmarshal([]byte(text), &prefilled); err != nil || code != 200 {
		t.Fatal(code, text)
	}
	const limits = `, "max_tokens": 9, "min_tokens": 5`
	choices := func(params string) (parsed struct{ Choices []map[string]any }) {
		code, text := decode.post(t, "/v1/completions", `{`+body+limits+params+`}`)
		if err := json.Unmarshal([]byte(text), &parsed); err != nil || code != 200 {
			t.Fatal(code, text)
		}
		return parsed
	}
	alone := choices("")
	if handedOver := choices(`, "kv_transfer_params": ` + string(prefilled.KV)); !reflect.DeepEqual(handedOver, alone) {
		t.Errorf("%v, and alone %v", handedOver, alone)
	}
}

// On SIGTERM a stream may end by itself. The rest is told that another worker should go on.
func TestTermination(t *testing.T) {
	for _, arguments := range [][]string{{"--drain", "0"}, {"--drain", "0", "--isolate"}, {"--drain", "600"}, {"--drain", "600", "--isolate"}} {
		p := startProcess(t, arguments...)
		tokens := uint32(0)
		if arguments[1] != "0" {
			tokens = 100
		}
		q := testkit.Unstoppable(t, tokens)
		stream := testkit.Open(t, testkit.Context(t), p, q)
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
			if _, wanted := testkit.Alone(t, testkit.Same(q)); text != wanted || err != io.EOF {
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

// The role is switched over HTTP too, and with it what requests over HTTP get.
func TestRoleOverHTTP(t *testing.T) {
	for _, first := range []string{"prefill", "mixed"} {
		t.Run(first, func(t *testing.T) { roleOverHTTP(t, startProcess(t, "--role", first)) })
	}
}

func roleOverHTTP(t *testing.T, p *process) {
	if code, text := p.post(t, "/role", `{"role": "both"}`); code != 400 {
		t.Error(code, text)
	}
	for _, role := range []string{"decode", "mixed", "prefill", "decode"} {
		var state struct {
			Role     string
			InFlight map[string]int `json:"in_flight"`
		}
		if code, text := p.post(t, "/role", `{"role": "`+role+`"}`); code != 200 || json.Unmarshal([]byte(text), &state) != nil || state.Role != role || len(state.InFlight) != 4 {
			t.Error(code, text)
		}
		answer, params := `"text":`, ""
		if role == "prefill" {
			answer, params = `"ticket":`, `, "kv_transfer_params": {"do_remote_decode": true}`
		}
		if code, text := p.post(t, "/v1/completions", `{"prompt": "the old farmer", "max_tokens": 3`+params+`}`); code != 200 || !strings.Contains(text, answer) {
			t.Error(role, code, text)
		}
	}
	q := testkit.Unstoppable(t, 20)
	if _, wanted := testkit.Alone(t, testkit.Same(q)); wanted == "" {
		t.Error("nothing to compare with")
	} else if a := testkit.Answered(t, p, q); a.Text != wanted {
		t.Errorf("%q, and alone %q", a.Text, wanted)
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
