"""gRPC workers that lose their peers, end, change roles, and are attacked."""

import datetime
import json
import os
import signal
import socket
import subprocess
import time

import grpc
import pytest
from grpc_client import (CODES, LANGUAGES, TIMEOUT, Worker, copy, disaggregated, endless, health_pb2, health_pb2_grpc, params, prefill,
                         question, secret_file, worker_pb2, write_model)
from servers import BINARIES, MODEL, get, post, wait_until
from test_grpc import refusal, take


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("grpc"))


@pytest.fixture(params=LANGUAGES)
def start(request, model, tmp_path):
    """Starts workers of a language that can hand KV to each other."""
    secret, started = secret_file(tmp_path), []

    def start(role="mixed", *options, of=model):
        started.append(Worker(request.param, of, "--role", role, "--secret-file", secret, *options))
        return started[-1]

    yield start
    for worker in started:
        if worker.process.poll() is None:
            wait_until("a worker holds nothing", worker.holds_nothing)
        worker.close()


@pytest.fixture
def prompt():
    return [1] + list(b"a prompt of tokens that any model with bytes has")


# ---- lost KV ----


def test_lost_tickets(start, prompt):
    q = question(prompt, 9)
    decode = start("decode")
    brief = start("prefill", "--kv-lease", 1)
    expired = prefill(brief, q)
    wait_until("the lease is over", brief.holds_nothing)
    refusal(lambda: decode.ask(copy(q, kv={"kv_transfer_params": expired})), CODES.UNAVAILABLE, "the KV of the prompt is lost")
    for garbage in ("AAAA", "A" * 4096, expired["cleave_ticket"][:-8] + "AAAAAAA="):
        refusal(lambda: decode.ask(copy(q, kv={"kv_transfer_params": params(cleave_ticket=garbage)})), CODES.UNAVAILABLE, "the KV of the prompt is lost")

    lasting = start("prefill")
    once = prefill(lasting, q)
    want = decode.ask(q)
    assert decode.ask(copy(q, kv={"kv_transfer_params": once})) == want
    refusal(lambda: decode.ask(copy(q, kv={"kv_transfer_params": once})), CODES.UNAVAILABLE, "the KV of the prompt is lost")

    elsewhere = question(prompt + [70], 9, kv={"kv_transfer_params": prefill(lasting, q)})
    refusal(lambda: decode.ask(elsewhere), CODES.INVALID_ARGUMENT, "the ticket is of another prompt")
    wait_until("the KV of a ticket that was refused is released", lasting.holds_nothing, 9)

    stranger = Worker(decode.language, MODEL, "--kv-lease", "1")  # another secret
    refusal(lambda: decode.ask(copy(q, kv={"kv_transfer_params": prefill(stranger, q)})), CODES.UNAVAILABLE, "the KV of the prompt is lost")
    stranger.close()
    assert decode.ask(q) == want


def test_a_killed_prefill_worker(start, prompt):
    """Another worker's chance, not the client's fault; also while other streams run."""
    decode, victim = start("decode"), start("prefill")
    q = question(prompt, 9)
    want = decode.ask(q)
    running = decode.open(endless(prompt))
    take(running, 3)
    tickets = [prefill(victim, q) for _ in range(4)]
    victim.kill()
    for ticket in tickets:
        refusal(lambda: decode.ask(copy(q, kv={"kv_transfer_params": ticket})), CODES.UNAVAILABLE, "")
    take(running, 3)
    running.cancel()
    assert disaggregated(start("prefill"), decode, q) == want


def test_no_room_for_a_token(start, prompt):
    worker = start("prefill", of=MODEL)  # with a context of 512 tokens
    q = question((prompt * 20)[:511], 0)
    assert len(worker.ask(q).tokens) == 1
    refusal(lambda: worker.ask(copy(q, token_ids={"ids": [5]})), CODES.INVALID_ARGUMENT, "prompt: ")


# ---- ends ----


@pytest.mark.parametrize("drain, tokens", [(0, 0), (600, 200)])
def test_termination(start, prompt, drain, tokens):
    worker = start("mixed", "--drain", drain)
    q = endless(prompt, stopping={"max_new_tokens": tokens})
    want = worker.ask(q) if tokens else None
    stream = worker.open(q)
    first = next(stream)
    worker.signal(signal.SIGTERM)
    if tokens:
        assert "".join(message.outputs.text for message in [first, *stream]) == want.text
    else:
        refusal(lambda: list(stream), CODES.UNAVAILABLE, "the server is shutting down")
    assert worker.process.wait(60) == 0


def test_a_client_that_does_not_read_does_not_delay_the_end(start, prompt):
    worker = start("mixed", "--drain", "0")
    deaf = [worker.open(endless(prompt, response={"output_candidates": {"top_n": 100}})) for _ in range(4)]
    for stream in deaf:
        next(stream)
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(30) == 0


def test_new_requests_are_refused_at_the_end(start, prompt):
    worker = start("mixed", "--drain", "600")
    running = worker.open(endless(prompt))
    take(running, 1)
    assert worker.serving()
    worker.signal(signal.SIGTERM)
    wait_until("bad health", lambda: not worker.serving())
    refusal(lambda: worker.ask(question(prompt, 1)), CODES.UNAVAILABLE, "the server is shutting down")
    take(running, 3)
    running.cancel()
    assert worker.process.wait(60) == 0


def test_drain(start, prompt):
    worker = start()
    running = worker.open(endless(prompt))
    take(running, 1)
    assert worker.worker.Drain(worker_pb2.DrainRequest(timeout_seconds=1), timeout=TIMEOUT).running == 1
    assert worker.worker.GetLoad(worker_pb2.GetLoadRequest(), timeout=TIMEOUT).draining and not worker.serving()
    refusal(lambda: worker.ask(question(prompt, 1)), CODES.UNAVAILABLE, "the server is shutting down")
    take(running, 3)
    running.cancel()
    assert worker.worker.Drain(worker_pb2.DrainRequest(), timeout=TIMEOUT).running == 0


# ---- roles ----


def test_roles(start, prompt):
    """A worker switches its role. Streams go on, and the proof counts them."""
    worker = start("prefill")
    q = endless(prompt, stopping={"max_new_tokens": 300})
    want = worker.ask(q)
    stream = worker.open(q)
    seen, steps = next(stream).outputs.text, 0
    for role in (worker_pb2.ROLE_DECODE, worker_pb2.ROLE_PREFILL, worker_pb2.ROLE_MIXED, worker_pb2.ROLE_DECODE):
        state = worker.worker.SetRole(worker_pb2.SetRoleRequest(role=role), timeout=TIMEOUT)
        assert state.role == role and state.since_step >= steps
        assert worker.worker.GetRole(worker_pb2.GetRoleRequest(), timeout=TIMEOUT) == state
        assert worker.worker.GetLoad(worker_pb2.GetLoadRequest(), timeout=TIMEOUT).role == role
        steps = state.since_step
        seen += next(stream).outputs.text
    assert seen + "".join(message.outputs.text for message in stream) == want.text
    refusal(lambda: worker.worker.SetRole(worker_pb2.SetRoleRequest(), timeout=TIMEOUT), CODES.INVALID_ARGUMENT, "role: must be ROLE_MIXED")


def test_roles_over_http(start, prompt):
    worker = start("prefill")
    q = question(prompt, 9)
    want = worker.ask(q)
    for body in (b'{"role": "both"}', b'{"role": 1}', b"[]", b"?", b""):
        status, answer = post(worker.url + "/role", body)
        assert status == 400 and answer["error"]["param"] == "role", answer
    for role in ("decode", "mixed", "prefill", "decode"):
        status, state = post(worker.url + "/role", json.dumps({"role": role}).encode())
        assert status == 200 and state["role"] == role and set(state["in_flight"]) == {"prefilling", "decoding", "waiting", "importing"}
        moment = datetime.datetime.fromisoformat(state["since"])
        assert abs(moment.timestamp() - time.time()) < 60
        assert {**json.loads(get(worker.url + "/role")[1]), "since": state["since"]} == state
        assert worker.worker.GetRole(worker_pb2.GetRoleRequest(), timeout=TIMEOUT).since_step == state["since_step"]
    assert worker.ask(q) == want and worker.health()[1]["role"] == "decode"


def test_many_switches_at_once(start):
    worker = start()
    roles = [worker_pb2.ROLE_PREFILL, worker_pb2.ROLE_DECODE, worker_pb2.ROLE_MIXED] * 10
    calls = [worker.worker.SetRole.future(worker_pb2.SetRoleRequest(role=role), timeout=TIMEOUT) for role in roles]
    assert [call.result().role for call in calls] == roles


def test_load(start, prompt):
    worker = start("mixed", "--kv-lease", 1)
    idle = worker.worker.GetLoad(worker_pb2.GetLoadRequest(), timeout=TIMEOUT)
    assert idle.blocks_total == idle.blocks_free and not idle.draining and idle.block_tokens and idle.max_sequences and idle.max_batch_tokens
    streams = [worker.open(endless(prompt)) for _ in range(3)]
    for stream in streams:
        take(stream, 3)
    busy = worker.worker.GetLoad(worker_pb2.GetLoadRequest(), timeout=TIMEOUT)
    assert busy.decoding == 3 and busy.blocks_free < busy.blocks_total and busy.decode_tokens_per_second > 0
    ticket = prefill(worker, question(prompt, 1))
    assert ticket and worker.worker.GetLoad(worker_pb2.GetLoadRequest(), timeout=TIMEOUT).exports == 1
    for stream in streams:
        stream.cancel()


# ---- addresses ----


def test_a_unix_socket(start, prompt, tmp_path):
    path = tmp_path / "grpc.socket"
    worker = start("mixed", "--grpc", f"unix:{path}")
    assert worker.grpc == str(path) and worker.ask(question(prompt, 3)).tokens
    assert worker.stop() == 0 and not path.exists()


@pytest.mark.parametrize("language", LANGUAGES)
def test_addresses_that_cannot_be(language):
    run = lambda *options: subprocess.run([BINARIES[language], "--listen", "127.0.0.1:0", *options], capture_output=True, text=True, timeout=TIMEOUT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:99999", "nowhere"):
            failed = run("--model", str(MODEL), "--grpc", address)
            assert failed.returncode in (1, 2) and failed.stderr, (address, failed)
    front = run("--role", "front", "--secret-file", os.devnull, "--grpc", "127.0.0.1:0")
    assert front.returncode == 2 and "--grpc: a front has no engine to serve" in front.stderr


# ---- attacks ----


def test_two_hundred_cancelled_streams(start, prompt):
    decode, prefill_worker = start("decode"), start("prefill")
    q = endless(prompt)
    for round_ in range(4):
        tickets = [prefill(prefill_worker, q) if i % 5 == 0 else None for i in range(50)]
        streams = [decode.open(copy(q, kv={"kv_transfer_params": ticket}) if ticket else q) for ticket in tickets]
        for i, stream in enumerate(streams):
            if i % 2 or tickets[i]:  # the others leave at any moment
                take(stream, 1 + round_)
        for stream in streams:
            stream.cancel()
    for worker in (decode, prefill_worker):
        wait_until("nothing is held", worker.holds_nothing)
    assert decode.ask(question(prompt, 9)) == prefill_worker.ask(question(prompt, 9))


def test_clients_that_do_not_read(start, prompt):
    """What they get waits in the worker, at most until the context is full. Others are served meanwhile, and a client that comes back has
    missed nothing."""
    worker = start(of=MODEL)  # with a context of 512 tokens
    q = endless(prompt)
    want, before = worker.ask(q), worker.memory()
    deaf = [worker.open(q) for _ in range(40)]
    for stream in deaf:
        next(stream)
    assert worker.ask(question(prompt, 9)).tokens
    wait_until("the engine has done its work", worker.holds_nothing)
    assert worker.memory() - before < 200
    for stream in deaf[:20]:
        assert sum(message.outputs.num_tokens for message in stream) == len(want.tokens) - 1
    for stream in deaf[20:]:
        stream.cancel()


def test_garbage(start, prompt):
    worker = start()
    host, port = worker.grpc.rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\0\0\0\x04\0\0\0\0\0"
    frames = [os.urandom(65536), b"GET / HTTP/1.1\r\n\r\n", preface + os.urandom(65536), preface + settings + b"\xff\xff\xff\x01\x04\0\0\0\x01" + b"a" * 100000,
              preface + settings + b"\0\0\x10\x01\x04\0\0\0\x01" + os.urandom(16), b""]
    for sent in frames:
        with socket.create_connection((host, int(port)), 10) as client:
            client.settimeout(1)
            try:
                client.sendall(sent)
                client.recv(1 << 16)
            except OSError:
                pass
    raw = worker.channel.unary_stream("/vllm.Inference/GenerateStream")
    for body in (os.urandom(1000), b"\xff" * 1000, b"\x0a\xff\xff\xff\xff\x0f", b"\x1a\x04\xff\xfe\xfd\xfc"):
        with pytest.raises(grpc.RpcError):
            list(raw(body, timeout=TIMEOUT))
    for metadata in ([("x-giant", "a" * (1 << 20))], [(f"x-{i}", "a" * 1000) for i in range(1000)]):
        try:
            worker.ask(question(prompt, 1), metadata)
        except grpc.RpcError as error:
            assert error.code() in (CODES.RESOURCE_EXHAUSTED, CODES.INTERNAL, CODES.UNAVAILABLE), error
    refusal(lambda: list(worker.channel.unary_stream("/vllm.Inference/Unknown")(b"", timeout=TIMEOUT)), CODES.UNIMPLEMENTED, "")
    assert worker.ask(question(prompt, 3)).tokens


def test_prompts_of_attackers(start, prompt):
    worker = start()
    nested = params(a=1)
    for _ in range(20):
        outer = params()
        outer.fields["a"].struct_value.CopyFrom(nested)
        nested = outer
    assert worker.ask(question(prompt, 1, kv={"kv_transfer_params": nested})).tokens
    refusal(lambda: worker.ask(question([5] * 10_000_000, 1)), CODES.INVALID_ARGUMENT, "prompt: 10000000 tokens")
    refusal(lambda: worker.ask(question(prompt, 1, kv={"kv_transfer_params": params(cleave_ticket="A" * (1 << 20), cleave_address="A" * (1 << 20))})),
            CODES.UNAVAILABLE, "the KV of the prompt is lost")
    for i in range(100):  # addresses where nobody is
        refusal(lambda: worker.ask(question(prompt, 1, kv={"kv_transfer_params": params(cleave_ticket="AAAA", cleave_address=f"{i:04}")})), CODES.UNAVAILABLE, "lost")
    assert worker.ask(question(prompt, 3)).tokens


def test_watched_health(start, prompt):
    worker = start()
    watch = health_pb2_grpc.HealthStub(worker.channel).Watch(health_pb2.HealthCheckRequest(service="vllm.Inference"), timeout=TIMEOUT)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    worker.signal(signal.SIGTERM)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert worker.process.wait(60) == 0
