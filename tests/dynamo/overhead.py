"""Measures the cost of Dynamo: the same requests straight to a worker and through Dynamo's frontend and sidecars, which take turns.

    overhead.py [SECONDS] [tiny|slow]

SECONDS of each run. `tiny` computes next to nothing, so that what is left is the way there and back; `slow` computes as much as a model of
18 million parameters. Prints a Markdown table. tools/dynamo.sh --overhead runs it.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from deployment import Deployment
from servers import MODEL, SMALL, Cluster, Server
from slow_model import write

STREAMS, TOKENS, ROUNDS = [1, 8, 32], 64, 3
PROMPT = "tom {} likes the colour green. the old farmer comes to the river. he sees a small boat and is happy."


async def stream(session, url, model, seed, row):
    body = {"model": model, "prompt": PROMPT.format(seed), "max_tokens": TOKENS, "temperature": 0.9, "seed": seed + 1, "stream": True, "ignore_eos": True}
    began = last = time.perf_counter()
    first = None
    async with session.post(url + "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                last = time.perf_counter()
                if first is None:
                    first = last - began
    row["TTFT"].append(first * 1000)
    row["ITL"].append((last - began - first) / (TOKENS - 1) * 1000)


async def measure(url, model, streams, seconds, seed):
    row = {"TTFT": [], "ITL": []}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(120)) as session:
        began = time.perf_counter()

        async def client(i):
            n = 0
            while time.perf_counter() - began < seconds:
                await stream(session, url, model, seed * 1_000_000 + i * 10_000 + n, row)
                n += 1

        await asyncio.gather(*(client(i) for i in range(streams)))
        row["tokens/s"] = len(row["TTFT"]) * TOKENS / (time.perf_counter() - began)
    return row


def at(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(seconds=5, model="tiny"):
    with tempfile.TemporaryDirectory() as directory:
        path = MODEL if model == "tiny" else Path(directory) / "slow"
        if model != "tiny":
            path.mkdir()
            write(path)
        setups = {
            "one worker": Server("go", "--listen", "127.0.0.1:0", "--model", path, *SMALL),
            "one worker, Dynamo": Deployment(mixed=1, model=path),
            "1 prefill + 1 decode, own front": Cluster("go", ["go"], ["go"], path),
            "1 prefill + 1 decode, Dynamo": Deployment(prefill=1, decode=1, model=path),
        }
        rows = {(streams, name): [] for streams in STREAMS for name in setups}
        for seed in range(ROUNDS):
            for streams, name in rows:
                rows[streams, name].append(asyncio.run(measure(setups[name].url, path.name, streams, seconds, seed)))
                print(streams, name, f"{rows[streams, name][-1]['tokens/s']:.0f} tokens/s", file=sys.stderr, flush=True)
        print("| streams | set-up | TTFT p50 | TTFT p95 | ITL p50 | tokens/s |\n| --- | --- | --- | --- | --- | --- |")
        for (streams, name), rounds in rows.items():
            ttft, itl = ([value for row in rounds for value in row[key]] for key in ("TTFT", "ITL"))
            speed = at([row["tokens/s"] for row in rounds], 0.5)
            print(f"| {streams} | {name} | {at(ttft, 0.5):.1f} ms | {at(ttft, 0.95):.1f} ms | {at(itl, 0.5):.2f} ms | {speed:.0f} |")
        for running in setups.values():
            running.stop()


if __name__ == "__main__":
    main(*[int(argument) if argument.isdigit() else argument for argument in sys.argv[1:]])
