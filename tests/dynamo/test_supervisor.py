"""The supervisor follows Dynamo's planner: engines change their role while they serve, and no stream notices."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import deployed
from deployment import Etcd, die_with_parent
from servers import wait_until
from streams import Streams

SUPERVISOR = os.environ.get("CLEAVE_SUPERVISOR")
pytestmark = [pytest.mark.skipif(not Etcd.binary, reason="etcd is not there (Debian's etcd-server)"),
              pytest.mark.skipif(not SUPERVISOR, reason="the supervisor was not built")]


def role_of(worker):
    return worker.engine.health()[1]["role"]


class Planner:
    def __init__(self, environment):
        self.process = subprocess.Popen([sys.executable, Path(__file__).with_name("planner.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env=environment, preexec_fn=die_with_parent)
        self.expect("ready")

    def expect(self, line, seconds=120):
        """The planner's next line. One that hangs is killed, which ends its output."""
        watchdog = threading.Timer(seconds, self.process.kill)
        watchdog.start()
        try:
            assert self.process.stdout.readline() == line + "\n", f"the planner did not print {line!r} within {seconds} s"
        finally:
            watchdog.cancel()

    def decide(self, prefill, decode):
        self.process.stdin.write(f"{prefill} {decode}\n")
        self.process.stdin.flush()

    def wait_until_done(self):
        self.expect("done")


@pytest.fixture
def deployment(slow_model, tmp_path):
    """Three engines, which the supervisor brings into Dynamo; `planner` decides."""
    etcd = Etcd(tmp_path)
    parts = [etcd.process]

    def run(name, command, environment):
        log = open(tmp_path / f"{name}.log", "ab")
        parts.append(subprocess.Popen([str(word) for word in command], env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent))
        return parts[-1]

    for running in deployed(prefill=1, decode=2, model=slow_model, sidecars=False, frontend_options=["--migration-limit", "3"]):
        environment = {**running.environment, "ETCD_ENDPOINTS": etcd.url}
        running.planner = Planner(environment)
        workers = [argument for worker in running.workers for argument in ("--worker", worker.grpc)]
        running.supervisor = run("supervisor", [SUPERVISOR, "--etcd", etcd.url, "--drain", "20s", "--system-port", 18100 + os.getpid() % 10000, *workers, "--",
                                                sys.executable, "-m", "dynamo.vllm.sidecar"], environment)
        try:
            yield running
            running.supervisor.terminate()
            assert running.supervisor.wait(60) == 0
            assert running.instances() == {}
        finally:
            sys.stderr.write((tmp_path / "supervisor.log").read_text()[-6000:])
            for part in [*parts, running.planner.process]:
                part.kill()


def test_roles_follow_the_planner(deployment):
    wait_until("the supervisor starts with the roles that engines have", lambda: deployment.instances() == {"prefill": 1, "backend": 2})
    wait_until("a request is served", deployment.serves)
    engines = [worker.engine.process.pid for worker in deployment.workers]
    wanted, failures = Streams(deployment.client(), deployment.model.name).finish()
    assert not any(failures), failures
    for prefill, decode in [(2, 1), (1, 1), (1, 2)]:
        streams = Streams(deployment.client(), deployment.model.name)
        wait_until("streams run", lambda: all(streams.texts))
        deployment.planner.decide(prefill, decode)
        deployment.planner.wait_until_done()
        texts, failures = streams.finish()
        assert not any(failures), failures
        assert texts == wanted
        wait_until("old sidecars are gone", lambda: deployment.instances() == {"prefill": prefill, "backend": decode})
    assert [worker.engine.process.pid for worker in deployment.workers] == engines and all(w.engine.process.poll() is None for w in deployment.workers)


def test_an_engine_that_comes_back_gets_its_role_again(deployment):
    wait_until("all serve", lambda: deployment.instances() == {"prefill": 1, "backend": 2})
    deployment.planner.decide(2, 1)
    deployment.planner.wait_until_done()
    [switched] = [worker for worker in deployment.of("decode") if role_of(worker) == "prefill"]
    switched.engine.kill()
    switched.start_engine()
    wait_until("it has the planner's role", lambda: role_of(switched) == "prefill")
    wait_until("the frontend knows it", lambda: deployment.instances() == {"prefill": 2, "backend": 1})
    wait_until("a request is served", deployment.serves)
