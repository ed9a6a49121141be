"""Compares what cleave-plan predicts with what the example servers do under a public load generator (guidellm).

    plan_validate.py CLEAVE_PLAN GUIDELLM OUT [SECONDS]

Before and after each set-up is measured, the steps of a single engine are. Engines of separate pools share the machine's caches and
memory, so their steps are measured beside an engine of the other role as well. From these, from the time that an idle server adds to a short
request, and from the lengths of the requests cleave-plan predicts the time to the first token and between tokens. It does not
see the loaded servers. Prints a Markdown table, writes OUT.json, and exits with 1 if a median is off by more than 15 %.
"""

import http.client
import json
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

from load import STREAMS, measure
from servers import LANGUAGES, Cluster, Server
from slow_model import HEAD_DIM, KV_HEADS, write

TOLERANCE = 0.15
# Three times as slow as the model of other tests, so that the clients' own work weighs little beside a step.
LAYERS, POSITIONS = 18, 2048
# Lengths vary. With equal ones streams fall into step with each other or out of it by chance, and stay so for a whole run.
PROMPT, OUTPUT, SPREAD = 400, 64, 0.5
CONTEXT, BUDGET, THREADS, KV_MIB = 704, 512, 1, 512
IDLE_REQUESTS, IDLE_PROMPT = 30, 16
SETUPS = {"mixed": {"--mixed": "1x1"}, "1 prefill + 1 decode": {"--prefill": "1x1", "--decode": "1x1"}}
# Steps to measure: the option that takes them, and what else computes meanwhile.
ALONE = {"--samples": []}
SHARED = {"--disturbed-samples": ["--beside", "decode"], "--decode-disturbed-samples": ["--beside", "prefill"]}
STEPS = {"mixed": ALONE, "1 prefill + 1 decode": {**ALONE, **SHARED}}


class Plan:
    """The command, with what it knows about a model."""

    def __init__(self, binary, model, directory):
        self.binary, self.model, self.directory = binary, model, directory
        self.files = 0

    def calibrate(self, *beside):
        """Rows of measured steps, without their head."""
        file = self.new_file()
        command = [self.binary, "calibrate", "--model", self.model, "--threads", str(THREADS), "--budget", str(BUDGET),
                   "--context", str(CONTEXT), "--batch", str(max(STREAMS)), "--out", file, *beside]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        print(*beside, done.stderr.strip(), file=sys.stderr, flush=True)
        return file.read_text().splitlines()

    def new_file(self):
        self.files += 1
        return self.directory / f"steps-{self.files}.csv"

    def predict(self, samples, engines, streams, seconds, overhead, prompt, output, spread):
        """`samples` by the option that takes them, each as measured before and after."""
        kv_tokens = KV_MIB * 2**20 // (2 * LAYERS * KV_HEADS * HEAD_DIM * 2)
        options = {**engines, "--model": self.model, "--gpu": "epyc-2", "--budget": BUDGET,
                   "--max-sequences": 64, "--kv-tokens": kv_tokens, "--streams": streams, "--seconds": seconds,
                   "--request-overhead-ms": overhead, "--link-gb": 2, "--link-ms": 0, "--prompt": round(prompt),
                   "--output": round(output), "--spread": spread}
        for option, (before, after) in samples.items():
            options[option] = self.new_file()
            options[option].write_text("\n".join([*before, *after[1:]]) + "\n")
        command = [self.binary, "simulate", "--json", *(str(part) for option in options.items() for part in option)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def first_token(url, salt):
    """Seconds from a request to its first token, streamed, with a short prompt that no cache has."""
    connection = http.client.HTTPConnection(urllib.parse.urlparse(url).netloc, timeout=60)
    prompt = [100 + (salt * 31 + i * 7) % 600 for i in range(IDLE_PROMPT)]
    body = json.dumps({"prompt": prompt, "max_tokens": 2, "stream": True, "ignore_eos": True, "temperature": 0})
    begun = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    while not response.readline().startswith(b"data: "):
        pass
    seconds = time.perf_counter() - begun
    response.read()
    connection.close()
    return seconds


def start(setup, model):
    options = ["--kv-mib", KV_MIB, "--threads", THREADS, "--max-batch-tokens", BUDGET]
    language = LANGUAGES[0]
    if setup == "mixed":
        return Server(language, "--listen", "127.0.0.1:0", "--model", model, *options)
    return Cluster(language, [language], [language], model, options)


def compare(plan, guidellm, setup, engines, seconds):
    """Rows of the table for one set-up."""
    steps = STEPS[setup]
    before = {option: plan.calibrate(*beside) for option, beside in steps.items()}
    server = start(setup, plan.model)
    idle = sorted(first_token(server.url, salt) for salt in range(IDLE_REQUESTS))[IDLE_REQUESTS // 2]
    found = {streams: measure(guidellm, server.url, streams, seconds, seed, PROMPT, OUTPUT, SPREAD) for seed, streams in enumerate(STREAMS)}
    server.stop()
    samples = {option: (before[option], plan.calibrate(*beside)) for option, beside in steps.items()}
    alone = plan.predict(samples, engines, 1, 0.01, 0, IDLE_PROMPT, 2, 0)["ttft"]["p50"]
    overhead = max(0.0, idle - alone) * 1e3
    print(f"{setup}: an idle server adds {overhead:.1f} ms", file=sys.stderr, flush=True)
    for streams, row in found.items():
        if not row["requests"]:
            sys.exit(f"{setup}, {streams} streams: no request ended within {seconds} s; give more SECONDS")
        expected = plan.predict(samples, engines, streams, seconds, overhead, row["prompt_tokens"],
                                row["output_tokens"], SPREAD)
        for figure, key in (("TTFT", "ttft"), ("ITL", "itl")):
            measured, predicted = row[figure]["p50"], expected[key]["p50"] * 1e3
            yield {"streams": streams, "set-up": setup, "figure": figure, "measured": measured, "predicted": predicted,
                   "error": predicted / measured - 1, "requests": row["requests"]}


def main(binary, guidellm, out, seconds=60):
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "slow"
        model.mkdir()
        write(model, positions=POSITIONS, layers=LAYERS)
        plan = Plan(binary, model, Path(directory))
        rows = [row for setup, engines in SETUPS.items() for row in compare(plan, guidellm, setup, engines, seconds)]
    out.with_suffix(".json").write_text(json.dumps(rows, indent=1))
    print("| streams | set-up | figure | measured p50 | predicted p50 | error | requests |\n| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['streams']} | {row['set-up']} | {row['figure']} | {row['measured']:.1f} ms | {row['predicted']:.1f} ms | "
              f"{row['error']:+.0%} | {row['requests']} |")
    worst = max(abs(row["error"]) for row in rows)
    print(f"\nlargest error: {worst:.0%}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *(int(number) for number in sys.argv[4:]))
