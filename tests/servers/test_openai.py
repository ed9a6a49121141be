"""The official client against every set-up."""

import asyncio
import json

import openai
import pytest
from conftest import ANSWERS, QUESTION, SETUPS, ask, client_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from servers import get, post, wait_until

LONG = {"max_tokens": 300, "extra_body": {"ignore_eos": True}}


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("huge")


@pytest.mark.parametrize("thing", ANSWERS)
def test_chat(client, thing):
    answer = client.chat.completions.create(model="tiny", messages=ask(thing), temperature=0)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "tiny"
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWERS[thing], "stop")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 20 < usage.prompt_tokens < 200 and 1 < usage.completion_tokens < 10


def test_chat_stream(client):
    stream = client.chat.completions.create(model="tiny", messages=ask("red box"), temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    chunks = list(stream)
    *content, last = chunks
    assert {chunk.id for chunk in chunks} == {last.id} and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert last.choices == [] and last.usage.completion_tokens > 1
    assert all(chunk.usage is None for chunk in content)
    assert content[0].choices[0].delta.role == "assistant"
    assert text_of(content) == ANSWERS["red box"]
    assert [chunk.choices[0].finish_reason for chunk in content][-1] == "stop"
    assert all(chunk.choices[0].finish_reason is None for chunk in content[:-1])
    assert len(content) > 3, "tokens come one by one"


def test_usage_in_every_chunk(client):
    chunks = list(client.chat.completions.create(model="tiny", messages=ask("red box"), temperature=0, stream=True,
                                                 stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 1
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {chunks[-1].usage.prompt_tokens}


def test_a_chat_goes_on(client):
    messages = [*ask("red box"), {"role": "assistant", "content": "a key."}, {"role": "user", "content": "what does the blue jar hold?"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert answer.choices[0].message.content == ANSWERS["blue jar"]
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION.format("red box")}]}]
    assert client.chat.completions.create(model="tiny", messages=parts, temperature=0).choices[0].message.content == "a key."


def test_completions(client):
    prompt = QUESTION.format("green bag")
    whole = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=8)
    assert whole.id.startswith("cmpl-") and whole.object == "text_completion"
    assert whole.choices[0].text.startswith(" a shell.")
    stream = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    default = client.completions.create(model="tiny", prompt=prompt, temperature=0, extra_body={"ignore_eos": True})
    assert (default.usage.completion_tokens, default.choices[0].finish_reason) == (16, "length")


def test_the_chat_template(client):
    """Its end and its variables are the client's; the tiny model's template takes none, which the tokens show."""
    def run(messages, **options):
        return client.chat.completions.create(model="tiny", messages=messages, temperature=0, extra_body=options)

    plain = run(ask("red box"))
    assert run(ask("red box"), chat_template_kwargs={"enable_thinking": False}).choices[0].message.content == "a key."
    begun = [*ask("red box"), {"role": "assistant", "content": "a"}]
    continued = run(begun, continue_final_message=True, add_generation_prompt=False)
    assert continued.choices[0].message.content == " key."
    assert run(ask("red box"), add_generation_prompt=False).usage.prompt_tokens < plain.usage.prompt_tokens


def test_several_prompts(client):
    things = list(ANSWERS)
    answer = client.completions.create(model="tiny", prompt=[QUESTION.format(thing) for thing in things], temperature=0, max_tokens=6, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    for choice in answer.choices:
        assert choice.text.strip().startswith(ANSWERS[things[choice.index // 2]])
    ids = [0, 300, 301, 302]
    one = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=5)
    two = client.completions.create(model="tiny", prompt=[ids, ids], temperature=0, max_tokens=5)
    assert one.usage.prompt_tokens == 4 and two.usage.prompt_tokens == 8
    assert [choice.text for choice in two.choices] == [one.choices[0].text] * 2


def test_seeds(client):
    def sample(seed, n=1, **more):
        answer = client.completions.create(model="tiny", prompt="the old farmer", temperature=1.2, top_p=0.95, seed=seed, n=n, max_tokens=24, **more)
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.text for choice in answer.choices]

    assert sample(7) == sample(7) and sample(0) == sample(0) and sample(-3) == sample(-3), "any whole number is a seed"
    assert sample(7, 4) == [text for i in range(4) for text in sample(7 + i)], "choice i has the seed + i"
    assert len(set(sample(7, 4))) > 1
    unseeded = [sample(openai.NOT_GIVEN)[0] for _ in range(4)]
    assert len(set(unseeded)) > 1
    stream = client.completions.create(model="tiny", prompt="the old farmer", temperature=1.2, top_p=0.95, seed=7, n=4, max_tokens=24, stream=True)
    texts = [""] * 4
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == sample(7, 4)


def test_limits(client):
    answer = client.chat.completions.create(model="tiny", messages=ask("red box"), temperature=0, max_completion_tokens=1)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (1, "length")
    full = client.chat.completions.create(model="tiny", messages=ask("red box"), temperature=0, extra_body={"ignore_eos": True})
    assert full.usage.total_tokens == 512 and full.choices[0].finish_reason == "length", "until the context is full"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client, stream):
    def text(stop):
        answer = client.chat.completions.create(model="tiny", messages=ask("blue jar"), temperature=0, stop=stop, stream=stream)
        if not stream:
            return answer.choices[0].message.content, answer.choices[0].finish_reason
        chunks = list(answer)
        return text_of(chunks), chunks[-1].choices[0].finish_reason

    assert text("coin") == ("a ", "stop")
    assert text("oin") == ("a c", "stop"), "in the middle of a word"
    assert text(["nowhere", "coin.", "coin"])[0] == "a "
    assert text(["coins", "a coin!"]) == ("a coin.", "stop"), "what only began like one is text"
    assert text("a") == ("", "stop")


def test_chat_logprobs(client):
    answer = client.chat.completions.create(model="tiny", messages=ask("red box"), temperature=0, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens[:-1]).startswith("a key.") or "".join(token.token for token in tokens) == "a key."
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob), "greedy takes the best"
        assert bytes(token.bytes).decode() == token.token
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
    stream = client.chat.completions.create(model="tiny", messages=ask("red box"), temperature=0, logprobs=True, stream=True)
    streamed = [token for chunk in stream if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert [(t.token, t.logprob) for t in streamed] == [(t.token, t.logprob) for t in tokens]
    assert all(t.top_logprobs == [] for t in streamed)


def test_completion_logprobs(client):
    answer = client.completions.create(model="tiny", prompt=QUESTION.format("red box"), temperature=0, max_tokens=4, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 4
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
    assert all(len(top) == 2 and token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs))


def test_penalties_and_bias(client):
    def run(**options):
        return client.completions.create(model="tiny", prompt="the old farmer", temperature=0, max_tokens=40, **options).choices[0].text

    plain = run()
    assert run(frequency_penalty=2.0, presence_penalty=2.0) != plain
    assert run(extra_body={"repetition_penalty": 1.8}) != plain
    assert run(extra_body={"top_k": 1}) == plain
    logprobs = client.completions.create(model="tiny", prompt="the old farmer", temperature=0, max_tokens=1, logprobs=0)
    banned = run(logit_bias={str(i): -100 for i in range(6, 400)})
    assert not banned.startswith(logprobs.choices[0].text) or logprobs.choices[0].text == ""


BAD = [
    ({"model": "huge"}, openai.NotFoundError, None, "model_not_found"),
    ({"temperature": 5}, openai.BadRequestError, "temperature", None),
    ({"temperature": "hot"}, openai.BadRequestError, "temperature", None),
    ({"top_p": 0}, openai.BadRequestError, "top_p", None),
    ({"n": 0}, openai.BadRequestError, "n", None),
    ({"n": 1000}, openai.BadRequestError, "n", None),
    ({"max_completion_tokens": 0}, openai.BadRequestError, "max_completion_tokens", None),
    ({"max_completion_tokens": 2.5}, openai.BadRequestError, "max_completion_tokens", None),
    ({"messages": []}, openai.BadRequestError, "messages", None),
    ({"messages": [{"content": "no role"}]}, openai.BadRequestError, "messages", None),
    ({"messages": "hello"}, openai.BadRequestError, "messages", None),
    ({"stop": ["a", "b", "c", "d", "e"]}, openai.BadRequestError, "stop", None),
    ({"stop": 7}, openai.BadRequestError, "stop", None),
    ({"stop": ""}, openai.BadRequestError, "stop", None),
    ({"seed": "x"}, openai.BadRequestError, "seed", None),
    ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError, "top_logprobs", None),
    ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", None),
    ({"presence_penalty": 3}, openai.BadRequestError, "presence_penalty", None),
    ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias", None),
    ({"logit_bias": {"100000": 1}}, openai.BadRequestError, "logit_bias", None),
    ({"guided_json": {"type": "object"}}, openai.BadRequestError, "guided_json", None),
    ({"chat_template_kwargs": []}, openai.BadRequestError, "chat_template_kwargs", None),
    ({"continue_final_message": True}, openai.BadRequestError, "continue_final_message", None),
    ({"chat_template": "x"}, openai.BadRequestError, "chat_template", None),
    ({"Temperature": 1}, openai.BadRequestError, "Temperature", None),
    ({"kv_transfer_params": {"do_remote_decode": True}}, openai.BadRequestError, "kv_transfer_params", None),
    ({"messages": [{"role": "user", "content": "hi", "prefix": True}]}, openai.BadRequestError, "messages[0].prefix", None),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "more": 1}]}]}, openai.BadRequestError, "messages[0].content[0].more", None),
    ({"stream_options": {"include_usage": True, "more": 1}}, openai.BadRequestError, "stream_options.more", None),
    ({"response_format": {"type": "text", "strict": True}}, openai.BadRequestError, "response_format.strict", None),
    ({"logprobs": True, "top_logprobs": -1}, openai.BadRequestError, "top_logprobs", None),
    ({"max_completion_tokens": -1}, openai.BadRequestError, "max_completion_tokens", None),
    ({"max_tokens": 2**31}, openai.BadRequestError, "max_tokens", None),
    ({"n": -1}, openai.BadRequestError, "n", None),
    ({"temperature": -0.1}, openai.BadRequestError, "temperature", None),
    ({"frequency_penalty": -2.1}, openai.BadRequestError, "frequency_penalty", None),
    ({"seed": 2**63}, openai.BadRequestError, "seed", None),
    ({"stop": ["x" * 1025]}, openai.BadRequestError, "stop", None),
    ({"logit_bias": {"-1": 1}}, openai.BadRequestError, "logit_bias", None),
    ({"logit_bias": {"1": 101}}, openai.BadRequestError, "logit_bias", None),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools", None),
    ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format", None),
    ({"messages": [{"role": "user", "content": "a " * 2000}]}, openai.BadRequestError, "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options,kind,param,code", BAD, ids=[f"{'-'.join(b[0])}-{i}" for i, b in enumerate(BAD)])
def test_errors(client, options, kind, param, code, stream):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": ask("red box"), "stream": stream, "extra_body": options})
    body = caught.value.body
    assert body["message"] and body["type"] == "invalid_request_error"
    if param:
        assert body["param"] == param, body
    if code:
        assert body["code"] == code, body


def test_both_servers_refuse_in_the_same_words():
    """A front in either language, and a server without one: clients cannot tell them apart."""
    running = [SETUPS[name]() for name in SETUPS if name in ("go-mixed", "cpp-mixed")]
    for options, _, _, _ in BAD:
        body = json.dumps({"model": "tiny", "messages": ask("red box"), **options}).encode()
        answers = [post(server.url + "/v1/chat/completions", body) for server in running]
        assert all(answer == answers[0] for answer in answers), answers
    for server in running:
        assert server.stop() == 0


def test_harmless_fields_are_ignored(client):
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "x",
                "parallel_tool_calls": True, "request_id": "x", "tools": None, "guided_json": None}
    messages = [{**ask("red box")[0], "name": "anna", "refusal": None, "tool_calls": None}]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, extra_body=harmless)
    assert answer.choices[0].message.content == "a key."


@pytest.mark.parametrize("options,param", [({"echo": True}, "echo"), ({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of"), ({"logprobs": 6}, "logprobs"), ({"logprobs": -1}, "logprobs"),
                                           ({"messages": []}, "messages"),
                                           ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [100000]}, "prompt"),
                                           ({"prompt": []}, "prompt"), ({"prompt": {}}, "prompt")])
def test_completion_errors(client, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "hello", "extra_body": options})
    assert caught.value.body["param"] == param, caught.value.body


def workers_of(server):
    return getattr(server, "workers", [server])


def test_closing_cancels(server, client):
    stream = client.completions.create(model="tiny", prompt="the old farmer", temperature=0, stream=True, **LONG)
    seen = [next(stream) for _ in range(3)]
    assert len(seen) == 3
    stream.close()
    for worker in workers_of(server):
        wait_until("what a closed stream ran is cancelled", worker.holds_nothing)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).completions.create(model="tiny", prompt=["the old farmer"] * 64, temperature=0, **LONG)
    for worker in workers_of(server):
        wait_until("what a client gave up on is cancelled", worker.holds_nothing)


def test_64_parallel_streams(server):
    async def run():
        client = client_of(server, openai.AsyncOpenAI)

        async def one(i):
            thing = list(ANSWERS)[i % 3]
            stream = await client.chat.completions.create(model="tiny", messages=ask(thing), temperature=0, stream=True)
            return thing, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        return await asyncio.gather(*(one(i) for i in range(64)))

    for thing, text in asyncio.run(run()):
        assert text == ANSWERS[thing]


def test_cached_tokens(client):
    messages = [{"role": "user", "content": "the green pot holds a ring. " * 8 + "what does the green pot hold?"}]
    first = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    again = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert first.choices[0].message.content == again.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens >= 16


def test_operators(server, client):
    client.chat.completions.create(model="tiny", messages=ask("red box"), temperature=0)
    client.models.retrieve("tiny")
    get(server.url + "/no/such/path/7")
    status, health = server.health() if hasattr(server, "health") else server.front.health()
    assert status == 200 and health["status"] == "ok"
    status, text = get(server.url + "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert status == 200 and all(family.documentation for name, family in families.items() if name.startswith(("cleave_server", "cleave_front")))
    paths = {sample.labels["path"] for sample in families["cleave_server_requests"].samples}
    assert paths <= {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/", "/workers", "/workers/leave", "other"}, paths
    assert {"/v1/chat/completions", "/v1/models", "other"} <= paths
    assert families["cleave_server_time_to_first_token_seconds"].type == "summary"
    if hasattr(server, "front"):
        assert {"cleave_front_workers", "cleave_front_moved"} <= set(families)
        assert sum(worker.metric("cleave_handoff_seconds_count") for worker in server.of("decode")) > 0, "its answers were prefilled elsewhere"
    else:
        assert any(name.startswith("cleave_") and not name.startswith("cleave_server") for name in families)
