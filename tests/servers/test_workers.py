"""Traffic between a front and its workers: closed to everybody else."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ANSWERS, ask, client_of
from servers import LANGUAGES, Cluster, get, post, wait_until

CHAT = "/v1/chat/completions"


@pytest.fixture(params=LANGUAGES)
def pair(request):
    """A front with a prefill and a decode worker, which soon forgets those that die."""
    language, other = request.param, LANGUAGES[-1]
    running = Cluster(language, [other], [language], front_options=["--forget-after", "1"])
    yield running
    for process in [*running.workers, running.front]:
        if process.process.poll() is None:
            process.kill()


class Trap:
    """A worker of an attacker's. It keeps what it is sent."""

    def __init__(self):
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                trap.requests.append((self.path, dict(self.headers), b""))
                self.send_response(200)
                self.end_headers()

            def do_POST(self):
                trap.requests.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(503)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.requests = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def report(self):
        return json.dumps({"url": self.url, "role": "decode", "model": "tiny", "running": 0, "waiting": 0, "address": "", "paired": {}}).encode()


def test_clients_cannot_add_workers(pair):
    trap = Trap()
    body = trap.report()
    assert post(pair.url + "/workers", body)[0] in (404, 405), "not where clients are served"
    stranger = pair.signed("front", "/workers", body, secret=b"x" * 32)
    old = pair.signed("front", "/workers", body, time_ms=1)
    elsewhere = pair.signed("front", "/workers/leave", body)
    other = pair.signed("front", "/workers", body + b" ")
    for headers in ({}, {"Authorization": "Cleave"}, {"Authorization": "Cleave 1 2 3 4"}, {"Authorization": "Bearer x"}, stranger, old, elsewhere, other):
        status, answer = post(pair.front.inside + "/workers", body, headers)
        assert status == 401 and answer["error"]["type"] == "authentication_error", (headers, answer)
    for thing in ANSWERS:
        assert client_of(pair).chat.completions.create(model="tiny", messages=ask(thing), temperature=0).choices[0].message.content == ANSWERS[thing]
    assert trap.requests == [] and len(pair.listed()) == 2


def test_clients_cannot_send_workers_away(pair):
    body = json.dumps({"url": pair.of("decode")[0].url}).encode()
    assert post(pair.front.inside + "/workers/leave", body)[0] == 401
    assert len(pair.listed("decode")) == 1


def test_a_signed_request_counts_once(pair):
    trap = Trap()
    body = trap.report()
    headers = pair.signed("front", "/workers", body)
    assert post(pair.front.inside + "/workers", body, headers)[0] == 200
    status, answer = post(pair.front.inside + "/workers", body, headers)
    assert status == 401 and "before" in answer["error"]["message"]


def test_workers_answer_their_front_only(pair):
    body = json.dumps({"model": "tiny", "messages": ask("red box"), "temperature": 0}).encode()
    decode, prefill = pair.of("decode")[0], pair.of("prefill")[0]
    for worker in (decode, prefill):
        for path in (CHAT, "/v1/completions"):
            assert post(worker.url + path, body)[0] == 401
        assert post(worker.url + CHAT, body, pair.signed(worker.url, CHAT, body, secret=b"x" * 32))[0] == 401
        assert post(worker.url + CHAT, body, pair.signed("front", CHAT, body))[0] == 401, "it was signed for the front"
        assert get(worker.url + "/health")[0] == 200
    assert post(decode.url + CHAT, body, pair.signed(prefill.url, CHAT, body))[0] == 401, "it was signed for another worker"
    headers = pair.signed(decode.url, CHAT, body)
    assert post(decode.url + CHAT, body.replace(b"red", b"blu"), headers)[0] == 401, "not what was signed"
    status, answer = post(decode.url + CHAT, body, pair.signed(decode.url, CHAT, body))
    assert status == 200 and answer["choices"][0]["message"]["content"] == "a key."


def test_dead_workers_are_forgotten(pair):
    pair.of("decode")[0].kill()
    wait_until("it is not listed any more", lambda: len(pair.listed() + pair.listed(state="dead")) == 1)


def test_a_worker_that_cannot_be_reached_gets_nothing(pair):
    """It reports, but where it says that it is nobody answers: requests go elsewhere at once."""
    body = json.dumps({"url": "http://127.0.0.1:1", "role": "decode", "model": "tiny"}).encode()

    def report():
        assert post(pair.front.inside + "/workers", body, pair.signed("front", "/workers", body))[0] == 200
        return pair.listed(state="dead")

    wait_until("it is listed", report)
    for thing in ANSWERS:
        report()
        assert client_of(pair).chat.completions.create(model="tiny", messages=ask(thing), temperature=0).choices[0].message.content == ANSWERS[thing]
    assert [w["url"] for w in report()] == ["http://127.0.0.1:1"]
    assert pair.front.metric("cleave_front_moved_total") == 0


@pytest.mark.skipif("go" not in LANGUAGES, reason="the Go server was not built")
def test_a_worker_changes_its_role():
    """Signed by whoever has the secret. The front learns of it, and answers stay right."""
    cluster = Cluster("go", ["go"], ["go", "go"])
    try:
        worker, path = cluster.of("decode")[0], "/role"
        late = json.dumps({"messages": ask("red box"), "kv_transfer_params": {"do_remote_decode": True}}).encode()
        assert post(worker.url + CHAT, late, cluster.signed(worker.url, CHAT, late))[0] == 503, "as if it had been a prefill worker before"
        for role, prefill, decode in [("prefill", 2, 1), ("decode", 1, 2)]:
            body = json.dumps({"role": role}).encode()
            assert post(worker.url + path, body)[0] == 401
            status, state = post(worker.url + path, body, cluster.signed(worker.url, path, body))
            assert status == 200 and state["role"] == role and set(state["in_flight"].values()) == {0}, state
            assert json.loads(get(worker.url + path)[1]) == state
            cluster.wait_for(prefill, decode)
            for thing in ANSWERS:
                answer = client_of(cluster).chat.completions.create(model="tiny", messages=ask(thing), temperature=0)
                assert answer.choices[0].message.content == ANSWERS[thing]
        cluster.check_quiescent()
    finally:
        cluster.stop()
