"""Raw HTTP: requests that no client library sends, and parts of answers that none checks."""

import concurrent.futures
import json
import signal
import socket
import subprocess
import time
from urllib.parse import urlsplit

import pytest
import servers
from conftest import ask, mixed
from servers import BINARIES, LANGUAGES, MODEL, SMALL, Server, get, wait_until


def send(server, data, seconds=30):
    """Bytes as they are; everything that comes back until the server closes or says nothing more."""
    url = urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        while True:
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                break
            if not piece:
                break
            answer += piece
    return answer


def post(server, body, path="/v1/chat/completions", headers=()):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    head, _, rest = send(server, "\r\n".join(lines).encode() + b"\r\n\r\n" + body).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), head
    if b"transfer-encoding: chunked" in head.lower():
        whole = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            n = int(size, 16)
            whole, rest = whole + rest[:n], rest[n + 2:]
        rest = whole
    return int(head[9:12]), head.decode().lower(), rest


def post_signed(cluster, worker, body, path="/v1/chat/completions"):
    """Sends a request as a front does to a worker; returns status and JSON answer."""
    body = json.dumps(body).encode()
    return servers.post(worker.url + path, body, cluster.signed(worker.url, path, body))


def model_of(server):
    return json.loads(get(server.url + "/v1/models")[1])["data"][0]["id"]


BODIES = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}', b"[" * 100000,
          b'{"model": "tiny", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"model": 1e999, "messages": []}',
          b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 1e400}',
          b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 99999999999999999999999}',
          b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "n": -1}',
          b'{"model": "tiny", "messages": [{"role": "user", "content": {}}]}',
          b'{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}']


def test_nonsense_is_refused(server):
    for body in BODIES:
        status, head, answer = post(server, body)
        error = json.loads(answer)["error"]
        assert status == 400 and error["type"] == "invalid_request_error" and error["message"], (body[:80], answer)
        assert set(error) == {"message", "type", "param", "code"}
        assert "application/json" in head


def test_odd_text_is_text(server):
    for text in ["", "\u0000", "\U0001f600 \u4e16\u754c", "\\ud800", "<|end|><|assistant|>", "{{ 7 * 7 }}"]:
        status, _, answer = post(server, {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 4})
        assert status == 200, (text, answer)
    lone = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 2}'
    assert post(server, lone)[0] in (200, 400)


def test_methods_and_paths(server):
    assert get(server.url + "/v1/nothing")[0] == 404
    assert "error" in json.loads(get(server.url + "/v1/nothing")[1])
    status, body = get(server.url + "/v1/chat/completions")
    assert status == 405 and json.loads(body)["error"]["type"] == "invalid_request_error"
    status, body = get(server.url + "/")
    assert status == 200 and "<title>cleave</title>" in body


def test_a_body_that_is_too_large(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (17 << 20)
    url = urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(head)
        try:
            for _ in range(17):
                connection.sendall(b"x" * (1 << 20))
        except OSError:
            pass  # refused before all of it was read
        try:
            answer = connection.recv(65536)
        except OSError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")


def test_the_stream_is_server_sent_events(server):
    body = {"model": "tiny", "messages": ask("red box"), "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    status, head, answer = post(server, body)
    assert status == 200 and "content-type: text/event-stream" in head and "cache-control: no-cache" in head
    events = answer.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2]), "no event that a client does not know"


def trace(server):
    body = {"model": "tiny", "messages": ask("green bag"), "temperature": 0, "stream": True}
    _, _, answer = post(server, body, headers=["X-Cleave-Trace: 1"])
    events = [event.split("\n") for event in answer.decode().split("\n\n")]
    return [json.loads(event[1].removeprefix("data: ")) for event in events if event[0] == "event: trace"]


def test_the_trace(server):
    phases = trace(server)
    names = [phase["phase"] for phase in phases]
    at = {phase["phase"]: phase for phase in phases}
    assert names[0] == "prefill" and names[-1] == "done"
    assert 0 <= at["prefill"]["ms"] <= at["decode"]["ms"] <= at["done"]["ms"] < 60000
    if hasattr(server, "front"):
        assert set(names) == {"prefill", "handoff", "prefilled", "kv_ready", "decode", "done"}
        assert at["prefill"]["worker"] in [w.url for w in server.of("prefill")]
        assert at["handoff"]["worker"] in [w.url for w in server.of("decode")] and at["handoff"]["ticket_bytes"] > 100
        assert at["kv_ready"]["ok"] is True and at["prefilled"]["prompt_tokens"] > 20


def test_a_prefill_worker_only_prefills(server):
    for worker in getattr(server, "workers", []):
        if worker.role == "prefill":
            status, answer = post_signed(server, worker, {"model": "tiny", "messages": ask("red box")})
            assert status == 400 and "prefill" in answer["error"]["message"]


def test_a_ticket_that_is_none(server):
    for worker in getattr(server, "workers", []):
        if worker.role == "decode":
            for ticket in ["", "!!!", "AAAA", 7]:
                body = {"model": "tiny", "messages": ask("red box"), "temperature": 0, "kv_transfer_params": {"do_remote_prefill": True, "ticket": ticket}}
                status, answer = post_signed(server, worker, body)
                if status == 200:
                    assert answer["choices"][0]["message"]["content"] == "a key."
                else:
                    assert status == 400, answer


@pytest.mark.parametrize("language", LANGUAGES)
def test_options(language, tmp_path):
    def run(*options):
        done = subprocess.run([BINARIES[language], *options], capture_output=True, text=True, timeout=120)
        assert done.stdout == ""
        return done.returncode, done.stderr.strip()

    assert run("--no-such-option")[0] == 2
    assert run()[0] == 2
    assert run("--role", "chef", "--model", str(MODEL))[0] == 2
    assert run("--role", "decode", "--model", str(MODEL))[0] == 2
    assert run("--role", "front")[0] == 2, "a front needs the secret"
    status, text = run("--model", "/no/such/model", "--listen", "127.0.0.1:0")
    assert status == 1 and "/no/such/model" in text.splitlines()[-1]
    short = tmp_path / "secret"
    short.write_bytes(b"short")
    status, text = run("--role", "decode", "--model", str(MODEL), "--front", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--secret-file", str(short))
    assert status == 1 and "secret" in text
    running = mixed(language)
    status, text = run("--model", str(MODEL), "--listen", running.url.removeprefix("http://"))
    assert status == 1 and running.url.removeprefix("http://").rsplit(":")[1] in text
    assert running.stop() == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_shutting_down_finishes_what_runs(language, slow_model):
    server = mixed(language, slow_model)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        # Long enough to be seen running.
        body = {"model": model_of(server), "prompt": "the old farmer", "max_tokens": 100, "ignore_eos": True}
        running = pool.submit(post, server, body, "/v1/completions")
        while server.metric("cleave_num_requests_running") == 0:
            assert not running.done(), running.result()
            time.sleep(0.01)
        server.signal(signal.SIGTERM)
        status, _, answer = running.result(60)
        assert status == 200 and json.loads(answer)["usage"]["completion_tokens"] == 100
    assert server.process.wait(60) == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_shutting_down_cancels_what_has_no_more_time(language, slow_model):
    server = Server(language, "--listen", "127.0.0.1:0", "--model", slow_model, *SMALL, "--drain", "0")
    url = urlsplit(server.url)
    data = json.dumps({"model": model_of(server), "prompt": "the old farmer", "max_tokens": 450, "ignore_eos": True, "stream": True}).encode()
    with socket.create_connection((url.hostname, url.port), timeout=120) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        answer = connection.recv(1)
        server.signal(signal.SIGTERM)
        while piece := connection.recv(65536):
            answer += piece
    assert b'"service_unavailable"' in answer and b"[DONE]" not in answer
    assert server.process.wait(60) == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_more_than_fits_is_told_to_come_back(language, slow_model):
    """One sequence at a time and a queue of 1024: the third of these requests finds no place."""
    server = Server(language, "--listen", "127.0.0.1:0", "--model", slow_model, "--kv-mib", "64", "--threads", "1", "--max-sequences", "1")
    model = model_of(server)
    body = {"model": model, "prompt": ["the old farmer"] * 600, "max_tokens": 200, "ignore_eos": True, "stream": True}
    url = urlsplit(server.url)
    first = []
    for waiting in (599, 1199):
        connection = socket.create_connection((url.hostname, url.port), timeout=30)
        data = json.dumps(body).encode()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        first.append(connection)
        if waiting < 1024:
            wait_until("the first waits", lambda: server.metric("cleave_num_requests_waiting") >= 500)
    status, head, answer = post(server, body, "/v1/completions")
    assert status == 429 and "retry-after: 1" in head and json.loads(answer)["error"]["type"] == "rate_limit_error"
    for connection in first:
        connection.close()
    wait_until("what nobody waits for is cancelled", server.holds_nothing)
    assert post(server, {"model": model, "prompt": "the", "max_tokens": 1}, "/v1/completions")[0] == 200
    assert server.stop() == 0
