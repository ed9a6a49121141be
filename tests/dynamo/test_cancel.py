"""Clients that leave: their requests end, and what was computed for them is released."""

import json
import socket
from urllib.parse import urlsplit

import pytest
from conftest import deployed
from servers import wait_until
from slow_model import write

TOKENS = 1800


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    """Streams that take long on any machine: a limit on tokens, not on time, tells whether they were cancelled."""
    yield from deployed(prefill=1, decode=1, model=write(tmp_path_factory.mktemp("long"), positions=2048))


def test_while_decoding(deployment):
    [decode] = deployment.of("decode")
    for i in range(4):
        before = decode.tokens()
        stream = deployment.client().completions.create(model=deployment.model.name, prompt=f"tom {i} likes", max_tokens=TOKENS, stream=True,
                                                        temperature=0.9, extra_body={"ignore_eos": True})
        for _, _ in zip(range(3), stream):
            pass
        stream.close()
        wait_until("nothing runs", lambda: decode.running() == 0)
        assert decode.tokens() - before < TOKENS - 1, "what a client left was cancelled"
    deployment.check_quiescent()


def test_while_prefilling(deployment):
    """Long prompts, from clients that leave once the prefill worker has begun."""
    [prefill], [decode] = deployment.of("prefill"), deployment.of("decode")
    before = decode.tokens()
    url = urlsplit(deployment.url)
    clients = []
    for i in range(12):
        body = json.dumps({"model": deployment.model.name, "prompt": f"{i} anna lives in paris. " * 15, "max_tokens": TOKENS, "stream": True,
                           "ignore_eos": True}).encode()
        clients.append(socket.create_connection((url.hostname, url.port)))
        clients[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                            + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    wait_until("it prefills", lambda: prefill.running() or decode.running())
    for client in clients:
        client.close()
    for worker in deployment.workers:
        wait_until("nothing runs", lambda worker=worker: worker.running() == 0)
    assert decode.tokens() - before < 12 * (TOKENS - 1), "what clients left was cancelled"
    deployment.check_quiescent()
    assert deployment.serves()
