"""The benchmark of `make gpu-check` with torch and transformers: the same weights, shapes and device.

Prints a line of JSON for each figure as it comes: {"what", "value", "how"}. Decoding runs with a static cache, plainly and
with torch.compile; whoever reads takes the better. The cache is not filled by a prompt: with a static cache, attention goes
over all of it whatever it holds. The sampler is argmax on the device.
"""

import argparse
import json
import sys
import time

BUDGET = {"until": 0.0}


def say(**fields):
    print(json.dumps(fields), flush=True)


def left():
    return BUDGET["until"] - time.monotonic()


def best_of(torch, body, times, repeats=3):
    """Seconds of one run of `body`: the best mean of `times` runs."""
    best = float("inf")
    for _ in range(repeats):
        if left() < 0:
            break
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(times):
            body()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begun) / times)
    return best


def device_rates(torch):
    a = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    b.copy_(a)
    seconds = best_of(torch, lambda: b.copy_(a), 4)
    say(what="copy on the device", value=2 * a.numel() / seconds / 1e9, device=True, how="torch copy_")
    del a, b
    for m, n, k in ((8192, 8192, 8192), (8192, 14336, 4096)):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
        torch.matmul(x, w.t())
        seconds = best_of(torch, lambda x=x, w=w: torch.matmul(x, w.t()), 10)
        say(what="largest matrix product", value=2 * m * n * k / seconds / 1e12, device=True, how="torch.matmul")
        del x, w
    torch.cuda.empty_cache()


def prefill(torch, model, job):
    tokens = torch.randint(3, model.config.vocab_size, (1, job["context"]), device="cuda")

    def body():
        logits = model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits
        logits[:, -1].argmax(-1)

    body()
    seconds = best_of(torch, body, 1)
    say(what=job["what"], value=job["context"] / seconds, how="eager, sdpa")


def static_cache(torch, model, batch, length):
    from transformers import StaticCache

    try:
        return StaticCache(config=model.config, max_cache_len=length)
    except TypeError:  # transformers before 4.56
        return StaticCache(
            config=model.config, max_batch_size=batch, max_cache_len=length, device="cuda", dtype=torch.bfloat16
        )


def decode(torch, model, forward, job, how, steps=32):
    batch, context = job["batch"], job["context"]
    cache = static_cache(torch, model, batch, context + 2 * steps)
    token = torch.randint(3, model.config.vocab_size, (batch, 1), device="cuda")
    position = torch.tensor([context], device="cuda")
    positions = position.expand(batch, 1).contiguous()

    def step():
        out = forward(
            input_ids=token, position_ids=positions, cache_position=position, past_key_values=cache, use_cache=True
        )
        token.copy_(out.logits[:, -1:].argmax(-1))

    for _ in range(3):
        step()
    seconds = best_of(torch, step, 8, 3)
    say(what=job["what"], value=batch / seconds, how=how)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--seconds", type=float, default=90)
    arguments = parser.parse_args()
    BUDGET["until"] = time.monotonic() + arguments.seconds
    try:
        import torch
        import transformers
    except ImportError as error:
        say(note=f"absent ({error})")
        return 0
    if not torch.cuda.is_available():
        say(note="absent (torch finds no CUDA device)")
        return 0
    say(note=f"torch {torch.__version__}, transformers {transformers.__version__}")
    failed = 0

    def attempt(what, body, *more):
        nonlocal failed
        if left() < 5:
            say(note=f"no time for {what}")
            return
        try:
            body(torch, *more)
        except Exception as error:  # noqa: BLE001: one figure less is no reason to have none
            failed += 1
            say(note=f"{what}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            torch.cuda.empty_cache()

    attempt("rates", device_rates)
    with torch.inference_mode():
        load = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, **load)
        except TypeError:
            load["torch_dtype"] = load.pop("dtype")
            model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, **load)
        model = model.to("cuda").eval()
        jobs = json.loads(arguments.jobs)
        decodes = [job for job in jobs if job["kind"] == "decode"]
        for job in jobs:
            if job["kind"] == "prefill":
                attempt(job["what"], prefill, model, job)
        for job in decodes:
            attempt(job["what"], decode, model, model.forward, job, "eager, static cache")
        compiled = torch.compile(model.forward, mode="reduce-overhead", dynamic=False)
        for job in decodes:
            torch._dynamo.reset()
            attempt(job["what"], decode, model, compiled, job, "torch.compile, static cache")
    # Without a single figure something is wrong with this script or what it uses.
    return 1 if failed and failed > len(jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
