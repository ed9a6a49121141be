#!/usr/bin/env python3
"""Write small random models with reference outputs into tests/fixtures/.

Usage: python tools/make_reference.py [--only NAME ...] [--out DIR] [--list]

Every fixture directory is a Hugging Face model directory (config.json,
model.safetensors or shards with an index, sometimes generation_config.json)
plus reference.safetensors, computed by transformers on the CPU with eager
attention. tests/fixtures/README.md says what the tensors mean.

The script is deterministic: weights and prompts come from seeded generators,
and a fixture is drawn again with the next seed while its greedy decode is not
clear-cut, too repetitive, or meets an end-of-sequence id.
"""

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile
import zlib

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

logging.disable_progress_bar()

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MIN_MARGIN = 0.01  # top-1 over top-2, at every greedy step

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}

BASE = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": True,
}

FIXTURES = []


def fixture(name, arch, form, rope=None, theta=10000.0, drop=(), note="", prompt=32, new=18, dtype="float32",
            shards=1, generation=None, check=(), embed_std=1.0, **over):
    """Describe one fixture.

    form is "v4" or "v5", the generation of transformers whose config.json
    layout is written; rope is the scaling (without the base); drop names keys
    left out so that the loader's defaults are exercised; check names
    mutations of the model that must visibly change the logits.
    """
    config = {**arch, **BASE, **over}
    if form == "v4":
        config["torch_dtype"] = dtype
        config["transformers_version"] = "4.57.6"
        if theta is not None:
            config["rope_theta"] = theta
        config["rope_scaling"] = rope
    else:
        config["dtype"] = dtype
        config["transformers_version"] = "5.23.0"
        config["rope_parameters"] = {"rope_type": "default", **(rope or {}), "rope_theta": theta}
    for key in drop:
        config.pop(key)
    FIXTURES.append(dict(name=name, config=config, form=form, note=note, prompt=prompt, new=new, dtype=dtype,
                         shards=shards, generation=generation, check=list(check), embed_std=embed_std))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN_LONG = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}

fixture("llama2-mha", LLAMA, "v4", theta=None, drop=["rope_scaling", "num_key_value_heads"], num_attention_heads=4,
        num_key_value_heads=4, note="Llama 2: one KV head per query head, untied; rope_theta, head_dim and "
        "num_key_value_heads left out of the config", generation={"bos_token_id": 1, "eos_token_id": 2},
        check=["norms", "rope_off"])
fixture("llama-gqa-tied", LLAMA, "v5", num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        theta=500000.0, note="grouped-query attention, lm_head tied to embed_tokens and not stored; three eos ids",
        eos_token_id=[2, 7, 9], generation={"bos_token_id": 1, "eos_token_id": [2, 7, 9], "do_sample": True,
                                            "temperature": 0.6, "top_p": 0.9},
        check=["norms", "theta"])
fixture("llama3-rope-v5", LLAMA, "v5", rope=LLAMA3, prompt=48, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, note="llama3 rope scaling: one unchanged, one blended, six divided frequencies",
        check=["rope_default"])
fixture("llama3-rope-v4", LLAMA, "v4", rope=LLAMA3, prompt=48, note="llama3 rope scaling, transformers-4 config",
        generation={"bos_token_id": 1, "eos_token_id": [2, 3]}, check=["rope_default"])
fixture("rope-linear-v4", LLAMA, "v4", rope={"type": "linear", "factor": 4.0},
        note='linear rope scaling under the older "type" key', check=["rope_default"])
fixture("rope-linear-v5", LLAMA, "v5", rope={"rope_type": "linear", "factor": 2.5}, note="linear rope scaling",
        check=["rope_default"])
fixture("rope-dynamic-beyond", LLAMA, "v4", rope={"rope_type": "dynamic", "factor": 2.0}, prompt=36,
        max_position_embeddings=24, note="dynamic NTK, prompt already beyond max_position_embeddings",
        check=["rope_default"])
fixture("rope-dynamic-cross", LLAMA, "v5", rope={"rope_type": "dynamic", "factor": 4.0}, prompt=24, new=24,
        max_position_embeddings=32, note="dynamic NTK, generation crosses max_position_embeddings",
        check=["rope_default_greedy"])
fixture("rope-yarn-v5", LLAMA, "v5", rope=YARN, prompt=40, note="YaRN with the default betas and attention factor",
        check=["rope_default", "attention_factor"])
fixture("rope-yarn-v4", LLAMA, "v4", rope=YARN, prompt=40, theta=500.0,
        note="YaRN with the defaults, transformers-4 config", check=["rope_default", "attention_factor"])
fixture("rope-yarn-explicit", LLAMA, "v5", prompt=40, theta=500.0, max_position_embeddings=1024,
        rope={**YARN_LONG, "attention_factor": 1.35, "beta_fast": 16.0, "beta_slow": 2.0},
        note="YaRN with attention_factor, beta_fast and beta_slow given",
        check=["rope_default", "attention_factor", "betas"])
fixture("rope-yarn-mscale", LLAMA, "v4", prompt=40, theta=500.0, max_position_embeddings=1024,
        rope={"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "mscale": 1.5,
              "mscale_all_dim": 0.8, "beta_fast": 32, "beta_slow": 1},
        note="YaRN with mscale and mscale_all_dim, integer betas", check=["rope_default", "mscale"])
fixture("rope-yarn-notruncate", LLAMA, "v5", prompt=40, theta=500.0, max_position_embeddings=1024,
        rope={**YARN_LONG, "factor": 8.0, "truncate": False},
        note="YaRN with truncate false: the ramp keeps fractional bounds", check=["rope_default", "truncate"])
fixture("llama-attention-bias", LLAMA, "v4", attention_bias=True, note="biases on q, k, v and o",
        check=["biases"], drop=["rope_scaling"])
fixture("llama-mlp-bias", LLAMA, "v5", mlp_bias=True, note="biases on gate, up and down", check=["biases"])
fixture("llama-head-dim", LLAMA, "v5", num_attention_heads=2, num_key_value_heads=2, head_dim=24,
        note="head_dim 24 given where hidden_size / heads is 16", check=["rope_off"])
fixture("llama-heads-6-2", LLAMA, "v4", hidden_size=48, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=32, tie_word_embeddings=True, drop=["rope_scaling"], check=["rope_off"],
        note="six query heads over two KV heads, tied")
fixture("llama-heads-5-1", LLAMA, "v5", hidden_size=40, num_attention_heads=5, num_key_value_heads=1, vocab_size=91,
        note="five query heads over one KV head, head_dim 8, odd vocabulary size", check=["rope_off"])
fixture("llama-eps", LLAMA, "v4", rms_norm_eps=0.05, embed_std=0.2, theta=100.0, tie_word_embeddings=True,
        note="rms_norm_eps large against the activations, small rope base", check=["eps", "theta"])
fixture("mistral-window", MISTRAL, "v5", sliding_window=7, prompt=40, theta=1000000.0, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, note="sliding window 7 on every layer, prompt 40",
        check=["window_off", "window_plus"])
fixture("mistral-full", MISTRAL, "v4", sliding_window=None, prompt=40, note="no sliding window", check=["rope_off"])
fixture("qwen2", QWEN2, "v4", use_sliding_window=False, sliding_window=8, max_window_layers=0, theta=1000000.0,
        note="biases on q, k and v; a sliding window that is switched off", check=["biases", "window_on"],
        drop=["rope_scaling"], generation={"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 2})
fixture("qwen2-max-window-layers", QWEN2, "v4", use_sliding_window=True, sliding_window=6, max_window_layers=1,
        num_hidden_layers=3, prompt=40, note="first layer full, later layers in a window of 6",
        check=["window_off", "window_plus", "all_sliding"])
fixture("qwen2-layer-types", QWEN2, "v5", use_sliding_window=True, sliding_window=6, max_window_layers=3,
        num_hidden_layers=3, prompt=40, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        note="layer_types mixes sliding and full layers and overrides max_window_layers",
        check=["window_off", "window_plus", "all_sliding"])
fixture("qwen3", QWEN3, "v5", head_dim=24, num_attention_heads=2, num_key_value_heads=1, theta=1000000.0,
        note="RMS norm on each q and k head, head_dim given", check=["qk_norm"],
        eos_token_id=[2, 5], generation={"eos_token_id": [2, 5], "do_sample": True, "top_k": 20, "top_p": 0.95,
                                         "temperature": 0.6})
fixture("qwen3-tied", QWEN3, "v4", head_dim=16, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True, note="q/k norm, tied embeddings", check=["qk_norm"])
fixture("qwen3-sliding-bias", QWEN3, "v5", head_dim=16, attention_bias=True, use_sliding_window=True,
        sliding_window=9, max_window_layers=1, layer_types=["full_attention", "sliding_attention"], prompt=40,
        note="q/k norm, biases on q, k, v and o, one sliding layer",
        check=["qk_norm", "biases", "window_off", "window_plus"])
fixture("llama-sharded", LLAMA, "v5", shards=3, note="three safetensors shards with an index", check=["rope_off"])
fixture("llama-f16", LLAMA, "v4", dtype="float16", hidden_size=48, num_attention_heads=3, intermediate_size=64,
        note="weights stored as f16", check=["rope_off"], drop=["rope_scaling"])
fixture("llama-bf16", LLAMA, "v5", dtype="bfloat16", hidden_size=48, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=72, note="weights stored as bf16; logits_bf16 is transformers computing in bf16",
        check=["rope_off"])
fixture("qwen3-bf16-tied", QWEN3, "v5", dtype="bfloat16", hidden_size=48, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, intermediate_size=72, tie_word_embeddings=True,
        note="bf16 weights, q/k norm, tied; logits_bf16 is transformers computing in bf16", check=["qk_norm"])


def dump(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def randomise(model, gen, embed_std):
    """Weights that make every part of the model visible in the logits."""
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if name.endswith("norm.weight"):
                p.copy_(0.4 + 1.2 * torch.rand(p.shape, generator=gen))
            elif name.endswith("bias"):
                p.copy_(0.5 * torch.randn(p.shape, generator=gen))
            else:
                fan_in = p.shape[-1]
                gain = 1.0
                if "embed_tokens" in name:
                    gain = 3.0 if tied else embed_std * fan_in**0.5
                elif "lm_head" in name:
                    gain = 3.0
                elif "q_proj" in name or "k_proj" in name:
                    gain = 1.4
                elif "o_proj" in name or "down_proj" in name:
                    gain = 2.0
                p.copy_(gain / fan_in**0.5 * torch.randn(p.shape, generator=gen))


def write_weights(path, model, dtype, shards):
    tied = model.config.tie_word_embeddings
    tensors = {n: p.detach().to(dtype).contiguous() for n, p in sorted(model.named_parameters())
               if not (tied and n == "lm_head.weight")}
    if shards == 1:
        save_file(tensors, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
        return
    names = list(tensors)
    groups = [names[i::shards] for i in range(shards)]
    weight_map = {}
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({n: tensors[n] for n in group}, os.path.join(path, file), metadata={"format": "pt"})
        weight_map.update({n: file for n in group})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    dump(os.path.join(path, "model.safetensors.index.json"),
         {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def load(path, dtype=torch.float32):
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager",
                                                       output_loading_info=True)
    left = {k: v for k, v in info.items() if v}
    assert not left, f"{path}: {left}"
    return model.eval()


@torch.no_grad()
def forward(model, ids):
    return model(input_ids=ids[None], use_cache=False).logits[0].float()


@torch.no_grad()
def greedy(model, ids, n):
    """Prefill the whole prompt, then one token at a time through the cache."""
    cache = DynamicCache(config=model.config)
    step, out, rows = ids, [], []
    for _ in range(n):
        row = model(input_ids=step[None], past_key_values=cache, use_cache=True).logits[0, -1].float()
        rows.append(row)
        out.append(int(row.argmax()))
        step = torch.tensor([out[-1]])
    return torch.tensor(out), torch.stack(rows)


def mutate(path, kind, scratch):
    """A copy of the fixture with one thing wrong; returns the model."""
    config = json.load(open(os.path.join(path, "config.json")))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if kind in ("rope_default", "rope_default_greedy"):
        theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
        config.pop("rope_scaling", None)
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    elif kind == "theta":
        if "rope_parameters" in config:
            rope["rope_theta"] *= 0.02
        else:
            config["rope_theta"] = 10000.0
    elif kind == "attention_factor":
        rope["attention_factor"] = 1.0
    elif kind == "betas":
        rope.pop("beta_fast"), rope.pop("beta_slow")
    elif kind == "mscale":
        rope.pop("mscale")
    elif kind == "truncate":
        rope.pop("truncate")
    elif kind == "eps":
        config["rms_norm_eps"] = 1e-6
    elif kind == "window_off":
        config["sliding_window"] = 4096
    elif kind == "window_plus":
        config["sliding_window"] += 1
    elif kind == "window_on":
        config["use_sliding_window"] = True
    elif kind == "all_sliding":
        config["layer_types"] = ["sliding_attention"] * config["num_hidden_layers"]
    shutil.copytree(path, scratch, dirs_exist_ok=True)
    dump(os.path.join(scratch, "config.json"), config)
    model = load(scratch)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if kind == "biases" and name.endswith("bias"):
                p.zero_()
            if kind == "norms" and name.endswith("norm.weight"):
                p.fill_(1.0)
            if kind == "qk_norm" and (name.endswith("q_norm.weight") or name.endswith("k_norm.weight")):
                p.fill_(1.0)
        if kind == "rope_off":
            model.model.rotary_emb.inv_freq.zero_()
    return model


def build(spec, out):
    config, name = spec["config"], spec["name"]
    path = os.path.join(out, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    dump(os.path.join(path, "config.json"), config)
    if spec["generation"]:
        dump(os.path.join(path, "generation_config.json"),
             {**spec["generation"], "transformers_version": config["transformers_version"]})

    eos = set()
    for source in (config, spec["generation"] or {}):
        value = source.get("eos_token_id", [])
        eos |= set(value if isinstance(value, list) else [value])

    first = zlib.crc32(name.encode()) % 100000
    for seed in range(first, first + 100):
        gen = torch.Generator().manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32,
                                                 attn_implementation="eager")
        randomise(model, gen, spec["embed_std"])
        write_weights(path, model, DTYPES[spec["dtype"]], spec["shards"])
        prompt = torch.randint(10, config["vocab_size"], (spec["prompt"],), generator=gen)
        prompt[0] = 1

        logits = forward(load(path), prompt)
        ids, rows = greedy(load(path), prompt, spec["new"])
        top = rows.topk(2, dim=-1).values
        margin = float((top[:, 0] - top[:, 1]).min())
        distinct = len(set(ids.tolist()))
        if margin > MIN_MARGIN and distinct >= spec["new"] // 3 and not eos & set(ids.tolist()):
            break
    else:
        sys.exit(f"{name}: no seed gives a clear greedy decode")
    assert margin > 1e-3
    assert torch.isfinite(logits).all() and logits.std() > 1.0, f"{name}: logits std {logits.std()}"

    # The loop above against transformers' own generate, and the cached logits
    # against one uncached forward (which dynamic rope makes differ).
    model = load(path)
    gc = copy.deepcopy(model.generation_config)
    gc.do_sample, gc.pad_token_id = False, 0
    gc.temperature = gc.top_p = gc.top_k = None
    generated = model.generate(prompt[None], generation_config=gc, max_new_tokens=spec["new"])[0, spec["prompt"]:]
    assert torch.equal(generated, ids), f"{name}: generate disagrees"
    whole = forward(load(path), torch.cat([prompt, ids[:-1]]))
    cache_error = float((whole[spec["prompt"] - 1:] - rows).abs().max())
    dynamic = name.startswith("rope-dynamic")
    assert dynamic or cache_error < 2e-4, f"{name}: cached and uncached logits differ by {cache_error}"
    assert not dynamic or cache_error > 1e-2, f"{name}: dynamic rope does not show in the cache"

    tensors = {"prompt": prompt.to(torch.int64), "logits": logits, "greedy": ids.to(torch.int64),
               "greedy_logits": rows}
    if spec["dtype"] == "bfloat16":
        tensors["logits_bf16"] = forward(load(path, torch.bfloat16), prompt)

    sensitivity = {}
    for kind in spec["check"]:
        with tempfile.TemporaryDirectory() as scratch:
            wrong = mutate(path, kind, scratch)
            if kind == "rope_default_greedy":
                diff = greedy(wrong, prompt, spec["new"])[1] - rows
            else:
                diff = forward(wrong, prompt) - logits
        sensitivity[kind] = round(float(diff.abs().max()), 4)
        assert sensitivity[kind] > 0.05, f"{name}: {kind} moves the logits by only {sensitivity[kind]}"

    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(path, "reference.safetensors"))
    size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path))
    entry = {
        "name": name,
        "architecture": config["architectures"][0],
        "exercises": spec["note"],
        "weight_dtype": spec["dtype"],
        "config_form": "transformers-4" if spec["form"] == "v4" else "transformers-5",
        "prompt_tokens": spec["prompt"],
        "greedy_tokens": spec["new"],
        "min_greedy_margin": round(margin, 4),
        "logits_std": round(float(logits.std()), 3),
        "cached_vs_uncached": None if dynamic else float(f"{cache_error:.2e}"),
        "logit_change_if_wrong": sensitivity,
        "seed": seed,
    }
    if "logits_bf16" in tensors:
        error = tensors["logits_bf16"] - logits
        entry["max_bf16_logit_error"] = round(float(error.abs().max()), 4)
        entry["rms_bf16_logit_error"] = round(float(error.square().mean().sqrt()), 4)
    print(f"{name:26} {size / 1024:6.1f} KB  margin {margin:.3f}  std {logits.std():.2f}  distinct {distinct:2}  "
          f"seed+{seed - first}  {sensitivity}  {entry.get('max_bf16_logit_error', '')}")
    assert size <= 150 * 1024, f"{name}: {size} bytes"
    return entry


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--only", action="append", metavar="NAME", help="build only this fixture (repeatable)")
    ap.add_argument("--out", default=os.path.join(ROOT, "tests", "fixtures"))
    ap.add_argument("--list", action="store_true", help="print the names and stop")
    args = ap.parse_args()
    names = [s["name"] for s in FIXTURES]
    if args.list:
        print("\n".join(names))
        return
    unknown = set(args.only or []) - set(names)
    if unknown:
        sys.exit(f"unknown fixtures: {sorted(unknown)}")

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    manifest_path = os.path.join(args.out, "manifest.json")
    entries = {}
    if args.only and os.path.exists(manifest_path):
        entries = {e["name"]: e for e in json.load(open(manifest_path))["fixtures"]}
    for spec in FIXTURES:
        if not args.only or spec["name"] in args.only:
            entries[spec["name"]] = build(spec, args.out)
    dump(manifest_path, {"made_with": {"transformers": "5.23.0", "attention": "eager", "compute_dtype": "float32"},
                         "fixtures": [entries[n] for n in names if n in entries]})


if __name__ == "__main__":
    main()
