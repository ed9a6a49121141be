"""Examples of docs/dynamo.md: the demonstration runs, and every option in the Kubernetes manifest exists."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from deployment import free_port
from servers import BINARIES, ROOT

EXAMPLES = ROOT / "examples" / "dynamo"


def test_the_demonstration():
    environment = {**os.environ, "SERVER": BINARIES["go"], "PYTHON": sys.executable, "DYN_HTTP_PORT": str(free_port())}
    shown = subprocess.run([EXAMPLES / "demo.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert '"content":"a coin."' in shown.stdout
    assert re.search(r"decode worker: 0 prompt tokens computed, \d+ tokens generated, 1 prompts imported", shown.stdout), shown.stdout


@pytest.fixture(scope="module")
def components():
    manifest = yaml.safe_load((EXAMPLES / "disagg.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("nvidia.com/v1beta1", "DynamoGraphDeployment")
    return {component["type"]: component["podTemplate"]["spec"] for component in manifest["spec"]["components"]}


def options_of(*command):
    shown = subprocess.run(command, capture_output=True, text=True)
    return set(re.findall(r"--?([a-z][a-z-]+)", shown.stdout + shown.stderr))


def test_the_manifest(components):
    assert set(components) == {"frontend", "prefill", "decode"}
    known = {"frontend": options_of(sys.executable, "-m", "dynamo.frontend", "--help"),
             "sidecar": options_of(sys.executable, "-m", "dynamo.vllm.sidecar", "--help"), "engine": options_of(BINARIES["go"], "--help")}
    for role, pod in components.items():
        main, *engines = pod["containers"]
        assert main["name"] == "main", "the operator looks for that name"
        used = [("frontend" if role == "frontend" else "sidecar", main["args"]), *(("engine", engine["args"]) for engine in engines)]
        for program, arguments in used:
            options = {argument.removeprefix("--") for argument in arguments if argument.startswith("--")}
            assert options and options <= known[program], (program, options - known[program])
        if role != "frontend":
            [engine] = engines
            assert role in engine["args"] and role in main["args"]
            value = lambda container, option: container["args"][container["args"].index(option) + 1]
            assert value(engine, "--grpc") == value(main, "--grpc-endpoint")
            grace = {variable["name"]: variable["value"] for variable in main["env"]}["DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"]
            assert int(value(engine, "--drain")) < int(grace) < pod["terminationGracePeriodSeconds"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert all(mount["name"] in volumes for container in pod["containers"] for mount in container["volumeMounts"])
