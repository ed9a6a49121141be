"""Events of a server's prefix cache on ZeroMQ, read as a router does: with the official client of ZeroMQ and with the
msgpack that vLLM uses."""

import json
import os
import random
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq
from grpc_client import TIMEOUT, Worker, control_pb2, question
from kv_router import BLOCK, CLEARED, Router, replay, socket_to
from servers import BINARIES, LANGUAGES, MODEL, SMALL, Server, post

DRIVER = os.environ.get("CLEAVE_SIMULATED_CUDA")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def prompt_of(number, blocks=4):
    order = random.Random(number)
    return [order.randrange(10, 700) for _ in range(blocks * BLOCK)]


def run(server, *prompts):
    """Computes prompts, so that the prefix cache holds their blocks."""
    status, answer = post(server.url + "/v1/completions", json.dumps({"prompt": prompts, "max_tokens": 1}).encode(), timeout=600)
    assert status == 200, answer


class Publisher(Server):
    def __init__(self, language, *options):
        self.replays = f"tcp://127.0.0.1:{free_port()}"
        super().__init__(language, "--listen", "127.0.0.1:0", "--model", MODEL, "--kv-events", "127.0.0.1:0", "--kv-events-replay",
                         self.replays.removeprefix("tcp://"), *SMALL, *options)


@pytest.fixture(params=LANGUAGES)
def publisher(request):
    running = Publisher(request.param, "--kv-mib", "1")
    yield running
    assert running.stop() == 0, running.log()


def test_a_router_knows_what_is_cached(publisher):
    early, late = prompt_of(1), prompt_of(2)
    run(publisher, early)
    one = Router(publisher.kv_events)
    one.read_until(lambda: one.holds(early))
    run(publisher, late)
    one.read_until(lambda: one.holds(late))
    # Who comes late gets everything that is there, and so does everybody else once more.
    two = Router(publisher.kv_events)
    two.read_until(lambda: two.holds(early) and two.holds(late))
    one.read_until(lambda: one.last >= two.last)
    assert one.blocks == two.blocks
    # The cache is small, and a block leaves it for another.
    total, most = publisher.health()[1]["audit"]["total"], 0
    for number in range(3, 3 + total // 4 + 2):
        run(publisher, prompt_of(number))
        one.read_until(lambda: one.holds(prompt_of(number)))
        most = max(most, len(one.blocks))
    assert most <= total
    assert not one.holds(early)
    two.read_until(lambda: two.last >= one.last)
    assert one.blocks == two.blocks and one.missing is two.missing is None


def test_all_messages_once_more(publisher):
    one = Router(publisher.kv_events)
    for number in range(20):
        run(publisher, prompt_of(number))
    one.read_until(lambda: one.holds(prompt_of(19)))
    again = Router()
    again.read_again(publisher.replays, 0)
    assert again.last == one.last and again.blocks == one.blocks
    every = list(replay(publisher.replays, 0))
    assert [number for number, _ in every] == list(range(one.last + 1))
    assert list(replay(publisher.replays, one.last)) == every[-1:]
    for number in (one.last + 1, 2**63, 2**64 - 1):
        assert not list(replay(publisher.replays, number)), "there is nothing after the last message"
    # Malformed requests get no answer and disturb nobody.
    for frames in ([b""], [b"", b"1234567"], [b"x" * 1000] * 10):
        socket_to(publisher.replays, zmq.DEALER).send_multipart(frames)
    assert list(replay(publisher.replays, 0)) == every


def test_a_slow_subscriber_misses_messages_and_gets_them_again(publisher):
    slow, fast = Router(publisher.kv_events, RCVHWM=1, RCVBUF=4096), Router(publisher.kv_events)
    for router in (slow, fast):
        router.read()
    begin, number = slow.last, 0
    while fast.last < begin + 2000: # a thousand of them wait for the slow one, and some more in both systems' buffers
        prompts = [prompt_of(number + i) for i in range(100)]
        number += 100
        run(publisher, *prompts)
        fast.read_until(lambda: fast.holds(prompts[-1]))
    assert fast.missing is None
    # Once it reads again, messages come that were published after those that waited, and it sees which it has missed.
    with ThreadPoolExecutor() as pool:
        read = pool.submit(slow.read_until, lambda: slow.missing)
        while not read.done():
            number += 1
            run(publisher, prompt_of(number))
        read.result()
    assert slow.missing > begin + 900
    # It asks for those, and knows what the other knows.
    end = prompt_of(-1)
    run(publisher, end)
    fast.read_until(lambda: fast.holds(end))
    slow.read_again(publisher.replays, slow.missing)
    assert slow.last == fast.last and slow.blocks == fast.blocks


def test_the_end_with_subscribers(publisher):
    """One reads, one does not, one has asked for everything once more and does not read that, and one does not even speak ZeroMQ."""
    run(publisher, prompt_of(1))
    reads, sleeps = Router(publisher.kv_events), Router(publisher.kv_events, RCVHWM=1)
    for router in (reads, sleeps):
        router.read_until(lambda: router.holds(prompt_of(1)))
    run(publisher, prompt_of(2))
    reads.read_until(lambda: reads.holds(prompt_of(2)))
    asks = socket_to(publisher.replays, zmq.DEALER, RCVHWM=1)
    for _ in range(100):
        asks.send_multipart([b"", bytes(8)])
    asks.recv_multipart()
    host, port = publisher.kv_events.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as mute:
        mute.sendall(b"\xff")
        assert publisher.stop() == 0
    assert "Traceback" not in publisher.log() and "terminate" not in publisher.log()


def events_of(*options):
    """The events of a server after two requests with a common beginning, and a third with it in an answer."""
    server = Publisher(*options)
    first = prompt_of(1)
    run(server, first)
    run(server, first[:2 * BLOCK] + prompt_of(2))
    run(server, prompt_of(3, blocks=1))
    router = Router(server.kv_events)
    router.read_until(lambda: CLEARED in router.events and router.holds(prompt_of(3, blocks=1)))
    again = Router()
    again.read_again(server.replays, 0)
    computed = server.metric("cleave_multiprocessors")
    assert server.stop() == 0
    events = list(again.by_block())
    begin = max(at for at, event in enumerate(events) if event[0] == "AllBlocksCleared") # the snapshot for the router
    return events[:begin], sorted(events[begin:], key=str), computed


@pytest.mark.parametrize("language", LANGUAGES)
def test_salts_and_sources_over_grpc(language):
    """Blocks with a salt carry its text, as routers know it. Nobody is told of blocks that only one request can use."""
    replays = f"127.0.0.1:{free_port()}"
    worker = Worker(language, MODEL, "--kv-events", "127.0.0.1:0", "--kv-events-replay", replays)
    [source] = worker.control.GetKvEventSources(control_pb2.GetKvEventSourcesRequest(), timeout=TIMEOUT).sources
    assert (source.transport, source.endpoint, source.replay_endpoint) == ("zmq", worker.kv_events, f"tcp://{replays}")
    assert (source.topic, source.encoding, source.schema_version, source.buffer_steps, source.hwm) == ("kv-events", "msgpack", 1, 10000, 1000)
    router = Router(source.endpoint)
    router.read()
    prompts = {name: prompt_of(number) for number, name in enumerate(["tenant", "another", "alone", "open"])}
    for name, kv in [("tenant", {"cache_salt": "tenant"}), ("another", {"cache_salt": "dynamo-cache-salt:another"}),
                     ("alone", {"bypass_prefix_cache": True}), ("open", {})]:
        worker.ask(question(prompts[name], 1, kv=kv))
    router.read_until(lambda: router.holds(prompts["open"]))
    for name, salt in [("tenant", "tenant"), ("another", "another")]:
        assert router.holds(prompts[name], salt) and not router.holds(prompts[name])
    assert not {tuple(prompts["alone"][:BLOCK])} & {tokens for _, tokens, _ in router.blocks.values()}
    assert worker.stop() == 0
    worker.close()


@pytest.mark.skipif(len(LANGUAGES) < 2, reason="only one server")
def test_both_servers_publish_the_same():
    assert events_of("go")[:2] == events_of("cpp")[:2]


@pytest.mark.skipif(not DRIVER, reason="no simulated driver")
@pytest.mark.parametrize("language", LANGUAGES)
def test_blocks_on_a_device(language, monkeypatch):
    """Their events are those of blocks on the CPU, whose medium is the one in which the engine computes, too."""
    on_cpu = events_of(language)
    monkeypatch.setenv("LD_LIBRARY_PATH", DRIVER)
    on_device = events_of(language, "--device", "0", "--max-batch-tokens", "512")
    assert on_device[:2] == on_cpu[:2]
    assert on_device[2] > 0 and not on_cpu[2], "the second is on a device"


@pytest.mark.parametrize("language", LANGUAGES)
def test_options_that_cannot_be(language):
    model = ["--model", MODEL, "--listen", "127.0.0.1:0"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        for status, *options in [
            (2, *model, "--kv-events-replay", "127.0.0.1:0"),
            (2, "--role", "front", "--secret-file", MODEL / "config.json", "--kv-events", "127.0.0.1:0"),
            (1, *model, "--kv-events", taken),
            (1, *model, "--kv-events", "127.0.0.1:0", "--kv-events-replay", taken),
        ]:
            ended = subprocess.run([BINARIES[language], *map(str, options)], capture_output=True, text=True, timeout=120)
            assert ended.returncode == status and "listening" not in ended.stdout
            assert "--kv-events" in ended.stderr or taken in ended.stderr, ended.stderr
