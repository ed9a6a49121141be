package openengine

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/kvevents"
	pb "cleave/examples/go-server/internal/pb/openengine"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func start(t *testing.T, role cleave.Role) *testkit.Worker {
	return testkit.Start(t, role, func(server *rpc.Server, host *core.Host) {
		events, err := kvevents.Start(host.Cache, "127.0.0.1:0", "", host.Salts.Text)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(events.Close)
		Register(server, host, events)
	}, func(c *core.Config) { c.CacheEvents = kvevents.Events })
}

// question is as Dynamo's sidecar sends it.
func question(t *testing.T, text string, tokens int) (*pb.GenerateRequest, cleave.Request) {
	prompt := testkit.Tokens(t, text)
	return &pb.GenerateRequest{
		RequestId: t.Name(),
		Model:     "tiny",
		Input:     &pb.GenerateRequest_TokenIds{TokenIds: &pb.TokenIds{Ids: testkit.Unsigned(prompt)}},
		Sampling:  &pb.SamplingParams{Temperature: proto.Float64(0.5), Seed: proto.Uint64(9), NumSequences: proto.Uint32(1)},
		Stopping:  &pb.StoppingOptions{MaxTokens: proto.Uint32(uint32(tokens)), Conditions: []*pb.StopCondition{{Condition: &pb.StopCondition_StopTokenId{StopTokenId: 1}}}},
		Response:  &pb.ResponseOptions{ReturnOutputLogprobs: proto.Bool(true), OutputCandidates: &pb.CandidateTokenSelection{Selection: &pb.CandidateTokenSelection_TopN{TopN: 2}}},
		Extra:     &structpb.Struct{},
	}, cleave.Request{Prompt: prompt, MaxNewTokens: tokens, Temperature: 0.5, Seed: 9, TopLogprobs: 2}
}

// read returns the tokens, the text and the last message of an answer.
func read(t *testing.T, w *testkit.Worker, q *pb.GenerateRequest) (tokens []*pb.TokenInfo, text string, last *pb.GenerateResponse, err error) {
	t.Helper()
	stream, err := pb.NewInferenceClient(w).Generate(testkit.Context(t), q)
	if err != nil {
		t.Fatal(err)
	}
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return tokens, text, last, nil
		} else if err != nil {
			return nil, "", nil, err
		}
		if last.GetUsage() != nil || r.RequestId != q.RequestId {
			t.Errorf("after the last message: %v", r)
		}
		if o := r.GetToken(); o != nil {
			if o.OutputIndex == nil {
				t.Error("no output index")
			}
			tokens, text = append(tokens, o.Tokens...), text+o.Text
		}
		last = r
	}
}

func TestEqualToTheLibrary(t *testing.T) {
	mixed, prefill, decode := start(t, cleave.RoleMixed), start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	for _, about := range []string{"what does the red box hold?", "the old farmer"} {
		q, alone := question(t, about, 30)
		events, wanted := testkit.Alone(t, alone)
		check := func(w *testkit.Worker, q *pb.GenerateRequest) {
			t.Helper()
			tokens, text, last, err := read(t, w, q)
			if err != nil {
				t.Fatal(err)
			}
			if text != wanted || len(tokens) != len(events) || last.GetFinished() == nil || int(last.Usage.CompletionTokens) != len(events) {
				t.Fatalf("%q %v: %q alone", text, last, wanted)
			}
			for i, token := range tokens {
				if token.TokenId != uint32(events[i].Token) || *token.Logprob != float64(events[i].Logprob) || len(token.Candidates) != 2 ||
					token.Candidates[1].TokenId != uint32(events[i].Top[1].Token) {
					t.Errorf("%d: %v, and alone %+v", i, token, events[i])
				}
			}
		}
		check(mixed, q)
		p := proto.Clone(q).(*pb.GenerateRequest)
		p.Stopping.MaxTokens = proto.Uint32(1)
		p.Extra.Fields = map[string]*structpb.Value{"request_type": structpb.NewStringValue("context_only")}
		tokens, _, last, err := read(t, prefill, p)
		if err != nil || len(tokens) > 0 || last.GetPrefillReady().GetKvSession().GetAttributesStruct() == nil {
			t.Fatal(tokens, last, err)
		}
		q.Kv = &pb.KvOptions{Session: last.GetPrefillReady().KvSession}
		check(decode, q)

		// A session that is aborted holds nothing, and cannot be continued.
		if _, _, last, err = read(t, prefill, p); err != nil {
			t.Fatal(err)
		}
		session := last.GetPrefillReady().KvSession
		control := pb.NewControlClient(prefill)
		for _, wanted := range []pb.AbortStatus{pb.AbortStatus_ABORT_STATUS_ABORTED, pb.AbortStatus_ABORT_STATUS_ALREADY_FINISHED} {
			a, err := control.Abort(testkit.Context(t), &pb.AbortRequest{Target: &pb.AbortRequest_KvSession{KvSession: session}})
			if err != nil || a.Status != wanted {
				t.Error(a, err)
			}
		}
		prefill.HoldsNothing(t)
		q.Kv.Session = session
		if _, _, _, err := read(t, decode, q); status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
	}
}

func TestStopTextAndAbort(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	q, alone := question(t, "the old farmer", 30)
	_, text := testkit.Alone(t, alone)
	stop := strings.Fields(text)[3]
	q.Stopping.Conditions = append(q.Stopping.Conditions, &pb.StopCondition{Condition: &pb.StopCondition_StopText{StopText: stop}})
	cut, _, _ := strings.Cut(text, stop)
	if _, got, last, err := read(t, w, q); err != nil || got != cut || last.GetFinished().GetStopMatch().GetStopText() != stop {
		t.Errorf("%q %v %v: %q was wanted", got, last, err, cut)
	}
	q, _ = question(t, "the old farmer", 10000)
	q.Stopping.Conditions, q.Stopping.IgnoreEos = nil, proto.Bool(true)
	stream, err := pb.NewInferenceClient(w).Generate(testkit.Context(t), q)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	control := pb.NewControlClient(w)
	load, err := control.GetLoad(testkit.Context(t), &pb.GetLoadRequest{})
	if err != nil || load.GetRunningRequests() != 1 {
		t.Error(load, err)
	}
	a, err := control.Abort(testkit.Context(t), &pb.AbortRequest{Target: &pb.AbortRequest_RequestId{RequestId: t.Name()}})
	if err != nil || a.Status != pb.AbortStatus_ABORT_STATUS_ABORTED {
		t.Error(a, err)
	}
	var last *pb.GenerateResponse
	for r, err := stream.Recv(); err != io.EOF; r, err = stream.Recv() {
		if err != nil {
			t.Fatal(err)
		}
		last = r
	}
	if last.GetFinished().GetReason() != pb.FinishReason_FINISH_REASON_CANCELLED {
		t.Error(last)
	}
}

func TestDiscovery(t *testing.T) {
	w := start(t, cleave.RolePrefill)
	ctx := testkit.Context(t)
	control := pb.NewControlClient(w)
	model, err := control.GetModelInfo(ctx, &pb.GetModelInfoRequest{})
	if err != nil || model.GetMaxContextLength() == 0 || model.ServedModelName != "tiny" {
		t.Error(model, err)
	}
	server, err := control.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
	if err != nil || server.EngineRole != pb.EngineRole_ENGINE_ROLE_PREFILL || server.SchemaRevision != 1 || !server.KvConnector.GetEnabled() {
		t.Error(server, err)
	}
	health, err := control.Health(ctx, &pb.HealthRequest{})
	if err != nil || health.State != pb.HealthState_HEALTH_STATE_READY {
		t.Error(health, err)
	}
	ended, end := context.WithCancel(ctx)
	end()
	rpc.Drain(ended, w.Host)
	if health, err = control.Health(ctx, &pb.HealthRequest{}); err != nil || health.State != pb.HealthState_HEALTH_STATE_NOT_READY {
		t.Error(health, err)
	}
}

func TestRefusals(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	for about, change := range map[string]func(*pb.GenerateRequest){
		"num_sequences":          func(q *pb.GenerateRequest) { q.Sampling.NumSequences = proto.Uint32(2) },
		"top_k":                  func(q *pb.GenerateRequest) { q.Sampling.TopK = proto.Int32(-2) },
		"max_tokens 0":           func(q *pb.GenerateRequest) { q.Stopping.MaxTokens = proto.Uint32(0) },
		"return_prompt_logprobs": func(q *pb.GenerateRequest) { q.Response.ReturnPromptLogprobs = proto.Bool(true) },
		"output_candidates":      func(q *pb.GenerateRequest) { q.Response.OutputCandidates = &pb.CandidateTokenSelection{} },
		"guided": func(q *pb.GenerateRequest) {
			q.Guided = &pb.GuidedDecoding{Guide: &pb.GuidedDecoding_Regex{Regex: "a"}}
		},
		"lora_name":                             func(q *pb.GenerateRequest) { q.LoraName = "x" },
		"media":                                 func(q *pb.GenerateRequest) { q.Media = []*pb.MediaItem{{}} },
		"kv.session":                            func(q *pb.GenerateRequest) { q.Kv = &pb.KvOptions{Session: &pb.KvSessionRef{TransferBackend: "nixl"}} },
		"prompt: it is empty":                   func(q *pb.GenerateRequest) { q.Input = nil },
		"token_ids: the model":                  func(q *pb.GenerateRequest) { q.GetTokenIds().Ids = []uint32{768} },
		"stopping: field number 99":             func(q *pb.GenerateRequest) { q.Stopping.ProtoReflect().SetUnknown([]byte{0x98, 6, 1}) },
		"stopping.conditions: each must have a": func(q *pb.GenerateRequest) { q.Stopping.Conditions = []*pb.StopCondition{{}} },
		"stopping.conditions: each must have 1 to": func(q *pb.GenerateRequest) {
			q.Stopping.Conditions[0] = &pb.StopCondition{Condition: &pb.StopCondition_StopText{}}
		},
	} {
		q, _ := question(t, "", 3)
		change(q)
		if _, _, _, err := read(t, w, q); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), about) {
			t.Errorf("%s: %v", about, err)
		}
	}
}

func TestKVEvents(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	control := pb.NewControlClient(w)
	sources, err := control.GetKvEventSources(testkit.Context(t), &pb.GetKvEventSourcesRequest{})
	if err != nil || len(sources.Sources) != 1 || sources.Sources[0].EndpointAddr.Port == 0 {
		t.Error(sources, err)
	}
	q, alone := question(t, "what does the red box hold?", 1)
	if _, _, _, err := read(t, w, q); err != nil {
		t.Fatal(err)
	}
	stream, err := control.SubscribeKvEvents(testkit.Context(t), &pb.SubscribeKvEventsRequest{IncludeSnapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil || len(r.GetBatch().GetEvents()) != 2 || r.GetBatch().Events[0].GetAllBlocksCleared() == nil {
		t.Fatal(r, err)
	}
	stored := r.GetBatch().Events[1].GetBlockStored()
	whole := len(alone.Prompt) / core.BlockTokens * core.BlockTokens
	if !slices.Equal(stored.GetTokenIds(), testkit.Unsigned(alone.Prompt[:whole])) || stored.ParentBlockHash != nil {
		t.Error(stored)
	}
	q, _ = question(t, "what does the red box hold? what does the blue jar hold? what does the red box hold? what does the blue jar hold?", 1)
	if _, _, _, err := read(t, w, q); err != nil {
		t.Fatal(err)
	}
	r, err = stream.Recv()
	if err != nil || len(r.GetBatch().GetEvents()) != 1 || r.GetBatch().SequenceNumber != 2 {
		t.Fatal(r, err)
	}
	parent := r.GetBatch().Events[0].GetBlockStored().GetParentBlockHash()
	if !proto.Equal(parent, stored.BlockHashes[len(stored.BlockHashes)-1]) {
		t.Error(parent, stored)
	}
}
