"""Starts a deployment of Dynamo on this machine's loopback: engines, a sidecar beside each, a frontend.

Nothing but files connects them: no etcd, no NATS. Every process logs to a file, which a failed start or test shows.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import openai
from servers import MODEL, ROOT, SMALL, Server, get, wait_until

LEASE = 5  # seconds for KV that nobody fetches


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing outlives a test run that was killed


class Process:
    """A process of Dynamo's with its log."""

    def __init__(self, name, directory, arguments, environment, cwd=None):
        self.name, self.log_path = name, directory / f"{name}.log"
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", *map(str, arguments)], env=environment, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, cwd=cwd, preexec_fn=die_with_parent)

    def log(self):
        return self.log_path.read_text(errors="replace")

    def alive(self):
        return self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.name} did not end on SIGTERM\n{self.log()[-4000:]}") from None

    def kill(self):
        self.process.kill()
        self.process.wait()


class Etcd:
    """Where Dynamo's planner publishes, and deployments of several machines find each other."""

    binary = shutil.which("etcd") or shutil.which("etcd", path=ROOT / "target" / "etcd" / "usr" / "bin")

    def __init__(self, directory):
        self.url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.log = open(directory / "etcd.log", "ab")
        self.process = subprocess.Popen([self.binary, "--data-dir", directory / "etcd", "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
                                         "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"],
                                        stdout=self.log, stderr=self.log, preexec_fn=die_with_parent)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Worker:
    """An engine with its sidecar. `role` is mixed, prefill or decode, `language` that of the server."""

    def __init__(self, deployment, role, language, options):
        self.deployment, self.role, self.language = deployment, role, language
        self.name = f"{role}-{len(deployment.workers)}"
        self.grpc, self.options = f"127.0.0.1:{free_port()}", options
        self.starts = 0
        self.sidecar = None  # somebody else starts it
        self.start_engine()
        if deployment.sidecars:
            self.start_sidecar()

    def start_engine(self):
        secret = [] if self.role == "mixed" else ["--secret-file", self.deployment.secret]
        more = ["--kv-events", f"127.0.0.1:{free_port()}"] if self.deployment.kv_events else []
        more += ["--openengine"] if self.deployment.openengine else []
        self.engine = Server(self.language, "--role", self.role, "--listen", "127.0.0.1:0", "--grpc", self.grpc, "--model", self.deployment.model,
                             "--kv-lease", LEASE,
                             *secret, *more, *SMALL, *self.options)

    def start_sidecar(self):
        self.starts += 1
        roles = {"mixed": [], "prefill": ["--component", "prefill", "--disaggregation-mode", "prefill"], "decode": ["--disaggregation-mode", "decode"]}
        command = ["dynamo.vllm.sidecar"]
        if self.deployment.openengine:  # whose model is named as it is typed
            command = ["dynamo.trtllm.sidecar", "--model-path", self.deployment.model.name]
        self.sidecar = Process(f"sidecar-{self.name}-{self.starts}", self.deployment.directory,
                               [*command, "--grpc-endpoint", self.grpc, "--grpc-retry-interval-secs", 1, *roles[self.role]],
                               self.deployment.environment, self.deployment.model.parent)

    def running(self):
        return self.engine.metric("cleave_num_requests_running")

    def tokens(self):
        return self.engine.metric("cleave_generation_tokens_total")


class Deployment:
    """`mixed`, `prefill` and `decode` are a number of Go workers, or a list of languages."""

    def __init__(self, mixed=0, prefill=0, decode=0, model=MODEL, engine_options=(), frontend_options=(), grace=1, sidecars=True, kv_events=False, etcd=None, openengine=False):
        self.temporary = tempfile.TemporaryDirectory(prefix="cleave-dynamo-")
        self.directory = Path(self.temporary.name)
        self.model = model
        self.secret = self.directory / "kv.secret"
        self.secret.write_bytes(os.urandom(32))
        self.environment = {**os.environ, "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(self.directory / "discovery"),
                            "DYN_REQUEST_PLANE": "tcp", "DYN_EVENT_PLANE": "zmq", "DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_HTTP_HOST": "127.0.0.1",
                            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
                            "DYN_SYSTEM_HOST": "127.0.0.1", "DYN_EVENT_PLANE_HOST": "127.0.0.1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1",
                            "DYN_LOGGING_DISABLE_ANSI_COLORS": "1",
                            # Seconds after which a sidecar that was told to end cuts off its streams, and a prefill one stops to
                            # wait for KV to be fetched.
                            "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": str(grace), "DYN_PREFILL_DRAIN_TIMEOUT_S": "1"}
        if etcd:
            self.environment.update(DYN_DISCOVERY_BACKEND="etcd", ETCD_ENDPOINTS=etcd.url)
        self.workers, self.sidecars, self.kv_events, self.openengine = [], sidecars, kv_events, openengine
        try:
            self.start_frontend(frontend_options)
            for role, workers in (("mixed", mixed), ("prefill", prefill), ("decode", decode)):
                for language in ["go"] * workers if isinstance(workers, int) else workers:
                    self.add(role, *engine_options, language=language)
            if sidecars:
                self.wait_until_ready()
        except BaseException:
            self.show_logs()
            self.kill()
            raise

    def start_frontend(self, options):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.frontend = Process("frontend", self.directory, ["dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", port, *options], self.environment)

    def add(self, role, *options, language="go"):
        self.workers.append(Worker(self, role, language, options))
        return self.workers[-1]

    def of(self, role):
        return [worker for worker in self.workers if worker.role == role]

    def client(self, kind=openai.OpenAI):
        return kind(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=120)

    def instances(self):
        """How many workers the frontend knows, by component."""
        try:
            found = json.loads(get(self.url + "/health")[1]).get("instances") or []
        except (OSError, ValueError):
            return {}
        counts = {}
        for instance in found:
            if instance["endpoint"] == "generate":
                counts[instance["component"]] = counts.get(instance["component"], 0) + 1
        return counts

    def alive(self):
        """Live workers by component: the value of instances() once the frontend is up to date."""
        components = ["prefill" if worker.role == "prefill" else "backend" for worker in self.workers if worker.sidecar.alive()]
        return {component: components.count(component) for component in components}

    def migrations(self):
        """How many streams the frontend has continued at another worker."""
        lines = [line for line in get(self.url + "/metrics")[1].splitlines() if line.startswith("dynamo_frontend_model_migration_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if "ongoing" in line)

    def wait_until_ready(self):
        def known():
            for process in [self.frontend, *(worker.sidecar for worker in self.workers)]:
                assert process.alive(), f"{process.name} has ended\n{process.log()[-4000:]}"
            return self.instances() == self.alive()

        wait_until("the frontend knows all workers", known)
        wait_until("a request is served", self.serves)

    def serves(self):
        try:
            self.client().completions.create(model=self.model.name, prompt="the", max_tokens=1, temperature=0)
        except (openai.APIConnectionError, openai.NotFoundError, openai.InternalServerError):
            return False
        return True

    def check_quiescent(self):
        """Nobody holds anything: at once where all went well, else when the leases of what was lost are over."""
        for worker in self.workers:
            if worker.engine.process.poll() is None:
                wait_until(f"{worker.name} holds nothing", worker.engine.holds_nothing)

    def show_logs(self):
        for worker in self.workers:
            print(f"==== {worker.name}: engine\n{worker.engine.log()[-4000:]}", file=sys.stderr)
        for path in sorted(self.directory.glob("*.log")):
            print(f"==== {path.stem}\n{path.read_text(errors='replace')[-6000:]}", file=sys.stderr)

    def stop(self):
        """Ends everything as an operator does: whoever is asked for work first, last."""
        sidecars = [worker.sidecar for worker in self.workers if worker.sidecar]
        for process in [self.frontend, *sidecars]:
            process.signal(signal.SIGTERM)
        for process in [self.frontend, *sidecars]:
            process.stop()
        statuses = [worker.engine.stop() for worker in self.workers if worker.engine.process.poll() is None]
        assert all(status == 0 for status in statuses), statuses

    def kill(self):
        for process in [self.frontend] + [part for worker in self.workers for part in (worker.sidecar, worker.engine) if part]:
            process.kill()
