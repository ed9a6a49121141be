"""vLLM's gRPC protocol, the same for the servers of both languages and between them."""

import json

import grpc
import pytest
from grpc_client import CODES, FACTS, LANGUAGES, TIMEOUT, Worker, control_pb2, copy, disaggregated, endless, params, pb, prefill, prefilled, question, secret_file, write_model
from servers import post, wait_until

ROLES = ["mixed", "prefill", "decode"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("grpc"))


@pytest.fixture(scope="module")
def workers(model, tmp_path_factory):
    """A worker of each role and language. They can hand KV to each other."""
    secret = secret_file(tmp_path_factory.mktemp("secret"))
    running = {(language, role): Worker(language, model, "--role", role, "--secret-file", secret) for language in LANGUAGES for role in ROLES}
    yield running
    for worker in running.values():
        wait_until("a worker holds nothing", worker.holds_nothing)
        assert worker.stop() == 0
        worker.close()


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture
def mixed(workers, language):
    return workers[language, "mixed"]


def pairs():
    return [(one, other) for one in LANGUAGES for other in LANGUAGES]


@pytest.fixture(params=pairs(), ids="-".join)
def pair(request, workers):
    """A prefill and a decode worker."""
    one, other = request.param
    return workers[one, "prefill"], workers[other, "decode"]


@pytest.fixture(scope="module")
def prompt(workers):
    return workers[LANGUAGES[0], "mixed"].tokens(FACTS + "the old farmer")


@pytest.fixture(scope="module")
def reference(workers):
    """Answers of one server, by request."""
    known = {}

    def of(q):
        key = q.SerializeToString(deterministic=True)
        if key not in known:
            known[key] = workers[LANGUAGES[0], "mixed"].ask(q)
        return known[key]

    return of


def refusal(call, code, about):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code and about in caught.value.details(), caught.value


# ---- discovery ----


@pytest.mark.parametrize("role", ROLES)
def test_discovery(workers, language, role):
    worker = workers[language, role]
    assert all(worker.serving(service) for service in ["", "vllm.Inference", "vllm.Control", "cleave.v1.Worker"])
    refusal(lambda: worker.serving("unknown"), CODES.NOT_FOUND, "")
    info = worker.control.GetModelInfo(control_pb2.GetModelInfoRequest(), timeout=TIMEOUT)
    assert info.served_model_name == "tiny" and info.model_id.endswith("/tiny") and info.supports_token_ids_input and info.supports_text_input
    one, two = (worker.control.GetServerInfo(control_pb2.GetServerInfoRequest(), timeout=TIMEOUT) for _ in range(2))
    assert one == two and one.api_version == "vllm" and one.instance_id
    assert one.parallelism.data_parallel_size == one.parallelism.world_size == 1
    assert one.max_model_len and one.kv_block_size and one.total_kv_blocks and one.max_running_requests and one.max_batched_tokens
    assert list(worker.control.GetKvEventSources(control_pb2.GetKvEventSourcesRequest(), timeout=TIMEOUT).sources) == []
    assert not worker.control.IsPaused(control_pb2.IsPausedRequest(), timeout=TIMEOUT).paused
    worker.control.IsSleeping(control_pb2.IsSleepingRequest(), timeout=TIMEOUT)
    assert list(worker.control.ListLoras(control_pb2.ListLorasRequest(), timeout=TIMEOUT).adapters) == []
    refusal(lambda: worker.control.Sleep(control_pb2.SleepRequest(), timeout=TIMEOUT), CODES.UNIMPLEMENTED, "")


def test_both_servers_say_the_same_of_themselves(workers):
    described = []
    for language in LANGUAGES:
        info = workers[language, "mixed"].control.GetServerInfo(control_pb2.GetServerInfoRequest(), timeout=TIMEOUT)
        info.instance_id = ""
        described.append((info, workers[language, "mixed"].control.GetModelInfo(control_pb2.GetModelInfoRequest(), timeout=TIMEOUT)))
    assert all(other == described[0] for other in described)


# ---- answers ----

CHANGES = {
    "greedy": {"temperature": 0},
    "sampled": {"response": {"output_logprobs": True}},
    "longer": {"stopping": {"min_new_tokens": 20, "max_new_tokens": 30}},
    "one token": {"stopping": {"max_new_tokens": 1}},
    "salted": {"kv": {"cache_salt": "tenant"}},
    "uncached": {"kv": {"bypass_prefix_cache": True}},
    "urgent": {"priority": -5},
    "penalised": {"decoding": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2, "logit_bias": {300: 2}}},
    "ignoring EOS": {"stopping": {"ignore_eos": True}},
    "likely ones": {"sampling": {"top_k": 5, "top_p": 0.9, "min_p": 0.05}, "temperature": 1.5},
    "another seed": {"sampling": {"seed": 0}},
    "truncated": {"truncate_prompt_tokens": 30},
    "candidates": {"response": {"output_candidates": {"top_n": 3}}},
    "all in text": {"stopping": {"include_stop_strings": True}},
    "no text": {"response": {"output_text": False}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_answers_do_not_depend_on_the_way(workers, reference, prompt, change):
    q = question(prompt, 40, **CHANGES[change])
    want = reference(q)
    assert want.tokens
    for (language, role), worker in workers.items():
        got = worker.ask(q)
        assert got == want, (language, role, got, want)
    for one, other in pairs():
        got = disaggregated(workers[one, "prefill"], workers[other, "decode"], q)
        assert got == want, (one, other, got, want)
    for worker in workers.values():
        wait_until("a worker holds nothing", worker.holds_nothing)


def test_kv_is_fetched(workers, prompt, pair):
    """Not computed again."""
    prefill_worker, decode_worker = pair
    imports, computed = (decode_worker.metric(name) for name in ("cleave_kv_imports_total", "cleave_prompt_tokens_total"))
    disaggregated(prefill_worker, decode_worker, question(prompt, 5))
    assert decode_worker.metric("cleave_kv_imports_total") == imports + 1
    assert decode_worker.metric("cleave_prompt_tokens_total") == computed


def test_answers_of_http_are_the_same(mixed, reference, prompt):
    q = question(prompt, 40)
    body = {"prompt": prompt, "max_tokens": 40, "temperature": 1, "seed": 7}
    status, answer = post(mixed.url + "/v1/completions", json.dumps(body).encode())
    assert status == 200 and answer["choices"][0]["text"] == reference(q).text


def test_text_as_prompt(mixed, reference, prompt):
    q = question(prompt, 40)
    by_text = copy(q)
    by_text.text = FACTS + "the old farmer"
    assert mixed.ask(by_text) == reference(q)


def test_in_one_piece(mixed, reference, prompt):
    q = question(prompt, 40, response={"output_logprobs": True, "prompt_token_ids": True})
    want = reference(q)
    whole = mixed.inference.Generate(q, timeout=TIMEOUT)
    output = whole.outputs
    assert (output.text, list(output.token_ids), list(output.logprobs), list(output.ranks)) == (want.text, want.tokens, want.logprobs, want.ranks)
    assert output.num_tokens == len(want.tokens) and output.finish_info.num_output_tokens == len(want.tokens)
    assert list(whole.prompt_info.token_ids) == prompt and whole.prompt_info.num_prompt_tokens == len(prompt)
    one = mixed.inference.Generate(prefilled(q), timeout=TIMEOUT)
    assert "cleave_ticket" in one.outputs.finish_info.kv_transfer_params.fields
    got = mixed.inference.Generate(copy(q, kv={"kv_transfer_params": one.outputs.finish_info.kv_transfer_params}), timeout=TIMEOUT)
    assert got.outputs.text == want.text


def test_candidates(mixed, prompt):
    wide = mixed.ask(question(prompt, 8, response={"output_candidates": {"top_n": 100}}))
    few = mixed.ask(question(prompt, 8, response={"output_candidates": {"top_n": 3}}))
    assert wide.tokens == few.tokens and wide.logprobs == few.logprobs
    for i, token in enumerate(few.tokens):
        likely = {candidate.rank: (candidate.id, candidate.logprob) for candidate in wide.candidates[i].tokens}
        rank = wide.ranks[i]
        if rank <= 100:
            likely[rank] = (token, wide.logprobs[i])
        assert sorted(likely) == list(range(1, 101)) and [likely[r][1] for r in sorted(likely)] == sorted((p for _, p in likely.values()), reverse=True)
        assert few.ranks[i] == (rank if rank <= 20 else 21)
        assert [(c.rank, (c.id, c.logprob)) for c in few.candidates[i].tokens] == [(r, likely[r]) for r in (1, 2, 3) if r != rank]


def test_cached_tokens(mixed, prompt):
    q = question(prompt, 4, kv={"cache_salt": "a salt of this test"})
    assert mixed.ask(q).finish.num_cached_tokens == 0
    assert mixed.ask(q).finish.num_cached_tokens > 0
    assert mixed.ask(copy(q, kv={"cache_salt": "another"})).finish.num_cached_tokens == 0
    assert mixed.ask(copy(q, kv={"bypass_prefix_cache": True})).finish.num_cached_tokens == 0


# ---- stop strings ----


@pytest.fixture
def told(reference, prompt):
    """A request, and its text."""
    q = question(prompt, 40)
    answer = reference(q)
    assert len(answer.text.split()) >= 8, answer
    return q, answer.text


@pytest.mark.parametrize("role", ROLES)
def test_stop_strings(workers, language, told, role):
    worker, (q, text) = workers[language, role], told
    words = text.split()
    stop = f"{words[4]} {words[5][0]}"  # over several tokens
    cut = text[: text.index(stop)]
    q.stopping.stop_strings.extend(["never there", stop])
    answer = worker.ask(q)
    assert answer.text == cut and answer.finish.finish_reason == pb.FinishInfo.STOP and answer.finish.stop_string == stop
    assert worker.ask(copy(q, stopping={"include_stop_strings": True})).text == cut + stop
    wait_until("the engine stops", worker.holds_nothing)


def test_text_that_is_held_back_comes_at_the_end(mixed, told):
    q, text = told
    q.stopping.stop_strings.append(text[-3:] + "!")
    assert mixed.ask(q).text == text


def test_tokens_are_held_back_with_their_text(mixed, told):
    """A stream that goes on elsewhere, from the tokens that came, lacks nothing and repeats nothing."""
    q, text = told
    so_far = [""]
    for message in mixed.ask(q).messages:
        so_far += [so_far[-1] + message.outputs.text] * message.outputs.num_tokens
    words = text.split()
    q.stopping.stop_strings.append(f"{words[2]} {words[3]}!")
    answer = mixed.ask(q)
    assert answer.text == text and any(message.outputs.num_tokens > 1 for message in answer.messages)
    seen, tokens = "", 0
    for message in answer.messages[:-1]:
        seen, tokens = seen + message.outputs.text, tokens + message.outputs.num_tokens
        assert seen == so_far[tokens]


def test_a_stop_token_is_no_text(mixed, told, reference):
    q, text = told
    third = reference(q).tokens[2]
    q.stopping.stop_token_ids.append(third)
    answer = mixed.ask(q)
    assert answer.tokens[-1] == third and third not in answer.tokens[:-1]
    assert answer.finish.finish_reason == pb.FinishInfo.STOP and answer.finish.stop_token_id == third
    assert text.startswith(answer.text) and len(answer.text) < len(text)
    kept = mixed.ask(copy(q, stopping={"include_stop_strings": True}))
    assert len(kept.text) > len(answer.text) and text.startswith(kept.text)


def test_characters_of_several_tokens(mixed, prompt):
    """They go out whole, also where another engine has begun with one."""
    text = "é漢字🙂"
    beginning = mixed.tokens("a")
    tokens = mixed.tokens("a" + text)[len(beginning):]
    assert len(tokens) >= len(text.encode())
    for first in range(len(tokens)):
        sent, head = "", b"".join([text.encode()[:first]]).decode(errors="ignore")
        for at in range(first, len(tokens)):
            q = question(prompt + tokens[:at], 1, decoding={"logit_bias": {tokens[at]: 1000}})
            answer = mixed.ask(q).text
            sent += answer.rstrip("\N{REPLACEMENT CHARACTER}") if at < len(tokens) - 1 else answer
        assert head + sent == text, (first, head, sent)


# ---- refusals ----

REFUSED = {
    "num_sequences": {"sampling": {"num_sequences": 2}},
    "allowed_token_ids": {"decoding": {"allowed_token_ids": [1]}},
    "structured_output": {"decoding": {"regex": "a"}},
    "bad_words_token_ids": {"decoding": {"bad_words_token_ids": [{"ids": [1]}]}},
    "thinking_token_budget": {"stopping": {"thinking_token_budget": 0}},
    "prompt_logprobs": {"response": {"prompt_logprobs": True}},
    "prompt_candidates": {"response": {"prompt_candidates": {"top_n": 1}}},
    "skip_special_tokens": {"response": {"skip_special_tokens": False}},
    "output_candidates: must be top_n, at most 128": {"response": {"output_candidates": {"all": True}}},
    "output_candidates": {"response": {"output_candidates": {"top_n": 129}}},
    "ec_transfer_params": {"kv": {"ec_transfer_params": {}}},
    "kv_hints": {"kv_hints": {"actions": [{}]}},
    "media": {"media": [{}]},
    "lora_name": {"lora_name": "x"},
    "prompt: 1": {"token_ids": {"ids": [5] * (1 << 14)}},
    "token_ids: the model has no token 2147483648": {"token_ids": {"ids": [1 << 31]}},
    "stopping.stop_token_ids: the model has no token 768": {"stopping": {"stop_token_ids": [768]}},
    "decoding.logit_bias: the model has no token 768": {"decoding": {"logit_bias": {768: 1}}},
    "stopping.stop_strings: each must have 1 to 1024 bytes": {"stopping": {"stop_strings": [""]}},
    "stopping.stop_strings: there are 129, and at most 128 are taken": {"stopping": {"stop_strings": ["a"] * 129}},
    "top_p": {"sampling": {"top_p": 2}},
    "min_new_tokens": {"stopping": {"min_new_tokens": 50}},
    "cleave_ticket is not base64": {"kv": {"kv_transfer_params": params(cleave_ticket="?")}},
    "cleave_ticket is not a string": {"kv": {"kv_transfer_params": params(cleave_ticket=1)}},
    "do_remote_decode and a ticket exclude each other": {"kv": {"kv_transfer_params": params(do_remote_decode=True, cleave_ticket="AAAA")}},
    "do_remote_prefill without the cleave_ticket": {"kv": {"kv_transfer_params": params(do_remote_prefill=True)}},
}


@pytest.mark.parametrize("about", REFUSED)
def test_refusals(mixed, prompt, about):
    for call in (mixed.ask, lambda q: mixed.inference.Generate(q, timeout=TIMEOUT)):
        refusal(lambda: call(question(prompt, 40, **REFUSED[about])), CODES.INVALID_ARGUMENT, about)


def test_other_refusals(mixed, prompt):
    refusal(lambda: mixed.ask(question([], 4)), CODES.INVALID_ARGUMENT, "prompt: it is empty")
    refusal(lambda: mixed.ask(question(prompt, 4, model="another")), CODES.NOT_FOUND, 'model: there is no model "another" here')
    refusal(lambda: mixed.ask(question(prompt, 4), [("x-data-parallel-rank", "1")]), CODES.INVALID_ARGUMENT, "x-data-parallel-rank")
    assert mixed.ask(question(prompt, 4), [("x-data-parallel-rank", "0")]).tokens
    too_long = question([], 4)
    too_long.text = "a" * (1 << 22)
    refusal(lambda: mixed.ask(too_long), CODES.INVALID_ARGUMENT, "text: 4194304 bytes, and at most")


def test_fields_of_another_schema(mixed, prompt):
    """Field 99, in every message that can have one."""
    unknown = b"\x98\x06\x01"
    q = question(prompt, 4)
    for name, message in [("the request", q), ("sampling", q.sampling), ("stopping", q.stopping), ("response", q.response), ("kv", q.kv), ("token_ids", q.token_ids)]:
        changed = copy(q)
        (changed if message is q else getattr(changed, name)).MergeFromString(unknown)
        refusal(lambda: mixed.ask(changed), CODES.INVALID_ARGUMENT, f"{name}: field number 99 is unknown to this server")


# ---- ends ----


def take(stream, tokens):
    """Reads until a stream has given some tokens."""
    for message in stream:
        tokens -= message.outputs.num_tokens
        if tokens <= 0:
            return


@pytest.mark.parametrize("role", ROLES)
def test_cancel_and_abort(workers, language, role, prompt):
    worker = workers[language, role]
    stream = worker.open(endless(prompt))
    take(stream, 3)
    stream.cancel()
    wait_until("the request is gone", worker.holds_nothing)

    streams = [worker.open(endless(prompt, request_id=name)) for name in ("to be aborted", "to be aborted", "another")]
    for stream in streams:
        take(stream, 3)
    worker.control.Abort(control_pb2.AbortRequest(request_ids=["unknown", "", "to be aborted"]), timeout=TIMEOUT)
    for stream in streams[:2]:
        *_, last = stream
        assert last.outputs.finish_info.finish_reason == pb.FinishInfo.ABORTED and last.outputs.finish_info.num_output_tokens >= 3
    take(streams[2], 3)
    streams[2].cancel()
    wait_until("the requests are gone", worker.holds_nothing)


def test_kv_is_released_when_its_client_is_gone(pair, prompt):
    prefill_worker, decode_worker = pair
    q = endless(prompt)
    stream = decode_worker.open(copy(q, kv={"kv_transfer_params": prefill(prefill_worker, q)}))
    take(stream, 1)
    stream.cancel()
    for worker in pair:
        wait_until("nothing is held", worker.holds_nothing, 9)  # a lease is 10 s
