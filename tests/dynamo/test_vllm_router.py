"""vLLM's router, as released, before workers in Go and C++: it speaks HTTP and kv_transfer_params."""

import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from conftest import ANSWERS, ask
from deployment import die_with_parent, free_port
from servers import MODEL, SMALL, Server, get, wait_until


def client_of(url):
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """The router's URL, its prefill workers, its decode workers."""
    directory = tmp_path_factory.mktemp("router")
    secret = directory / "kv.secret"
    secret.write_bytes(os.urandom(32))
    workers = {role: [Server(language, "--role", role, "--listen", "127.0.0.1:0", "--model", MODEL, "--secret-file", secret, *SMALL)
                      for language in ("go", "cpp")]
               for role in ("prefill", "decode")}
    named = [argument for role, servers in workers.items() for server in servers for argument in (f"--{role}", server.url)]
    port = free_port()
    with open(directory / "router.log", "w") as log:
        router = subprocess.Popen([Path(sys.executable).parent / "vllm-router", "--vllm-pd-disaggregation", "--policy", "round_robin", *named,
                                   "--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())],
                                  stdout=log, stderr=log, preexec_fn=die_with_parent)
    url = f"http://127.0.0.1:{port}"

    def serves():
        assert router.poll() is None, (directory / "router.log").read_text()[-4000:]
        try:
            return get(url + "/health")[0] == 200
        except OSError:
            return False

    try:
        wait_until("the router serves", serves)
        yield url, workers["prefill"], workers["decode"]
        router.terminate()
        router.wait(60)
        for server in [*workers["prefill"], *workers["decode"]]:
            wait_until("it holds nothing", server.holds_nothing)
            assert server.stop() == 0
    finally:
        for process in [router, *(server.process for servers in workers.values() for server in servers)]:
            process.kill()


def total(servers, name):
    return sum(server.metric(name) for server in servers)


def test_answers_are_those_of_the_library(routed, alone):
    url, prefill, decode = routed
    requests = [{"temperature": 0}, {"temperature": 0.9, "seed": 7}, {"temperature": 0.7, "seed": 1, "frequency_penalty": 0.5}]
    for more in requests:
        for thing in ANSWERS:
            want, got = (client_of(to).chat.completions.create(model="tiny", messages=ask(thing), **more) for to in (alone.url, url))
            assert got.choices[0].message.content == want.choices[0].message.content
            stream = client_of(url).chat.completions.create(model="tiny", messages=ask(thing), stream=True, **more)
            assert "".join(c.choices[0].delta.content or "" for c in stream) == want.choices[0].message.content
    asked = 2 * len(requests) * len(ANSWERS)
    assert total(decode, "cleave_kv_imports_total") == asked and total(decode, "cleave_requests_recomputed_total") == 0
    assert all(server.metric("cleave_generation_tokens_total") > 0 for server in [*prefill, *decode]), "every worker has its share"


def test_text_completions(routed, alone):
    more = {"model": "tiny", "prompt": "anna lives in", "max_tokens": 30, "temperature": 0.8, "seed": 3}
    want, got = (client_of(to).completions.create(**more) for to in (alone.url, routed[0]))
    assert got.choices[0].text == want.choices[0].text and got.usage.completion_tokens == 30
