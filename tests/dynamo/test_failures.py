"""Parts that end in the middle of streams, by SIGTERM and by kill -9: with migration the texts are those of an undisturbed run."""

import os
import signal
from pathlib import Path

import pytest
from conftest import deployed
from servers import wait_until
from streams import Streams


@pytest.fixture(scope="module")
def deployment(slow_model):
    yield from deployed(prefill=2, decode=2, model=slow_model, engine_options=["--drain", "0", "--isolate"], frontend_options=["--migration-limit", "3"], grace=5)


@pytest.fixture(scope="module")
def wanted(deployment):
    texts, failures = start(deployment).finish()
    assert not any(failures), failures
    return texts


def start(deployment):
    return Streams(deployment.client(), deployment.model.name)


def end(worker, part, number):
    """Sends a signal to a part: the engine, the child that computes for it, the sidecar, or all. Returns what waits for its end."""
    if part == "child":
        [child] = children(worker.engine.process)
        os.kill(child, number)
        return lambda: wait_until("another child computes", lambda: child not in children(worker.engine.process) != [])
    processes = {"engine": [worker.engine.process], "sidecar": [worker.sidecar.process], "worker": [worker.sidecar.process, worker.engine.process]}[part]
    for process in processes:
        process.send_signal(number)
    return lambda: [process.wait(60) for process in processes]


def children(process):
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for thread in threads for pid in thread.read_text().split()]


def repair(deployment):
    """Starts again what has ended, in the same place, and waits until all serve."""
    wait_until("the frontend forgets sidecars that are gone", lambda: deployment.instances() == deployment.alive())
    for worker in deployment.workers:
        if worker.engine.process.poll() is not None:
            worker.start_engine()
        if not worker.sidecar.alive():
            worker.start_sidecar()
    deployment.wait_until_ready()


# A sidecar that is told to end cuts off its streams after a time of its own, so an operator tells the engine as well, which ends them in
# a way that the frontend continues elsewhere.
ENDS = [("decode", "engine", signal.SIGTERM), ("decode", "child", signal.SIGKILL), ("decode", "worker", signal.SIGTERM), ("decode", "sidecar", signal.SIGKILL),
        ("prefill", "engine", signal.SIGTERM), ("prefill", "child", signal.SIGKILL), ("prefill", "worker", signal.SIGTERM),
        ("prefill", "engine", signal.SIGKILL), ("prefill", "sidecar", signal.SIGTERM), ("prefill", "sidecar", signal.SIGKILL)]


def check_that_streams_survive(deployment, wanted, role, part, number):
    streams = start(deployment)
    victim, before = deployment.of(role)[0], deployment.migrations()
    if role == "decode":
        streams.wait_until_they_run_on(victim)
    ended = end(victim, part, number)
    texts, failures = streams.finish()
    ended()
    assert not any(failures), failures
    assert texts == wanted
    if role == "decode":
        assert deployment.migrations() > before
    repair(deployment)
    deployment.check_quiescent()


@pytest.mark.parametrize("role, part, number", ENDS, ids=lambda value: getattr(value, "name", value))
def test_texts_are_those_of_an_undisturbed_run(deployment, wanted, role, part, number):
    check_that_streams_survive(deployment, wanted, role, part, number)


def test_a_killed_decode_engine_ends_its_streams_only(deployment, wanted):
    """Its connections end without a gRPC status, and Dynamo 1.6.1 migrates no stream that ended like that."""
    streams = start(deployment)
    victim = deployment.of("decode")[0]
    streams.wait_until_they_run_on(*deployment.of("decode"))
    victim.engine.kill()
    texts, failures = streams.finish()
    assert not all(failures) and all(text == want for text, want, failure in zip(texts, wanted, failures) if not failure)
    repair(deployment)
    deployment.check_quiescent()
    texts, failures = start(deployment).finish()
    assert texts == wanted and not any(failures)
