package vllm

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func start(t testing.TB, role cleave.Role, change ...func(*core.Config)) *testkit.Worker {
	return testkit.Start(t, role, func(server *rpc.Server, host *core.Host) { Register(server, host, nil) }, change...)
}

// request is as Dynamo's sidecar sends it.
func request(t testing.TB, question string, tokens uint32) *pb.GenerateRequest {
	return &pb.GenerateRequest{
		RequestId:   t.Name(),
		Prompt:      &pb.GenerateRequest_TokenIds{TokenIds: &pb.TokenIds{Ids: testkit.Unsigned(testkit.Tokens(t, question))}},
		Temperature: proto.Float32(1),
		Sampling:    &pb.RandomSampling{NumSequences: 1, TopK: proto.Uint32(0), MinP: proto.Float32(0), Seed: proto.Int64(7)},
		Decoding:    &pb.DecodingParameters{},
		Stopping:    &pb.StoppingCriteria{MaxNewTokens: tokens, StopTokenIds: []uint32{1, 2}},
		Response:    &pb.ResponseOptions{OutputText: proto.Bool(true), OutputTokenIds: true},
		Kv:          &pb.KVCacheParameters{},
	}
}

// endless is a request that a test ends.
func endless(t testing.TB) *pb.GenerateRequest {
	q := request(t, "the old farmer", 0)
	q.Stopping.IgnoreEos, q.Stopping.StopTokenIds = true, nil
	return q
}

// prefillRequest is the request that Dynamo's sidecar sends to a prefill worker.
func prefillRequest(q *pb.GenerateRequest) *pb.GenerateRequest {
	p := proto.Clone(q).(*pb.GenerateRequest)
	p.Stopping.MaxNewTokens, p.Stopping.MinNewTokens = 1, 1
	p.Kv.KvTransferParams = &structpb.Struct{Fields: map[string]*structpb.Value{"do_remote_decode": structpb.NewBoolValue(true)}}
	return p
}

// alone is the library's request of the same meaning.
func alone(t testing.TB, q *pb.GenerateRequest) cleave.Request {
	r := cleave.Request{Temperature: q.GetTemperature(), Seed: uint64(q.Sampling.GetSeed()), MaxNewTokens: int(q.Stopping.MaxNewTokens),
		MinNewTokens: int(q.Stopping.MinNewTokens), IgnoreEOS: q.Stopping.IgnoreEos, Logprobs: q.Response.OutputLogprobs}
	r.RepetitionPenalty, r.PresencePenalty = q.Decoding.RepetitionPenalty, q.Decoding.PresencePenalty
	for id, bias := range q.Decoding.LogitBias {
		r.LogitBias = map[int32]float32{int32(id): bias}
	}
	for _, id := range q.GetTokenIds().GetIds() {
		r.Prompt = append(r.Prompt, int32(id))
	}
	return r
}

// answered is a whole answer.
type answered struct {
	text      string
	tokens    []uint32
	logprobs  []float32
	responses []*pb.GenerateResponse
	finish    *pb.FinishInfo
}

// read reads a stream to its end and checks what holds for every stream.
func read(t testing.TB, stream grpc.ServerStreamingClient[pb.GenerateResponse]) (a answered, err error) {
	t.Helper()
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			break
		} else if err != nil {
			return a, err
		}
		if (r.PromptInfo != nil) != (len(a.responses) == 0) {
			t.Error("prompt info belongs into the first message and no other")
		}
		if a.finish != nil {
			t.Error("a message after the end")
		}
		o := r.Outputs
		if int(o.NumTokens) != len(o.TokenIds) || !utf8.ValidString(o.Text) {
			t.Errorf("%d tokens counted: %v", o.NumTokens, o)
		}
		a.text += o.Text
		a.tokens = append(a.tokens, o.TokenIds...)
		a.logprobs = append(a.logprobs, o.Logprobs...)
		a.responses = append(a.responses, r)
		a.finish = o.FinishInfo
	}
	if a.finish == nil {
		t.Fatal("a stream without an end")
	}
	if int(a.finish.NumOutputTokens) != len(a.tokens) {
		t.Errorf("%d tokens reported, %d streamed", a.finish.NumOutputTokens, len(a.tokens))
	}
	return a, nil
}

func open(t testing.TB, ctx context.Context, w *testkit.Worker, q *pb.GenerateRequest) grpc.ServerStreamingClient[pb.GenerateResponse] {
	t.Helper()
	stream, err := pb.NewInferenceClient(w).GenerateStream(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func ask(t testing.TB, w *testkit.Worker, q *pb.GenerateRequest) (answered, error) {
	t.Helper()
	return read(t, open(t, testkit.Context(t), w, q))
}

func must(t testing.TB) func(answered, error) answered {
	return func(a answered, err error) answered {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
}

// disaggregated sends a request first to a prefill worker, then to a decode worker, as a router does.
func disaggregated(t testing.TB, prefill, decode *testkit.Worker, q *pb.GenerateRequest) (answered, error) {
	t.Helper()
	a, err := ask(t, prefill, prefillRequest(q))
	if err != nil {
		return a, err
	}
	if len(a.responses) != 1 || a.finish.FinishReason != pb.FinishInfo_LENGTH || a.finish.KvTransferParams == nil {
		t.Fatalf("not the answer of a prefill worker: %v", a.responses)
	}
	q = proto.Clone(q).(*pb.GenerateRequest)
	q.Kv.KvTransferParams = a.finish.KvTransferParams
	return ask(t, decode, q)
}

func code(t testing.TB, err error, wanted codes.Code, about string) {
	t.Helper()
	if status.Code(err) != wanted || !strings.Contains(err.Error(), about) {
		t.Errorf("%v: %v about %q was wanted", err, wanted, about)
	}
}

// waitFor reads until a stream has given a number of tokens.
func waitFor(t testing.TB, stream grpc.ServerStreamingClient[pb.GenerateResponse], tokens int) {
	t.Helper()
	for tokens > 0 {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		tokens -= int(r.Outputs.NumTokens)
	}
}

// rest reads a stream to its end and returns the last message.
func rest(stream grpc.ServerStreamingClient[pb.GenerateResponse]) (last *pb.GenerateResponse, err error) {
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return last, nil
		} else if err != nil {
			return last, err
		}
		last = r
	}
}

func TestBootstrap(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	ctx := testkit.Context(t)
	for _, service := range []string{"", "vllm.Control", "vllm.Inference"} {
		r, err := grpc_health_v1.NewHealthClient(w).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Error(service, r, err)
		}
	}
	control := pb.NewControlClient(w)
	model, err := control.GetModelInfo(ctx, &pb.GetModelInfoRequest{})
	if err != nil || !model.SupportsTokenIdsInput || model.ServedModelName != "tiny" || !strings.HasPrefix(model.ModelId, "/") {
		t.Error(model, err)
	}
	one, err := control.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
	if err != nil || one.ApiVersion != "vllm" || one.Parallelism.DataParallelSize != 1 || one.MaxModelLen == 0 || one.TotalKvBlocks == 0 || one.KvBlockSize == 0 {
		t.Error(one, err)
	}
	if two, err := control.GetServerInfo(ctx, &pb.GetServerInfoRequest{}); err != nil || !proto.Equal(one, two) {
		t.Error("another answer the second time", two, err)
	}
	if _, err := control.GetKvEventSources(ctx, &pb.GetKvEventSourcesRequest{}); err != nil {
		t.Error(err)
	}
	_, err = control.Sleep(ctx, &pb.SleepRequest{})
	code(t, err, codes.Unimplemented, "")
}

// Whatever way a request takes, its tokens, text and logprobs are those of the library alone.
func TestEqualToTheLibrary(t *testing.T) {
	mixed, prefill, decode := start(t, cleave.RoleMixed), start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	for name, change := range map[string]func(*pb.GenerateRequest){
		"greedy":    func(q *pb.GenerateRequest) { q.Temperature = proto.Float32(0) },
		"sampled":   func(q *pb.GenerateRequest) { q.Response.OutputLogprobs = true },
		"longer":    func(q *pb.GenerateRequest) { q.Stopping.MinNewTokens, q.Stopping.MaxNewTokens = 20, 30 },
		"one token": func(q *pb.GenerateRequest) { q.Stopping.MaxNewTokens = 1 },
		"salted":    func(q *pb.GenerateRequest) { q.Kv.CacheSalt = "tenant" },
		"uncached":  func(q *pb.GenerateRequest) { q.Kv.BypassPrefixCache = true },
		"urgent":    func(q *pb.GenerateRequest) { q.Priority = -5 },
		"penalised": func(q *pb.GenerateRequest) {
			q.Decoding = &pb.DecodingParameters{RepetitionPenalty: 1.3, PresencePenalty: 0.5, LogitBias: map[uint32]float32{300: 2}}
		},
		"ignoring EOS": func(q *pb.GenerateRequest) { q.Stopping.IgnoreEos, q.Stopping.StopTokenIds = true, nil },
	} {
		for _, question := range []string{"what does the red box hold?", "where does anna live?", "the old farmer"} {
			q := request(t, question, 40)
			change(q)
			events, text := testkit.Alone(t, alone(t, q))
			check := func(way string, a answered, err error) {
				if err != nil {
					t.Fatal(name, way, err)
				}
				same := a.text == text && len(a.tokens) == len(events)
				for i := 0; same && i < len(events); i++ {
					same = a.tokens[i] == uint32(events[i].Token) && (!q.Response.OutputLogprobs || a.logprobs[i] == events[i].Logprob)
				}
				if !same {
					t.Errorf("%s, %s, %s: %q %v %v, and alone %q", name, way, question, a.text, a.tokens, a.logprobs, text)
				}
			}
			a, err := ask(t, mixed, q)
			check("mixed", a, err)
			a, err = disaggregated(t, prefill, decode, q)
			check("disaggregated", a, err)
			a, err = ask(t, decode, q)
			check("a decode worker without a ticket", a, err)
			a, err = ask(t, prefill, q)
			check("a prefill worker", a, err)
		}
	}
	whole, err := pb.NewInferenceClient(mixed).Generate(testkit.Context(t), request(t, "where does anna live?", 40))
	if _, text := testkit.Alone(t, alone(t, request(t, "where does anna live?", 40))); err != nil || whole.Outputs.Text != text || whole.Outputs.FinishInfo == nil {
		t.Error(whole, err)
	}
	prefill.HoldsNothing(t)
}

func TestLogprobs(t *testing.T) {
	mixed, prefill, decode := start(t, cleave.RoleMixed), start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	q := request(t, "the old farmer", 8)
	q.Response.OutputCandidates = &pb.CandidateTokens{Select: &pb.CandidateTokens_TopN{TopN: 3}}
	r := alone(t, q)
	r.TopLogprobs = 100
	events, _ := testkit.Alone(t, r)
	check := func(a answered, err error) {
		t.Helper()
		at := 0
		for _, r := range must(t)(a, err).responses {
			o := r.Outputs
			if len(o.Logprobs) != len(o.TokenIds) || len(o.Ranks) != len(o.TokenIds) || len(o.CandidateTokens) != len(o.TokenIds) {
				t.Fatalf("arrays of different lengths: %v", o)
			}
			for i := range o.TokenIds {
				top := events[at].Top
				rank := slices.IndexFunc(top, func(l cleave.TokenLogprob) bool { return l.Token == events[at].Token }) + 1
				if rank <= 20 && int(o.Ranks[i]) != rank {
					t.Errorf("token %d: rank %d instead of %d", at, o.Ranks[i], rank)
				}
				var wanted []*pb.CandidateTokenInfo_TokenInfo
				for j, l := range top[:3] {
					if l.Token != events[at].Token {
						wanted = append(wanted, &pb.CandidateTokenInfo_TokenInfo{Id: uint32(l.Token), Logprob: l.Logprob, Rank: uint32(j + 1)})
					}
				}
				if !proto.Equal(o.CandidateTokens[i], &pb.CandidateTokenInfo{Tokens: wanted}) {
					t.Errorf("token %d: %v instead of %v", at, o.CandidateTokens[i], wanted)
				}
				at++
			}
		}
		if at != len(events) {
			t.Errorf("%d tokens, %d alone", at, len(events))
		}
	}
	check(ask(t, mixed, q))
	check(disaggregated(t, prefill, decode, q))
}

func TestStopStrings(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	q := request(t, "the old farmer", 40)
	_, text := testkit.Alone(t, alone(t, q))
	words := strings.Fields(text)
	if len(words) < 8 {
		t.Fatal(text)
	}
	stop := words[4] + " " + words[5][:1] // over several tokens
	cut, _, _ := strings.Cut(text, stop)
	q.Stopping.StopStrings = []string{"never there", stop}
	a := must(t)(ask(t, w, q))
	if a.text != cut || a.finish.FinishReason != pb.FinishInfo_STOP || a.finish.GetStopString() != stop {
		t.Errorf("%q %v: %q and %q were wanted", a.text, a.finish, cut, stop)
	}
	q.Stopping.IncludeStopStrings = true
	if a := must(t)(ask(t, w, q)); a.text != cut+stop {
		t.Errorf("%q: %q was wanted", a.text, cut+stop)
	}
	q.Stopping.IncludeStopStrings = false

	// An answer that ends without the stop string sends the text that was held back.
	q.Stopping.StopStrings = []string{text[len(text)-3:] + "!"}
	if a := must(t)(ask(t, w, q)); a.text != text {
		t.Errorf("%q: %q was wanted", a.text, text)
	}
	// Tokens whose text is held back are held back too: a stream that goes on elsewhere lacks nothing.
	q.Stopping.StopStrings = []string{words[2] + " " + words[3] + "!"}
	sofar, m := "", func() *cleave.Model { m, _ := testkit.Model(t); return m }()
	var tokens []int32
	for _, r := range must(t)(ask(t, w, q)).responses {
		for _, id := range r.Outputs.TokenIds {
			tokens = append(tokens, int32(id))
		}
		sofar += r.Outputs.Text
		if text, err := m.Detokenize(tokens); err != nil || text != sofar {
			t.Errorf("the text is %q when the tokens are %q", sofar, text)
		}
	}
	q.Stopping.StopStrings = nil

	// Stop tokens are among the tokens, but not in the text.
	third := must(t)(ask(t, w, q)).tokens[2]
	q.Stopping.StopTokenIds = append(q.Stopping.StopTokenIds, third)
	a = must(t)(ask(t, w, q))
	first := slices.Index(a.tokens, third)
	if first != len(a.tokens)-1 || a.finish.FinishReason != pb.FinishInfo_STOP || a.finish.GetStopTokenId() != third || !strings.HasPrefix(text, a.text) {
		t.Errorf("%v %q %v", a.tokens, a.text, a.finish)
	}
}

// A character that is split over tokens goes out whole, also where another engine has begun with it.
func TestCharactersOfSeveralTokens(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	m, _ := testkit.Model(t)
	const text = "é漢字🙂"
	tokens, err := m.TokenizeNoSpecial(text)
	if err != nil || len(tokens) < len(text) {
		t.Fatal("the tokenizer has tokens for these characters", tokens, err)
	}
	for from := range tokens { // each token is forced, after those before it
		q := request(t, "", uint32(len(tokens)-from))
		prompt := q.GetTokenIds()
		prompt.Ids = append(prompt.Ids, testkit.Unsigned(tokens[:from])...)
		head, err := m.Detokenize(tokens[:from])
		if err != nil {
			t.Fatal(err)
		}
		head = strings.TrimRight(head, "\uFFFD")
		sent := ""
		for at := from; at < len(tokens); at++ {
			q.Stopping.MaxNewTokens = 1
			q.Decoding.LogitBias = map[uint32]float32{uint32(tokens[at]): 1000}
			r := must(t)(ask(t, w, q)) // one engine for each token: all of them continue
			if at < len(tokens)-1 {
				sent += strings.TrimRight(r.text, "\uFFFD") // the engine believes that the text ends
			} else {
				sent += r.text
			}
			prompt.Ids = append(prompt.Ids, uint32(tokens[at]))
		}
		if head+sent != text {
			t.Errorf("from token %d: %q and %q", from, head, sent)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	for about, change := range map[string]func(*pb.GenerateRequest){
		"num_sequences":         func(q *pb.GenerateRequest) { q.Sampling.NumSequences = 2 },
		"allowed_token_ids":     func(q *pb.GenerateRequest) { q.Decoding.AllowedTokenIds = []uint32{1} },
		"structured_output":     func(q *pb.GenerateRequest) { q.Decoding.StructuredOutput = &pb.DecodingParameters_Regex{Regex: "a"} },
		"bad_words_token_ids":   func(q *pb.GenerateRequest) { q.Decoding.BadWordsTokenIds = []*pb.TokenIds{{Ids: []uint32{1}}} },
		"thinking_token_budget": func(q *pb.GenerateRequest) { q.Stopping.ThinkingTokenBudget = proto.Int64(0) },
		"prompt_logprobs":       func(q *pb.GenerateRequest) { q.Response.PromptLogprobs = true },
		"skip_special_tokens":   func(q *pb.GenerateRequest) { q.Response.SkipSpecialTokens = proto.Bool(false) },
		"output_candidates": func(q *pb.GenerateRequest) {
			q.Response.OutputCandidates = &pb.CandidateTokens{Select: &pb.CandidateTokens_All{All: true}}
		},
		"ec_transfer_params":           func(q *pb.GenerateRequest) { q.Kv.EcTransferParams = &structpb.Struct{} },
		"kv_hints":                     func(q *pb.GenerateRequest) { q.KvHints = &pb.KVHintsEnvelope{Actions: []*pb.KVHintAction{{}}} },
		"media":                        func(q *pb.GenerateRequest) { q.Media = []*pb.MediaItem{{}} },
		"lora_name":                    func(q *pb.GenerateRequest) { q.LoraName = "x" },
		"prompt: it is empty":          func(q *pb.GenerateRequest) { q.Prompt = nil },
		"prompt: 1":                    func(q *pb.GenerateRequest) { q.GetTokenIds().Ids = make([]uint32, 1<<14) },
		"token_ids: the model has no":  func(q *pb.GenerateRequest) { q.GetTokenIds().Ids = []uint32{1 << 31} },
		"stop_token_ids":               func(q *pb.GenerateRequest) { q.Stopping.StopTokenIds = []uint32{768} },
		"logit_bias: the model has no": func(q *pb.GenerateRequest) { q.Decoding.LogitBias = map[uint32]float32{768: 1} },
		"stop_strings":                 func(q *pb.GenerateRequest) { q.Stopping.StopStrings = []string{""} },
		"top_p":                        func(q *pb.GenerateRequest) { q.Sampling.TopP = proto.Float32(2) },
		"min_new_tokens":               func(q *pb.GenerateRequest) { q.Stopping.MinNewTokens = 50 },
		"cleave_ticket is not base64":  func(q *pb.GenerateRequest) { q.Kv.KvTransferParams = params(t, map[string]any{"cleave_ticket": "?"}) },
		"sampling: field number 99":    func(q *pb.GenerateRequest) { q.Sampling.ProtoReflect().SetUnknown([]byte{0x98, 6, 1}) },
	} {
		q := request(t, "", 40)
		change(q)
		_, err := ask(t, w, q)
		code(t, err, codes.InvalidArgument, about)
	}
	q := request(t, "", 40)
	q.Model = "another"
	_, err := ask(t, w, q)
	code(t, err, codes.NotFound, "another")
	ctx := metadata.AppendToOutgoingContext(testkit.Context(t), "x-data-parallel-rank", "1")
	_, err = read(t, open(t, ctx, w, request(t, "", 1)))
	code(t, err, codes.InvalidArgument, "x-data-parallel-rank")
}

func params(t testing.TB, values map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(values)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCancelAndAbort(t *testing.T) {
	prefill, decode := start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	for _, w := range []*testkit.Worker{decode, prefill} {
		ctx, cancel := context.WithCancel(testkit.Context(t))
		stream := open(t, ctx, w, endless(t))
		waitFor(t, stream, 3)
		cancel()
		_, err := rest(stream)
		code(t, err, codes.Canceled, "")
		w.HoldsNothing(t)

		stream = open(t, testkit.Context(t), w, endless(t))
		waitFor(t, stream, 3)
		if _, err := pb.NewControlClient(w).Abort(testkit.Context(t), &pb.AbortRequest{RequestIds: []string{"unknown", t.Name()}}); err != nil {
			t.Error(err)
		}
		last, err := rest(stream)
		if err != nil {
			t.Fatal(err)
		}
		if last.GetOutputs().GetFinishInfo().GetFinishReason() != pb.FinishInfo_ABORTED {
			t.Error(last)
		}
		w.HoldsNothing(t)
	}
	// A client that left during prefill: the decode request still comes, and takes the KV although nobody listens.
	a := must(t)(ask(t, prefill, prefillRequest(endless(t))))
	q := endless(t)
	q.Kv.KvTransferParams = a.finish.KvTransferParams
	ctx, cancel := context.WithCancel(testkit.Context(t))
	stream := open(t, ctx, decode, q)
	waitFor(t, stream, 1)
	cancel()
	prefill.HoldsNothing(t)
	decode.HoldsNothing(t)
}

func TestLostTickets(t *testing.T) {
	decode := start(t, cleave.RoleDecode)
	prefill := start(t, cleave.RolePrefill, func(c *core.Config) { c.Lease = 50 * time.Millisecond })
	a := must(t)(ask(t, prefill, prefillRequest(request(t, "", 9))))
	prefill.HoldsNothing(t) // the lease is over
	q := request(t, "", 9)
	q.Kv.KvTransferParams = a.finish.KvTransferParams
	_, err := ask(t, decode, q)
	code(t, err, codes.Unavailable, "lost")

	q.Kv.KvTransferParams = params(t, map[string]any{"cleave_ticket": "AAAA"})
	_, err = ask(t, decode, q)
	code(t, err, codes.Unavailable, "lost")

	// A ticket serves once.
	prefill = start(t, cleave.RolePrefill)
	a = must(t)(ask(t, prefill, prefillRequest(request(t, "", 9))))
	q.Kv.KvTransferParams = a.finish.KvTransferParams
	must(t)(ask(t, decode, q))
	_, err = ask(t, decode, q)
	code(t, err, codes.Unavailable, "lost")

	// A ticket of another prompt.
	a = must(t)(ask(t, prefill, prefillRequest(request(t, "", 9))))
	q = request(t, "another", 9)
	q.Kv.KvTransferParams = a.finish.KvTransferParams
	_, err = ask(t, decode, q)
	code(t, err, codes.InvalidArgument, "another prompt")
}

func TestDrain(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	short, long := open(t, testkit.Context(t), w, request(t, "the old farmer", 30)), open(t, testkit.Context(t), w, endless(t))
	waitFor(t, short, 1)
	waitFor(t, long, 1)
	w.Server.Leave()
	r, err := grpc_health_v1.NewHealthClient(w).Check(testkit.Context(t), &grpc_health_v1.HealthCheckRequest{Service: "vllm.Inference"})
	if err != nil || r.Status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Error(r, err)
	}
	ctx, end := context.WithCancel(testkit.Context(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		rpc.Drain(ctx, w.Host)
	}()
	testkit.Eventually(t, "refusal", func() (bool, any) { return w.Host.Requests.Closing(), nil })
	_, err = ask(t, w, request(t, "", 1))
	code(t, err, codes.Unavailable, "shutting down")
	if _, err := rest(short); err != nil {
		t.Fatal("a running request did not end by itself:", err)
	}
	end() // the time for draining is over
	_, err = rest(long)
	code(t, err, codes.Unavailable, "shutting down")
	<-done
}

// A change of role does not end a stream.
func TestStreamsSurviveRoles(t *testing.T) {
	w := start(t, cleave.RolePrefill)
	q := request(t, "the old farmer", 300)
	q.Stopping.IgnoreEos, q.Stopping.StopTokenIds = true, nil
	_, text := testkit.Alone(t, alone(t, q))
	stream := open(t, testkit.Context(t), w, q)
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	got := r.Outputs.Text
	for _, role := range []cleave.Role{cleave.RoleDecode, cleave.RolePrefill, cleave.RoleMixed} {
		if err := w.Host.Engine.SetRole(role); err != nil {
			t.Fatal(err)
		}
		if r, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		got += r.Outputs.Text
	}
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got += r.Outputs.Text
	}
	if got != text {
		t.Errorf("%q, and alone %q", got, text)
	}
}
