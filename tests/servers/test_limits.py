"""Limits on what one client can do to others: bodies that take long to read, connections that ask nothing."""

import contextlib
import json
import resource
import socket
from urllib.parse import urlsplit

import pytest
from conftest import ask
from servers import LANGUAGES, MODEL, SMALL, Server, get, post, post_patiently, wait_until

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def parts(n):
    return {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * n}]}


def filled(start, item, end):
    """A body of the largest size that a server reads: `item`, a list element with its comma, as often as it fits."""
    elements = item * ((MOST_BYTES - len(start) - len(end)) // len(item))
    return start + elements.removesuffix(b",") + end


MOST_BYTES = 16 << 20
CHAT_AND = b'{"messages": [{"role": "user", "content": "hi"}], '
BODIES = {
    "braces": lambda: filled(b"[", b"{},", b"]"),
    "braces in an unknown field": lambda: filled(CHAT_AND + b'"more": [', b"{},", b"]}"),
    "brackets in a prompt": lambda: filled(b'{"prompt": [', b"[],", b"]}"),
    "content parts": lambda: filled(b'{"messages": [{"role": "user", "content": [', b'{"type":"text","text":"a"},', b"]}]}"),
    "messages": lambda: filled(b'{"messages": [', b'{"role":"user","content":"hi"},', b"]}"),
    "biases": lambda: CHAT_AND + b'"logit_bias": {' + b",".join(b'"%d":1' % i for i in range(1400000)) + b"}}",
    "strings": lambda: filled(CHAT_AND + b'"stop": [', b'"x",', b"]}"),
}


@pytest.mark.parametrize("name", BODIES)
def test_reading_a_body_takes_linear_time(server, name):
    """The largest bodies have 600,000 to 5,000,000 elements, and a reader that goes over those before for each of them takes
    from several minutes to hours on today's machines. Linear time is a second or two, so that a machine of a tenth of the speed
    has time, too. On one of ten times the speed the bodies of few elements show nothing, the others still do."""
    body = BODIES[name]()
    assert MOST_BYTES * 0.9 < len(body) <= MOST_BYTES
    status, answer = post_patiently(server.url + CHAT, body, timeout=100)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error", (status, answer)


def test_limits_on_what_is_taken(server):
    for body in (parts(10001), {"messages": MESSAGES * 10001}, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 6000}] * 2}):
        status, answer = post_patiently(server.url + CHAT, json.dumps(body).encode())
        assert status == 400 and answer["error"]["param"] == "messages", answer
    nested = b'{"model": "tiny", "messages": ' + b"[" * 64 + b"]" * 64 + b"}"
    status, answer = post_patiently(server.url + CHAT, nested)
    assert status == 400 and "64 levels" in answer["error"]["message"]


@pytest.mark.parametrize("path,body", [(CHAT, {"messages": [{"role": "user", "content": "the old farmer " * 1000000}]}),
                                       ("/v1/completions", {"prompt": "the old farmer " * 1000000})])
def test_text_that_cannot_fit_is_not_tokenised(server, path, body):
    """The answer names bytes: nobody has counted tokens."""
    status, answer = post_patiently(server.url + path, json.dumps(body).encode())
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 512 tokens" in answer["error"]["message"] and "15000000 bytes" in answer["error"]["message"]


def connect(server):
    url = urlsplit(server.url)
    return socket.create_connection((url.hostname, url.port), timeout=120)


@pytest.fixture(params=LANGUAGES)
def small(request):
    server = Server(request.param, "--listen", "127.0.0.1:0", "--model", MODEL, "--max-connections", "16", *SMALL)
    yield server
    assert server.stop() == 0


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET /hea", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{", HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n{"])
def test_connections_that_wait_make_room(small, sent):
    """Ten times as many as there may be, whatever of a request they have sent: the oldest go, and others are served."""
    with contextlib.ExitStack() as stack:
        waiting = []
        for _ in range(160):
            waiting.append(stack.enter_context(connect(small)))
            with contextlib.suppress(OSError):
                waiting[-1].sendall(sent)
        assert get(small.url + "/health")[0] == 200
        status, answer = post(small.url + CHAT, json.dumps({"messages": ask("red box"), "temperature": 0}).encode())
        assert status == 200 and answer["choices"][0]["message"]["content"] == "a key."
        with contextlib.suppress(ConnectionError):
            assert waiting[0].recv(1) == b"", "the oldest is closed"


@pytest.mark.parametrize("language", LANGUAGES)
def test_too_many_answers_at_once(language, slow_model):
    """No connection waits: the next is told to come back, and those that are answered go on. One sequence runs at a time,
    so the last of them ends thousands of tokens after it has begun."""
    server = Server(language, "--listen", "127.0.0.1:0", "--model", slow_model, "--max-connections", "16", "--max-sequences", "1", *SMALL)
    body = json.dumps({"messages": MESSAGES, "max_tokens": 450, "ignore_eos": True, "stream": True}).encode()
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(connect(server)) for _ in range(16)]
        for stream in streams:
            stream.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        for stream in streams:
            assert stream.recv(16).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            with connect(server) as refused: # says nothing: what it sent might meet a closed connection
                answer = b""
                while piece := refused.recv(65536):
                    answer += piece
                assert answer.startswith(b"HTTP/1.1 503") and b'"service_unavailable"' in answer
        first = b""
        while b"[DONE]" not in first:
            piece = streams[0].recv(65536)
            assert piece, "a stream that is answered is not closed"
            first += piece

    def served():
        try:
            return get(server.url + "/health")[0] == 200
        except OSError:
            return False

    wait_until("there is room again", served)
    assert server.stop() == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_half_a_head_is_not_waited_for(language):
    server = Server(language, "--listen", "127.0.0.1:0", "--model", MODEL, *SMALL)
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            while connection.recv(1024):
                pass # an answer, perhaps; then the end
    assert server.stop() == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_thousands_of_idle_connections(language):
    """More than a process may have descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    n = min(9000, hard - 200)
    server = Server(language, "--listen", "127.0.0.1:0", "--model", MODEL, *SMALL)
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            stack.enter_context(connect(server))
        assert get(server.url + "/health")[0] == 200
        assert post(server.url + CHAT, json.dumps({"messages": ask("red box")}).encode())[0] == 200
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert server.stop() == 0
