"""A public load generator (guidellm) against one process and against a front with a prefill and a decode worker.

    load.py GUIDELLM OUT [SECONDS]

The same machine, the same number of threads, the same requests: what differs is who computes them. The set-ups take
turns, as what else the machine does hits both then. Prints a Markdown table, writes OUT.svg and OUT.json.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from servers import LANGUAGES, MODEL, Cluster, Server
from slow_model import write

THREADS = 2
PROMPT, OUTPUT, STREAMS, ROUNDS = 800, 96, [1, 4, 8], 2
FIGURES = {"time_to_first_token_ms": "TTFT", "inter_token_latency_ms": "ITL"}


def lengths(kind, mean, spread):
    """guidellm's words for lengths drawn evenly from mean * (1 - spread) to mean * (1 + spread)."""
    limits = f",{kind}_tokens_min={round(mean * (1 - spread))},{kind}_tokens_max={round(mean * (1 + spread))}" if spread else ""
    return f"{kind}_tokens={mean}{limits}"


def measure(guidellm, url, streams, seconds, seed, prompt=PROMPT, output=OUTPUT, spread=0):
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out.json"
        subprocess.run([guidellm, "run", "--backend", f"kind=openai_http,target={url},model=slow,request_format=/v1/completions",
                        "--profile", f"kind=concurrent,streams={streams}", "--constraint", f"kind=max_duration,seconds={seconds}",
                        "--tokenizer", f"kind=hf_auto,model={MODEL}", "--disable-console", "--seed", f"kind=static,value={seed}",
                        "--data", f"kind=synthetic_text,{lengths('prompt', prompt, spread)},{lengths('output', output, spread)}",
                        "--output", f"kind=json,path={out}"], check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        metrics = json.loads(out.read_text())["benchmarks"][0]["metrics"]
    row = {"requests": metrics["time_to_first_token_ms"]["successful"]["count"],
           "prompt_tokens": metrics["prompt_token_count"]["successful"]["mean"],
           "output_tokens": metrics["output_token_count"]["successful"]["mean"],
           "failed": metrics["request_totals"]["errored"],
           "tokens_per_second": metrics["output_tokens_per_second"]["successful"]["mean"]}
    for key, name in FIGURES.items():
        percentiles = metrics[key]["successful"]["percentiles"]
        row[name] = {"p50": percentiles["p50"], "p95": percentiles["p95"]}
    return row


def median(rows, *keys):
    values = []
    for row in rows:
        for key in keys:
            row = row[key]
        values.append(row)
    return sorted(values)[len(values) // 2]


def table(results):
    lines = ["| streams | set-up | TTFT p50 | TTFT p95 | ITL p50 | ITL p95 | tokens/s |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for streams in STREAMS:
        for setup, rows in results.items():
            figures = [f"{median(rows[streams], name, p):.0f} ms" if name == "TTFT" else f"{median(rows[streams], name, p):.1f} ms"
                       for name in FIGURES.values() for p in ("p50", "p95")]
            lines.append(f"| {streams} | {setup} | {' | '.join(figures)} | {median(rows[streams], 'tokens_per_second'):.0f} |")
    return "\n".join(lines)


def plot(results):
    """Two panels, p50 as lines and p95 dashed, over the number of streams."""
    colours = dict(zip(results, ["#b45309", "#047857"]))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 280" font-family="sans-serif" font-size="12">',
             '<rect width="720" height="280" fill="white"/>']
    for panel, name in enumerate(FIGURES.values()):
        left, width, top, height = 60 + 350 * panel, 270, 40, 180
        most = max(median(rows[s], name, "p95") for rows in results.values() for s in STREAMS) * 1.1
        x = lambda i: left + width * i / (len(STREAMS) - 1)
        y = lambda value: top + height * (1 - value / most)
        parts.append(f'<text x="{left}" y="24" font-weight="bold">{name}, ms</text>')
        for i in range(5):
            value = most * i / 4
            parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#d4d4d8"/>'
                         f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0f}</text>')
        for i, streams in enumerate(STREAMS):
            parts.append(f'<text x="{x(i):.1f}" y="{top + height + 18}" text-anchor="middle">{streams}</text>')
        for setup, rows in results.items():
            for p, dash in (("p50", ""), ("p95", ' stroke-dasharray="5 4"')):
                points = " ".join(f"{x(i):.1f},{y(median(rows[s], name, p)):.1f}" for i, s in enumerate(STREAMS))
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[setup]}" stroke-width="2"{dash}/>')
    for i, (setup, colour) in enumerate(colours.items()):
        parts.append(f'<text x="{60 + 240 * i}" y="270" fill="{colour}">{setup}: p50, dashed p95</text>')
    parts.append('<text x="690" y="270" text-anchor="end">streams</text></svg>')
    return "\n".join(parts)


def main(guidellm, out, seconds=20):
    results = {"mixed": {s: [] for s in STREAMS}, "1 prefill + 1 decode": {s: [] for s in STREAMS}}
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "slow"
        model.mkdir()
        write(model, positions=2048)
        language = LANGUAGES[0]
        mixed = Server(language, "--listen", "127.0.0.1:0", "--model", model, "--kv-mib", 512, "--threads", THREADS)
        apart = Cluster(language, [language], [language], model, ["--kv-mib", 512, "--threads", THREADS // 2])
        # Another seed each time: prompts that a prefix cache has would measure that.
        for seed, (_, streams) in enumerate(itertools.product(range(ROUNDS), STREAMS)):
            for (setup, rows), url in zip(results.items(), (mixed.url, apart.url)):
                rows[streams].append(measure(guidellm, url, streams, seconds, seed))
                print(setup, streams, rows[streams][-1], file=sys.stderr, flush=True)
        mixed.stop()
        apart.stop()
    out.with_suffix(".json").write_text(json.dumps(results, indent=1))
    out.with_suffix(".svg").write_text(plot(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *(int(seconds) for seconds in sys.argv[3:]))
