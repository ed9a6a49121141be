"""A client of the gRPC protocols in examples/proto, whose code is generated when the tests begin."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import grpc
import grpc_tools
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_tools import protoc
from servers import LANGUAGES, MODEL, ROOT, Server, speaks_grpc

LANGUAGES = [language for language in LANGUAGES if speaks_grpc(language)]

_generated = tempfile.TemporaryDirectory(prefix="cleave-protos-")
for _root, _file in (("vllm", "control.proto"), ("vllm", "inference.proto"), (".", "cleave/v1/worker.proto")):
    _include = [f"-I{ROOT / 'examples' / 'proto' / _root}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    assert protoc.main(["", *_include, f"--python_out={_generated.name}", f"--grpc_python_out={_generated.name}", _file]) == 0
sys.path.append(_generated.name)

import control_pb2  # noqa: E402
import control_pb2_grpc  # noqa: E402
import inference_pb2 as pb  # noqa: E402
import inference_pb2_grpc  # noqa: E402
from cleave.v1 import worker_pb2, worker_pb2_grpc  # noqa: E402

CODES = grpc.StatusCode
TIMEOUT = 60
CONTEXT = 1 << 14  # longer than the model was trained for, so that some answers end only when a test ends them
FACTS = "the red box holds a key. anna lives in paris. the blue jar holds a coin. tom likes the colour green. "


def write_model(directory):
    """The tiny model with a long context."""
    target = Path(directory) / "tiny"
    shutil.copytree(MODEL, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return target


class Worker(Server):
    """A server with clients of its services."""

    def __init__(self, language, model, *options):
        options = [option for option in options if option is not None]
        if "--grpc" not in options:
            options += ["--grpc", "127.0.0.1:0"]
        super().__init__(language, "--listen", "127.0.0.1:0", "--model", model, "--kv-mib", 16, "--threads", 1, *options)
        self.target = f"unix:{self.grpc}" if "/" in self.grpc else self.grpc
        self.channel = grpc.insecure_channel(self.target)
        self.inference = inference_pb2_grpc.InferenceStub(self.channel)
        self.control = control_pb2_grpc.ControlStub(self.channel)
        self.worker = worker_pb2_grpc.WorkerStub(self.channel)

    def serving(self, service="vllm.Inference"):
        answer = health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def tokens(self, text):
        """Token ids of a text."""
        q = pb.GenerateRequest(text=text, stopping={"max_new_tokens": 1}, response={"prompt_token_ids": True})
        return list(self.inference.Generate(q, timeout=TIMEOUT).prompt_info.token_ids)

    def open(self, q, metadata=None):
        return self.inference.GenerateStream(q, timeout=TIMEOUT, metadata=metadata)

    def ask(self, q, metadata=None):
        return Answer(self.open(q, metadata))

    def memory(self):
        """Resident memory in MiB."""
        [line] = [line for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024

    def close(self):
        self.channel.close()
        if self.process.poll() is None:
            self.kill()


class Answer:
    """A whole answer, with the checks that hold for every one."""

    def __init__(self, stream):
        self.messages = list(stream)
        outputs = [message.outputs for message in self.messages]
        assert [message.HasField("prompt_info") for message in self.messages] == [True] + [False] * (len(outputs) - 1)
        assert [output.HasField("finish_info") for output in outputs] == [False] * (len(outputs) - 1) + [True]
        assert all(output.num_tokens == len(output.token_ids) for output in outputs)
        self.text = "".join(output.text for output in outputs)
        self.tokens = [token for output in outputs for token in output.token_ids]
        self.logprobs = [logprob for output in outputs for logprob in output.logprobs]
        self.ranks = [rank for output in outputs for rank in output.ranks]
        self.candidates = [candidates for output in outputs for candidates in output.candidate_tokens]
        self.finish = outputs[-1].finish_info
        assert self.finish.num_output_tokens == len(self.tokens)

    def __eq__(self, other):
        mine, others = ({**vars(answer)} for answer in (self, other))
        for fields in (mine, others):
            del fields["messages"], fields["finish"]
        return mine == others and self.finish.finish_reason == other.finish.finish_reason

    def __repr__(self):
        return f"{self.text!r} {self.tokens} {self.finish}"


def question(tokens, limit, **fields):
    """A request as Dynamo's sidecar sends it."""
    q = pb.GenerateRequest(request_id="one", token_ids={"ids": tokens}, temperature=1, sampling={"num_sequences": 1, "top_k": 0, "min_p": 0, "seed": 7},
                           stopping={"max_new_tokens": limit, "stop_token_ids": [1, 2]}, response={"output_text": True, "output_token_ids": True}, kv={})
    q.MergeFrom(pb.GenerateRequest(**fields))
    return q


def copy(q, **fields):
    other = pb.GenerateRequest()
    other.CopyFrom(q)
    other.MergeFrom(pb.GenerateRequest(**fields))
    return other


def endless(tokens, **fields):
    """A request that somebody else ends."""
    q = question(tokens, 0)
    q.stopping.ignore_eos = True
    del q.stopping.stop_token_ids[:]
    return copy(q, **fields)


def params(**values):
    struct = Struct()
    struct.update(values)
    return struct


def prefilled(q):
    """The request that a router sends to the prefill worker."""
    return copy(q, stopping={"max_new_tokens": 1, "min_new_tokens": 1}, kv={"kv_transfer_params": params(do_remote_decode=True)})


def prefill(worker, q):
    """The kv_transfer_params that a prefill worker answers with."""
    answer = worker.ask(prefilled(q))
    assert len(answer.messages) == 1 and answer.finish.finish_reason == pb.FinishInfo.LENGTH
    return answer.finish.kv_transfer_params


def disaggregated(prefill_worker, decode_worker, q):
    return decode_worker.ask(copy(q, kv={"kv_transfer_params": prefill(prefill_worker, q)}))


def secret_file(directory):
    path = Path(directory) / "secret"
    path.write_bytes(os.urandom(32))
    return path
