"""Starts the example servers and asks them what only their operators ask."""

import hashlib
import hmac
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "tiny"
PAGE = ROOT / "examples" / "web" / "index.html"
BINARIES = {"go": os.environ.get("CLEAVE_GO_SERVER"), "cpp": os.environ.get("CLEAVE_CPP_SERVER")}
LANGUAGES = [name for name, path in BINARIES.items() if path]


def speaks_grpc(language):
    """Whether a server has gRPC: that in C++ can be built without its packages."""
    refused = subprocess.run([BINARIES[language], "--listen", "127.0.0.1:0", "--model", os.devnull, "--grpc", "127.0.0.1:0"], capture_output=True, text=True)
    return "built without gRPC" not in refused.stderr

# Small enough that a worker runs into its limits, one thread each: several run at once on the machine of a test. At the end
# there is time for what runs on a slow machine, too.
SMALL = ["--kv-mib", "64", "--threads", "1", "--drain", "200"]


def get(url, timeout=60):
    """Status and body, whatever the status is."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def post(url, body, headers=None, timeout=60):
    """Status and JSON answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def post_patiently(url, body, timeout=60):
    """Asks again after a 503: a worker that a busy machine kept from reporting counts as dead for a moment."""

    def answered():
        status, answer = post(url, body, timeout=timeout)
        return status != 503 and (status, answer)

    return wait_until(f"an answer of {url} other than 503", answered, 4 * timeout)


def wait_until(what, holds, seconds=60.0):
    """Long enough for a machine that is busy: what does not come about does so on no machine."""
    end = time.monotonic() + seconds
    while True:
        last = holds()
        if last:
            return last
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)


class Server:
    """A process of one of the servers, which has said where it listens."""

    def __init__(self, language, *options):
        self.language = language
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([BINARIES[language], *map(str, options)], stdout=subprocess.PIPE, stderr=self.errors, text=True)
        watchdog = threading.Timer(120, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        while line.startswith(("workers join at ", "gRPC at ", "KV events at ")): # a front, a gRPC worker
            if line.startswith("workers"):
                self.inside = line.removeprefix("workers join at ").strip()
            if line.startswith("gRPC"):
                self.grpc = line.removeprefix("gRPC at ").strip()
            if line.startswith("KV"):
                self.kv_events = line.removeprefix("KV events at ").strip()
            line = self.process.stdout.readline()
        watchdog.cancel()
        if not line.startswith("listening on "):
            self.kill()
        assert line.startswith("listening on http://"), f"{language} {options}: {line!r}\n{self.log()}"
        self.url = line.removeprefix("listening on ").strip()

    def log(self):
        self.errors.seek(0)
        return self.errors.read()

    def health(self):
        status, body = get(self.url + "/health")
        return status, json.loads(body)

    def holds_nothing(self):
        """Nothing but the prefix cache has a block."""
        audit = self.health()[1]["audit"]
        assert audit["leaked"] == 0, audit
        return audit["by_requests"] == audit["by_transfers"] == audit["by_exports"] == 0

    def metric(self, name):
        """The sum of a metric over its labels."""
        lines = [line for line in get(self.url + "/metrics")[1].splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        """Ends it as an operator does; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(240)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{self.language} at {self.url} did not end on SIGTERM\n{self.log()}") from None

    def kill(self):
        self.process.kill()
        self.process.wait()


class Cluster:
    """A front with workers, each in a language of its own."""

    def __init__(self, front, prefill, decode, model=MODEL, options=SMALL, front_options=()):
        self.model, self.options = model, options
        secret = tempfile.NamedTemporaryFile()
        secret.write(os.urandom(32))
        secret.flush()
        self.secret = secret
        self.workers = []
        self.start_front(front, *front_options)
        for language in prefill:
            self.add("prefill", language)
        for language in decode:
            self.add("decode", language)
        self.wait_for(len(prefill), len(decode))

    def start_front(self, language, *options):
        self.front = Server(language, "--role", "front", "--listen", "127.0.0.1:0", "--workers-listen", "127.0.0.1:0", "--page", PAGE,
                            "--secret-file", self.secret.name, *options)
        self.url = self.front.url

    def signed(self, audience, path, body, secret=None, time_ms=None):
        """The headers of a request between a front and its workers."""
        key = hmac.digest(secret or Path(self.secret.name).read_bytes(), b"cleave requests between front and workers, version 1", "sha256")
        at, nonce, digest = str(time_ms or time.time_ns() // 1_000_000), uuid.uuid4().hex, hashlib.sha256(body).hexdigest()
        mac = hmac.new(key, "\n".join([audience, path, at, nonce, digest]).encode(), "sha256").hexdigest()
        return {"Authorization": f"Cleave {at} {nonce} {digest} {mac}", "Content-Type": "application/json"}

    def add(self, role, language, *options):
        worker = Server(language, "--role", role, "--listen", "127.0.0.1:0", "--model", self.model, "--front", self.front.inside,
                        "--secret-file", self.secret.name, *self.options, *options)
        worker.role = role
        self.workers.append(worker)
        return worker

    def of(self, role):
        return [worker for worker in self.workers if worker.role == role]

    def listed(self, role=None, state="up"):
        workers = json.loads(get(self.url + "/workers")[1])["workers"]
        return [w for w in workers if (role is None or w["role"] == role) and w["state"] == state]

    def wait_for(self, prefill, decode):
        def complete():
            exporters, importers = ({w["url"]: w for w in self.listed(role)} for role in ("prefill", "decode"))
            paired = all(set(exporters) <= set(w["paired"]) for w in importers.values())
            return len(exporters) == prefill and len(importers) == decode and paired

        wait_until(f"{prefill} prefill and {decode} paired decode workers", complete)

    def check_quiescent(self):
        """Nobody holds anything: at once where all went well, else when the leases of what was lost are over."""
        for worker in self.workers:
            if worker.process.poll() is None:
                wait_until(f"{worker.role} at {worker.url} holds nothing", worker.holds_nothing)

    def stop(self):
        statuses = [server.stop() for server in [*self.workers, self.front] if server.process.poll() is None]
        assert all(status == 0 for status in statuses), statuses
