"""Workers without a front of their own: any HTTP router that knows vLLM's kv_transfer_params may stand before them."""

import json
import os
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from conftest import ANSWERS, ask, client_of, mixed
from servers import LANGUAGES, MODEL, SMALL, Server, post, wait_until

CHAT = "/v1/chat/completions"


class Router:
    """Sends each request to the prefill worker, and then, with what came back, to the decode worker: as llm-d's sidecar does."""

    def __init__(self, prefill, decode):
        router = self
        self.tickets = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.forward(decode.url, None)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                first = {**body, "stream": False, "max_tokens": 1, "kv_transfer_params": {
                    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
                    "remote_host": None, "remote_port": None}}
                first.pop("stream_options", None)
                if "max_completion_tokens" in body:
                    first["max_completion_tokens"] = 1
                status, answer = post(prefill.url + self.path, json.dumps(first).encode(), {"X-Request-Id": "r"})
                if status != 200:
                    return self.answer(status, "application/json", json.dumps(answer).encode())
                router.tickets.append(answer["kv_transfer_params"])
                self.forward(decode.url, json.dumps({**body, "kv_transfer_params": answer["kv_transfer_params"]}).encode())

            def forward(self, url, body):
                try:
                    with urllib.request.urlopen(urllib.request.Request(url + self.path, body)) as answer:
                        self.answer(answer.status, answer.headers["Content-Type"], answer.read())
                except urllib.error.HTTPError as error:
                    self.answer(error.code, error.headers["Content-Type"], error.read())

            def answer(self, status, kind, body):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def worker(language, role, secret, *more):
    return Server(language, "--role", role, "--listen", "127.0.0.1:0", "--model", MODEL, "--secret-file", secret, *SMALL, *more)


class Workers:
    def __init__(self, language, secret):
        self.all = self.prefill, self.decode = [worker(language, role, secret) for role in ("prefill", "decode")]
        self.router = Router(self.prefill, self.decode)
        self.url = self.router.url


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "kv.secret"
    path.write_bytes(os.urandom(32))
    return path


@pytest.fixture(scope="module", params=LANGUAGES)
def workers(request, secret):
    running = Workers(request.param, secret)
    running.alone = mixed(request.param)
    yield running
    running.router.server.shutdown()
    for server in [*running.all, running.alone]:
        wait_until("it holds nothing", server.holds_nothing)
        assert server.stop() == 0


def counted(server, name):
    return server.metric(f"cleave_{name}_total")


def prefilled(server, body):
    """The answer of a prefill worker to a router."""
    status, answer = post(server.url + CHAT, json.dumps({**body, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}).encode())
    assert status == 200, answer
    return answer


def test_answers_are_those_of_one_process(workers):
    """Whole and streamed, greedy and sampled, with log-probabilities: the KV comes from the prefill worker every time."""
    requests = [{"temperature": 0}, {"temperature": 0.9, "seed": 7}, {"temperature": 0.7, "seed": 1, "frequency_penalty": 0.5, "extra_body": {"min_tokens": 12}},
                {"temperature": 0.9, "seed": 3, "logprobs": True, "top_logprobs": 3}, {"temperature": 0, "stop": ["y"]},
                {"temperature": 0, "max_completion_tokens": 1}, {"temperature": 0.8, "seed": 5, "n": 3}]
    before, computed = counted(workers.decode, "kv_imports"), counted(workers.decode, "requests_recomputed")
    for more in requests:
        for thing in ANSWERS:
            want, got = (client_of(to).chat.completions.create(model="tiny", messages=ask(thing), **more) for to in (workers.alone, workers))
            assert [c.model_dump() for c in got.choices] == [c.model_dump() for c in want.choices], more
            assert got.usage.total_tokens == want.usage.total_tokens
            chunks = [[c.model_dump()["choices"] for c in client_of(to).chat.completions.create(model="tiny", messages=ask(thing), stream=True, **more)]
                      for to in (workers.alone, workers)]
            if "n" not in more: # chunks of several choices come in any order
                assert chunks[0] == chunks[1]
    assert counted(workers.decode, "kv_imports") - before == 2 * len(requests) * len(ANSWERS)
    assert counted(workers.decode, "requests_recomputed") == computed


def test_a_first_token_that_must_not_end_the_answer(workers):
    """The prefill worker is asked for one token, and its likeliest one ends the answer. With min_tokens that comes later."""
    for more in [{"min_tokens": 5}, {"min_tokens": 5, "stop": ["y"]}, {}]:
        body = {"model": "tiny", "messages": ask("red box"), "temperature": 0, "logit_bias": {1: 100}, "extra_body": more}
        want, got = (client_of(to).chat.completions.create(**body) for to in (workers.alone, workers))
        assert got.usage.completion_tokens == want.usage.completion_tokens > more.get("min_tokens", 0)
        assert [c.model_dump() for c in got.choices] == [c.model_dump() for c in want.choices]


def test_text_completions(workers):
    more = {"model": "tiny", "max_tokens": 20, "temperature": 0.9, "seed": 4, "logprobs": 2}
    for prompt in ["anna lives in", [9, 3, 4], ["anna lives in", "tom lives in"]]:
        want, got = (client_of(to).completions.create(prompt=prompt, **more) for to in (workers.alone, workers))
        assert [c.model_dump() for c in got.choices] == [c.model_dump() for c in want.choices]
    assert workers.router.tickets[-1] is None, "several prompts: the decode worker computes them"


def test_a_ticket_is_all_that_travels(workers):
    client_of(workers).completions.create(model="tiny", prompt="anna", max_tokens=2)
    params = workers.router.tickets[-1]
    assert params["do_remote_prefill"] is True and not params.get("do_remote_decode") and len(params["ticket"]) < 4096


def test_fields_of_vllms_router(workers):
    """It spells out defaults in every request. Another value is refused."""
    defaults = {"skip_special_tokens": True, "no_stop_trim": False, "return_hidden_states": False, "separate_reasoning": True,
                "stream_reasoning": True, "include_reasoning": True, "echo": False}
    got = client_of(workers).chat.completions.create(model="tiny", messages=ask("red box"), temperature=0, extra_body=defaults)
    assert got.choices[0].message.content == ANSWERS["red box"]
    for name, value in defaults.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client_of(workers).chat.completions.create(model="tiny", messages=ask("red box"), extra_body={name: not value})
        assert caught.value.param == name


def test_a_lost_ticket_is_computed(workers):
    """One that nobody has issued, or that was used before: the answer is the same, from the decode worker alone."""
    body = {"model": "tiny", "messages": ask("blue jar"), "temperature": 0}
    answer = prefilled(workers.prefill, body)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["prompt_tokens"] > 0
    used = answer["kv_transfer_params"]
    another = prefilled(workers.prefill, {**body, "messages": ask("red box")})["kv_transfer_params"]
    for params in (used, used, another, {**used, "ticket": "bm9uZQ=="}, {"do_remote_prefill": True}, {}):
        status, answer = post(workers.decode.url + CHAT, json.dumps({**body, "kv_transfer_params": params}).encode())
        assert status == 200 and answer["choices"][0]["message"]["content"] == ANSWERS["blue jar"]


def test_a_prefill_worker_wants_to_be_asked_for_that(workers):
    status, answer = post(workers.prefill.url + CHAT, json.dumps({"model": "tiny", "messages": ask("red box")}).encode())
    assert status == 400 and answer["error"]["param"] == "kv_transfer_params"


@pytest.mark.parametrize("language", LANGUAGES)
def test_prompts_that_nobody_fetches(language, secret):
    """They are given up after --kv-lease."""
    for role in ("prefill", "mixed"):
        server = worker(language, role, secret, "--kv-lease", 1)
        if role == "prefill":
            ticket = prefilled(server, {"model": "tiny", "messages": ask("blue jar")})["kv_transfer_params"]["ticket"]
            assert ticket
        else: # it has no worker beside it to give a ticket to
            body = json.dumps({"messages": ask("red box"), "kv_transfer_params": {"do_remote_decode": True}}).encode()
            status, answer = post(server.url + CHAT, body)
            assert status == 400 and answer["error"]["param"] == "kv_transfer_params"
        wait_until("the lease is over", server.holds_nothing)
        assert server.stop() == 0
