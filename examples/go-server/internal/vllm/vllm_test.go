package vllm

import (
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"

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

// disaggregated sends a request first to a prefill worker, then to a decode worker, as a router does.
func disaggregated(t testing.TB, prefill, decode *testkit.Worker, q *pb.GenerateRequest) (testkit.Answer, error) {
	t.Helper()
	a, err := testkit.Ask(t, prefill, testkit.RemoteDecode(q))
	if err != nil {
		return a, err
	}
	if len(a.Responses) != 1 || a.Finish.FinishReason != pb.FinishInfo_LENGTH || a.Finish.KvTransferParams == nil {
		t.Fatalf("not the answer of a prefill worker: %v", a.Responses)
	}
	return testkit.Ask(t, decode, testkit.WithKV(q, a.Finish.KvTransferParams))
}

func code(t testing.TB, err error, wanted codes.Code, about string) {
	t.Helper()
	if status.Code(err) != wanted || !strings.Contains(err.Error(), about) {
		t.Errorf("%v: %v about %q was wanted", err, wanted, about)
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
			q := testkit.Request(t, question, 40)
			change(q)
			events, text := testkit.Alone(t, testkit.Same(q))
			check := func(way string, a testkit.Answer, err error) {
				if err != nil {
					t.Fatal(name, way, err)
				}
				same := a.Text == text && len(a.Tokens) == len(events)
				for i := 0; same && i < len(events); i++ {
					same = a.Tokens[i] == uint32(events[i].Token) && (!q.Response.OutputLogprobs || a.Logprobs[i] == events[i].Logprob)
				}
				if !same {
					t.Errorf("%s, %s, %s: %q %v %v, and alone %q", name, way, question, a.Text, a.Tokens, a.Logprobs, text)
				}
			}
			a, err := testkit.Ask(t, mixed, q)
			check("mixed", a, err)
			a, err = disaggregated(t, prefill, decode, q)
			check("disaggregated", a, err)
			a, err = testkit.Ask(t, decode, q)
			check("a decode worker without a ticket", a, err)
			a, err = testkit.Ask(t, prefill, q)
			check("a prefill worker", a, err)
		}
	}
	whole, err := pb.NewInferenceClient(mixed).Generate(testkit.Context(t), testkit.Request(t, "where does anna live?", 40))
	if _, text := testkit.Alone(t, testkit.Same(testkit.Request(t, "where does anna live?", 40))); err != nil || whole.Outputs.Text != text || whole.Outputs.FinishInfo == nil {
		t.Error(whole, err)
	}
	prefill.HoldsNothing(t)
}

func TestLogprobs(t *testing.T) {
	mixed, prefill, decode := start(t, cleave.RoleMixed), start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	q := testkit.Request(t, "the old farmer", 8)
	q.Response.OutputCandidates = &pb.CandidateTokens{Select: &pb.CandidateTokens_TopN{TopN: 3}}
	r := testkit.Same(q)
	r.TopLogprobs = 100
	events, _ := testkit.Alone(t, r)
	check := func(a testkit.Answer, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, r := range a.Responses {
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
	check(testkit.Ask(t, mixed, q))
	check(disaggregated(t, prefill, decode, q))
}

func TestStopStrings(t *testing.T) {
	for name, role := range core.Roles {
		t.Run(name, func(t *testing.T) { stopStrings(t, start(t, role)) })
	}
}

func stopStrings(t *testing.T, w *testkit.Worker) {
	// Without the garbage collector, which releases handles that nobody has.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	q := testkit.Request(t, "the old farmer", 40)
	_, text := testkit.Alone(t, testkit.Same(q))
	words := strings.Fields(text)
	if len(words) < 8 {
		t.Fatal(text)
	}
	stop := words[4] + " " + words[5][:1] // over several tokens
	cut, _, _ := strings.Cut(text, stop)
	q.Stopping.StopStrings = []string{"never there", stop}
	a := testkit.Answered(t, w, q)
	if a.Text != cut || a.Finish.FinishReason != pb.FinishInfo_STOP || a.Finish.GetStopString() != stop {
		t.Errorf("%q %v: %q and %q were wanted", a.Text, a.Finish, cut, stop)
	}
	if w.Host.Role() == "prefill" { // where each token is a request of its own, and none may follow the stop string
		testkit.Eventually(t, "end at the stop string", func() (bool, any) {
			metrics, err := w.Host.Engine.Metrics()
			return err == nil && metrics.GeneratedTokens == uint64(len(a.Tokens)), metrics.GeneratedTokens
		})
	}
	q.Stopping.IncludeStopStrings = true
	if a := testkit.Answered(t, w, q); a.Text != cut+stop {
		t.Errorf("%q: %q was wanted", a.Text, cut+stop)
	}
	q.Stopping.IncludeStopStrings = false

	// An answer that ends without the stop string sends the text that was held back.
	q.Stopping.StopStrings = []string{text[len(text)-3:] + "!"}
	if a := testkit.Answered(t, w, q); a.Text != text {
		t.Errorf("%q: %q was wanted", a.Text, text)
	}
	// Tokens whose text is held back are held back too: a stream that goes on elsewhere lacks nothing.
	q.Stopping.StopStrings = []string{words[2] + " " + words[3] + "!"}
	sofar, m := "", func() *cleave.Model { m, _ := testkit.Model(t); return m }()
	var tokens []int32
	for _, r := range testkit.Answered(t, w, q).Responses {
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
	third := testkit.Answered(t, w, q).Tokens[2]
	q.Stopping.StopTokenIds = append(q.Stopping.StopTokenIds, third)
	a = testkit.Answered(t, w, q)
	first := slices.Index(a.Tokens, third)
	if first != len(a.Tokens)-1 || a.Finish.FinishReason != pb.FinishInfo_STOP || a.Finish.GetStopTokenId() != third || !strings.HasPrefix(text, a.Text) {
		t.Errorf("%v %q %v", a.Tokens, a.Text, a.Finish)
	}
	// A stop token goes out with the text that was held back before it.
	q.Stopping.StopStrings = []string{a.Text[len(a.Text)-1:] + "!"}
	sofar = ""
	for _, r := range testkit.Answered(t, w, q).Responses {
		if sofar += r.Outputs.Text; slices.Contains(r.Outputs.TokenIds, third) && sofar != a.Text {
			t.Errorf("the text is %q with the stop token, and in the end %q", sofar, a.Text)
		}
	}
	w.HoldsNothing(t)
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
		q := testkit.Request(t, "", uint32(len(tokens)-from))
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
			r := testkit.Answered(t, w, q) // one engine for each token: all of them continue
			if at < len(tokens)-1 {
				sent += strings.TrimRight(r.Text, "\uFFFD") // the engine believes that the text ends
			} else {
				sent += r.Text
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
		"ec_transfer_params":            func(q *pb.GenerateRequest) { q.Kv.EcTransferParams = &structpb.Struct{} },
		"kv_hints":                      func(q *pb.GenerateRequest) { q.KvHints = &pb.KVHintsEnvelope{Actions: []*pb.KVHintAction{{}}} },
		"media":                         func(q *pb.GenerateRequest) { q.Media = []*pb.MediaItem{{}} },
		"lora_name":                     func(q *pb.GenerateRequest) { q.LoraName = "x" },
		"prompt: it is empty":           func(q *pb.GenerateRequest) { q.Prompt = nil },
		"prompt: 1":                     func(q *pb.GenerateRequest) { q.GetTokenIds().Ids = make([]uint32, 1<<14) },
		"token_ids: the model has no":   func(q *pb.GenerateRequest) { q.GetTokenIds().Ids = []uint32{1 << 31} },
		"stop_token_ids":                func(q *pb.GenerateRequest) { q.Stopping.StopTokenIds = []uint32{768} },
		"logit_bias: the model has no":  func(q *pb.GenerateRequest) { q.Decoding.LogitBias = map[uint32]float32{768: 1} },
		"stop_strings":                  func(q *pb.GenerateRequest) { q.Stopping.StopStrings = []string{""} },
		"top_p":                         func(q *pb.GenerateRequest) { q.Sampling.TopP = proto.Float32(2) },
		"min_new_tokens":                func(q *pb.GenerateRequest) { q.Stopping.MinNewTokens = 50 },
		"cleave_ticket is not base64":   func(q *pb.GenerateRequest) { q.Kv.KvTransferParams = params(t, map[string]any{"cleave_ticket": "?"}) },
		"cleave_ticket is not a string": func(q *pb.GenerateRequest) { q.Kv.KvTransferParams = params(t, map[string]any{"cleave_ticket": 7}) },
		"do_remote_prefill without": func(q *pb.GenerateRequest) {
			q.Kv.KvTransferParams = params(t, map[string]any{"do_remote_prefill": true, "remote_engine_id": "x"})
		},
		"sampling: field number 99": func(q *pb.GenerateRequest) { q.Sampling.ProtoReflect().SetUnknown([]byte{0x98, 6, 1}) },
	} {
		q := testkit.Request(t, "", 40)
		change(q)
		_, err := testkit.Ask(t, w, q)
		code(t, err, codes.InvalidArgument, about)
	}
	q := testkit.Request(t, "", 40)
	q.Model = "another"
	_, err := testkit.Ask(t, w, q)
	code(t, err, codes.NotFound, "another")
	ctx := metadata.AppendToOutgoingContext(testkit.Context(t), "x-data-parallel-rank", "1")
	_, err = testkit.Read(t, testkit.Open(t, ctx, w, testkit.Request(t, "", 1)))
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
