#!/usr/bin/env python3
"""Train the small Llama model shipped in models/tiny/ and measure it.

Usage: python tools/train_tiny.py [--steps N] [--out DIR] [--threads N]
       python tools/train_tiny.py --eval-only [--out DIR]

All text is generated here from seeded generators: short stories of a small
grammar, and recall documents whose answers stand only in the prompt. Facts are
split by a hash of the single fact (say red + box + key): a held-out fact never
occurs in training, and held-out prompts hold held-out facts only.

The model is plain Llama. Two things make it learn to look facts up in minutes:
the first two layers start as the parts of an induction circuit, and during
training a second loss points two heads of one layer from an answer to its
fact. Neither leaves a trace in the architecture.
"""

import argparse
import datetime
import hashlib
import json
import math
import os
import random
import re
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SEED = 20240611

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTER, CONTEXT = 768, 128, 5, 4, 2, 32, 384, 512
THETA, EPS = 10000.0, 1e-5
LOOKUP_LAYER = 1  # training steers heads of this layer from an answer to its fact

SPECIAL = ["<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
BOS, EOS, END, USER, ASSISTANT, SYSTEM = range(6)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# --------------------------------------------------------------------- text

COLOURS = "red blue green yellow black white pink brown gray gold silver purple".split()
CONTAINERS = "box jar bag cup drawer basket chest bottle bucket pot case tin".split()
OBJECTS = ("key coin shell ring stone feather button candle map pen ball spoon doll bell book card flower nail leaf "
           "watch rope brush mask bone").split()
NAMES = "anna tom ben lucy sam mia leo nina paul rosa jack emma max lily oscar ivan kate omar jane peter".split()
PLACES = ("paris rome london berlin tokyo madrid oslo cairo lima delhi boston dublin vienna prague athens lisbon "
          "moscow sydney havana seoul").split()

PEOPLE = [("farmer", "he"), ("girl", "she"), ("boy", "he"), ("woman", "she"), ("king", "he"), ("queen", "she"),
          ("sailor", "he"), ("baker", "he"), ("teacher", "she"), ("man", "he"), ("dog", "it"), ("cat", "it"),
          ("bird", "it"), ("horse", "it")]
KINDS = ["old", "young", "little", "happy", "tired", "kind", "quiet", "brave"]
GOALS = ["river", "market", "garden", "forest", "school", "beach", "hill", "bridge", "lake", "farm"]
MOVES = ["walks", "runs", "goes", "comes"]
SIGHTS = ["a small boat", "a big tree", "a white duck", "an apple", "a bright light", "some bread", "a wooden door",
          "a friend", "a small fish", "a long road", "a fast train", "an empty chair"]
REACTIONS = ["smiles", "laughs", "sits down", "is happy", "waits", "stops", "looks around", "is surprised"]
WEATHER = ["the sun is warm.", "it is a cold day.", "the wind is strong.", "it rains all day.",
           "the sky is clear.", "snow falls on the hill.", "the moon is bright.", "the morning is quiet."]
CLOSINGS = ["then {p} goes home.", "in the evening {p} goes to sleep.", "{p} is very happy.", "it was a good day.",
            "after that {p} eats some bread.", "{p} will come back tomorrow."]


def held_out(*fact):
    return hashlib.sha256("|".join(fact).encode()).digest()[0] < 26  # about one in ten


def make_fact(r, held, used):
    """(statement, question, answer) with a key not yet used in this document."""
    while True:
        kind = r.random()
        if kind < 0.6:
            c, k, o = r.choice(COLOURS), r.choice(CONTAINERS), r.choice(OBJECTS)
            fact = (c, k, o)
            text = (f"the {c} {k} holds a {o}.", f"what does the {c} {k} hold?", f"a {o}.")
        elif kind < 0.85:
            n, p = r.choice(NAMES), r.choice(PLACES)
            fact = (n, "lives", p)
            text = (f"{n} lives in {p}.", f"where does {n} live?", f"in {p}.")
        else:
            n, c = r.choice(NAMES), r.choice(COLOURS)
            fact = (n, "likes", c)
            text = (f"{n} likes the colour {c}.", f"what colour does {n} like?", f"{c}.")
        if fact[:2] not in used and held_out(*fact) == held:
            used.add(fact[:2])
            return text


def some_facts(r, held, n):
    """n facts with distinct keys; colours, containers, names and values repeat freely."""
    used, facts = set(), []
    while len(facts) < n:
        facts.append(make_fact(r, held, used))
    return facts


class Story:
    def __init__(self, r):
        self.r, self.n = r, 0
        self.cast()

    def cast(self):
        self.who, self.p = self.r.choice(PEOPLE)
        self.kind = self.r.choice(KINDS)

    def sentence(self):
        r = self.r
        self.n += 1
        if self.n == 1:
            return f"the {self.kind} {self.who} {r.choice(MOVES)} to the {r.choice(GOALS)}."
        x = r.random()
        if x < 0.45:
            return f"{self.p} sees {r.choice(SIGHTS)} and {r.choice(REACTIONS)}."
        if x < 0.6:
            return f"{self.p} finds {r.choice(SIGHTS)} near the {r.choice(GOALS)}."
        if x < 0.75:
            return r.choice(WEATHER)
        if x < 0.87:
            return f"{self.p} {r.choice(MOVES)} to the {r.choice(GOALS)} and {r.choice(REACTIONS)}."
        self.n = 0
        close = r.choice(CLOSINGS).format(p=self.p)
        self.cast()
        return close

    def text(self, n):
        out = [self.sentence() for _ in range(n)]
        if self.n:
            out.append(self.r.choice(CLOSINGS).format(p=self.p))
        return out


def split_last(text):
    """("... holds a", " key", ".")"""
    head, space, tail = text.rpartition(" ")
    return head, space + tail[:-1], "."


def recall_context(r, facts, stories, weight=0.3):
    """Pieces: the facts in order, story sentences let in between."""
    slots = set(r.sample(range(len(facts) + stories), stories))
    story, out, n = Story(r), [], 0
    for i in range(len(facts) + stories):
        space = " " if i else ""
        if i in slots:
            out.append((space + story.sentence(), weight))
        else:
            head, word, stop = split_last(facts[n][0])
            out += [(space + head, weight), (word, weight, ("fact", facts[n][1])), (stop, weight)]
            n += 1
    return out


def plain_text(pieces):
    return "".join(p[0] for p in pieces if isinstance(p[0], str))


def questions(r, facts, n):
    if n <= len(facts):
        return r.sample(facts, n)
    return r.sample(facts, len(facts)) + [r.choice(facts) for _ in range(n - len(facts))]


def answer(text, question):
    """The word that has to be looked up weighs most in the loss."""
    head, word, stop = split_last(text)
    return ([(head, 1.0)] if head else []) + [(word, 4.0, ("answer", question)), (stop, 1.0)]


def document(r, progress):
    """A training document: pieces (text or special id, loss weight[, tag])."""
    if r.random() < 0.12:
        n = r.randint(2, 7) if progress < 0.6 or r.random() < 0.8 else r.randint(10, 36)
        return [(BOS, 0), (" ".join(Story(r).text(n)), 1.0), (EOS, 1.0)]
    if progress < 0.25:  # first learn to look a fact up: the same few facts again and again
        facts = some_facts(r, False, r.randint(2, 3 if progress < 0.05 else 5))
        doc = [(BOS, 0)] + recall_context(r, facts, 0, 0.1)
        for _ in range(2):
            for text, q, a in r.sample(facts, len(facts)):
                if r.random() < 0.3:
                    head, word, stop = split_last(" " + text)
                    doc += [(head, 0.1), (word, 4.0, ("answer", q)), (stop, 0.1)]
                else:
                    doc += [(" " + q, 0.1)] + answer(" " + a, q)
        return doc + [(EOS, 0.3)]
    if progress < 0.4:
        n, s = r.randint(2, 5), r.choice([0, 0, 1, 2])
    else:
        n, s = r.randint(2, 7), r.choice([0, 0, 1, 2, 4, 6, 9, 12, 16, 20])
        if r.random() < 0.03:
            s = r.randint(20, 40)
    facts = some_facts(r, False, n)
    context = recall_context(r, facts, s)
    dense = r.random() < 0.5
    qs = questions(r, facts, r.randint(n, n + 3) if dense else r.choice([1, 1, 1, 2]))
    if r.random() < 0.3:
        doc = [(BOS, 0)]
        if r.random() < 0.3:
            doc += [(SYSTEM, 0), ("you are a helpful assistant.", 0), (END, 0)]
        for i, (_, q, a) in enumerate(qs):
            doc += [(USER, 0)] + (context + [(" " + q, 0.2)] if i == 0 else [(q, 0.2)])
            doc += [(END, 0.2), (ASSISTANT, 0)] + answer(a, q) + [(END, 1.0)]
        return doc + [(EOS, 1.0)]
    doc = [(BOS, 0)] + context
    for _, q, a in qs:
        doc += [(" " + q, 0.3)] + answer(" " + a, q)
    return doc + [(EOS, 1.0)]


def heldout_items():
    r = random.Random(SEED + 1)
    plain, chat = [], []
    for i in range(200):
        n = 3 + i % 4
        facts = some_facts(r, True, n)
        s = [0, 2, 6, 12, 19][i % 5]
        _, q, a = r.choice(facts)
        plain.append({"prompt": plain_text(recall_context(r, facts, s)) + " " + q, "answer": a, "facts": n})
    for i in range(40):
        n = 3 + i % 4
        facts = some_facts(r, True, n)
        _, q, a = r.choice(facts)
        text = plain_text(recall_context(r, facts, [0, 2, 5][i % 3])) + " " + q
        chat.append({"messages": [{"role": "user", "content": text}], "answer": a, "facts": n})
    return plain, chat


# ---------------------------------------------------------------- tokenizer

def train_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    r = random.Random(SEED)
    corpus = []
    for i in range(6000):
        corpus.append(plain_text(document(r, 1.0 if i % 2 else 0.3)))
    for words in (COLOURS, CONTAINERS, OBJECTS, NAMES, PLACES, KINDS, GOALS):
        corpus += [" ".join(["the", w, w]) for w in words] * 60
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(corpus, trainer)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B",
                                                       special_tokens=[("<s>", BOS)])
    return tok


class Encoder:
    """Tokenizes word by word with a cache; the same as the tokenizer itself."""

    def __init__(self, tok):
        self.tok, self.cache = tok, {}

    def __call__(self, text):
        out = []
        for word in re.findall(r" ?[a-z]+|[.?,]", text):
            ids = self.cache.get(word)
            if ids is None:
                ids = self.cache[word] = self.tok.encode(word, add_special_tokens=False).ids
            out += ids
        return out

    def document(self, doc):
        """ids, loss weights, and (answer position, fact position) pairs."""
        ids, weights, facts, links = [], [], {}, []
        for piece, w, *tag in doc:
            part = self(piece) if isinstance(piece, str) else [piece]
            if tag:
                kind, key = tag[0]
                if kind == "fact":
                    facts[key] = len(ids)
                else:
                    links.append((len(ids), facts[key]))
            ids += part
            weights += [w] * len(part)
        return ids, weights, links


# -------------------------------------------------------------------- model

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.Parameter(torch.ones(HIDDEN)), nn.Parameter(torch.ones(HIDDEN))
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.o = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * INTER, bias=False)
        self.down = nn.Linear(INTER, HIDDEN, bias=False)

    def forward(self, x, cos, sin, links=None):
        b, t, _ = x.shape
        h = self.qkv(F.rms_norm(x, (HIDDEN,), self.n1, EPS)).view(b, t, -1, HEAD_DIM).transpose(1, 2)
        qk, v = h[:, : HEADS + KV_HEADS], h[:, HEADS + KV_HEADS:]
        a, c = qk.chunk(2, dim=-1)
        qk = qk * cos + torch.cat((-c, a), dim=-1) * sin
        q, k = qk[:, :HEADS], qk[:, HEADS:]
        k, v = (z.repeat_interleave(HEADS // KV_HEADS, dim=1) for z in (k, v))
        lookup = None
        if links is not None:  # how well two of the heads find the fact behind each answer
            row, at, fact = links
            score = torch.einsum("nhd,nhtd->nht", q[row, ::2, at], k[row, ::2]) / HEAD_DIM**0.5
            score = score.masked_fill(torch.arange(t) > at[:, None, None], -1e9)
            lookup = F.cross_entropy(score.flatten(0, 1), fact.repeat_interleave(score.shape[1]))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        g, u = self.gate_up(F.rms_norm(x, (HIDDEN,), self.n2, EPS)).chunk(2, dim=-1)
        return x + self.down(F.silu(g) * u), lookup


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(HIDDEN))
        f = THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        angle = torch.arange(CONTEXT).float()[:, None] * f[None]
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.06
                if name.endswith("o.weight") or name.endswith("down.weight"):
                    std /= math.sqrt(2 * LAYERS)
                nn.init.normal_(p, std=std)
        self.local_heads()

    @torch.no_grad()
    def local_heads(self):
        """Start with the parts of an induction circuit, which training on a
        small budget is slow to find by itself: the heads of the first layer
        look 1, 2, 3 and 4 tokens back, those of the second compare content."""
        self.embed.weight[:, 0] = 0.3  # a direction all tokens share; it cancels in the softmax
        q = HEADS * HEAD_DIM
        w, half = self.layers[0].qkv.weight, HEAD_DIM // 2
        for j in range(3):  # the three fastest rope frequencies
            f = THETA ** (-2 * j / HEAD_DIM)
            for h in range(HEADS):
                w[h * HEAD_DIM + j, 0] += math.cos((h + 1) * f)
                w[h * HEAD_DIM + j + half, 0] -= math.sin((h + 1) * f)
            for h in range(KV_HEADS):
                w[q + h * HEAD_DIM + j, 0] += 1.0
        w = self.layers[LOOKUP_LAYER].qkv.weight
        for h in range(HEADS):
            g = q + h // (HEADS // KV_HEADS) * HEAD_DIM
            w[h * HEAD_DIM:(h + 1) * HEAD_DIM] = w[g:g + HEAD_DIM] * 1.5

    def hidden(self, ids, links=None):
        x, lookup = self.embed(ids), None
        t = ids.shape[1]
        for i, layer in enumerate(self.layers):
            x, score = layer(x, self.cos[:t], self.sin[:t], links if i == LOOKUP_LAYER else None)
            lookup = lookup if score is None else score
        return F.rms_norm(x, (HIDDEN,), self.norm, EPS), lookup

    def forward(self, ids):
        return F.linear(self.hidden(ids)[0], self.embed.weight)

    def hf_state(self):
        s = {"model.embed_tokens.weight": self.embed.weight, "model.norm.weight": self.norm}
        q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        for i, layer in enumerate(self.layers):
            p = f"model.layers.{i}."
            w, g = layer.qkv.weight, layer.gate_up.weight
            s[p + "self_attn.q_proj.weight"] = w[:q]
            s[p + "self_attn.k_proj.weight"] = w[q:q + kv]
            s[p + "self_attn.v_proj.weight"] = w[q + kv:]
            s[p + "self_attn.o_proj.weight"] = layer.o.weight
            s[p + "mlp.gate_proj.weight"] = g[:INTER]
            s[p + "mlp.up_proj.weight"] = g[INTER:]
            s[p + "mlp.down_proj.weight"] = layer.down.weight
            s[p + "input_layernorm.weight"] = layer.n1
            s[p + "post_attention_layernorm.weight"] = layer.n2
        return {k: v.detach().to(torch.bfloat16).contiguous().clone() for k, v in s.items()}


def batch_of(r, enc, progress, tokens):
    """Documents of similar length, padded on the right; about `tokens` cells."""
    docs = sorted((enc.document(document(r, progress)) for _ in range(96)), key=lambda d: len(d[0]))
    docs = [d for d in docs if len(d[0]) <= CONTEXT]
    i = r.randrange(len(docs))
    rows = []
    while i < len(docs) and (len(docs[i][0]) * (len(rows) + 1) <= tokens or not rows):
        rows.append(docs[i])
        i += 1
    width = max(len(d[0]) for d in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    w = torch.zeros(len(rows), width)
    for j, (a, b, _) in enumerate(rows):
        ids[j, : len(a)] = torch.tensor(a)
        w[j, : len(b)] = torch.tensor(b)
    links = [(j, at - 1, fact) for j, d in enumerate(rows) for at, fact in d[2]]
    return ids, w, torch.tensor(links).T if links else None


@torch.no_grad()
def quick_accuracy(model, enc, items):
    """Greedy answers, teacher-forced: right if every answer token is the argmax."""
    model.eval()
    good = 0
    for item in items:
        p, a = [BOS] + enc(item["prompt"]), enc(" " + item["answer"])
        out = model(torch.tensor([p + a]))[0].argmax(-1).tolist()
        good += out[len(p) - 1: len(p) + len(a) - 1] == a
    model.train()
    return good / len(items)


def train(args, tok):
    torch.manual_seed(SEED)
    r = random.Random(SEED + 2)
    enc = Encoder(tok)
    for _ in range(50):
        doc = document(r, 1.0)
        text = plain_text(doc)
        assert "".join(tok.decode(enc(text))) == text
    model, held = Model(), heldout_items()[0]
    print(f"{sum(p.numel() for p in model.parameters())} parameters, "
          f"{len(held)} held-out prompts, longest {max(len(enc(i['prompt'])) for i in held)} tokens", flush=True)
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
                            lr=args.lr, betas=(0.9, 0.98), fused=True)
    start, seen, avg, found, hits, total = time.time(), 0, None, None, 0, 0
    for step in range(args.steps):
        progress = step / args.steps
        warm = min(1.0, (step + 1) / 150)
        lr = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for g in opt.param_groups:
            g["lr"] = lr
        ids, w, links = batch_of(r, enc, progress, args.tokens)
        h, lookup = model.hidden(ids[:, :-1], links)
        w, y = w[:, 1:].reshape(-1), ids[:, 1:].reshape(-1)
        keep = w > 0
        logits = F.linear(h.reshape(-1, HIDDEN)[keep].float(), model.embed.weight)
        w, y = w[keep], y[keep]
        ce = F.cross_entropy(logits, y, reduction="none")
        loss = (ce * w).sum() / w.sum()
        if lookup is not None:
            found = lookup.item() if found is None else 0.98 * found + 0.02 * lookup.item()
            loss = loss + args.lookup * (1 - progress) * lookup
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        seen += ids.numel()
        ans = w == 4.0
        hits += int((logits.argmax(-1) == y)[ans].sum())
        total += int(ans.sum())
        avg = loss.item() if avg is None else 0.98 * avg + 0.02 * loss.item()
        if step % 100 == 99:
            acc = quick_accuracy(model, enc, held) if step % 400 == 399 else float("nan")
            print(f"step {step + 1:5} loss {avg:.3f} lookup {found:.3f} answer words {hits / max(total, 1):.3f} "
                  f"held-out {acc:.3f} {seen / (time.time() - start):.0f} tok/s {time.time() - start:.0f} s",
                  flush=True)
            hits = total = 0
    return model, time.time() - start, seen


# ------------------------------------------------------------------- saving

def save(model, tok, out):
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    os.makedirs(out, exist_ok=True)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INTER, num_hidden_layers=LAYERS,
                         num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
                         max_position_embeddings=CONTEXT, rms_norm_eps=EPS, tie_word_embeddings=True,
                         rope_parameters={"rope_type": "default", "rope_theta": THETA}, bos_token_id=BOS,
                         eos_token_id=[EOS, END], dtype="bfloat16")
    hf = LlamaForCausalLM(config).to(torch.bfloat16)
    state = model.hf_state()
    missing, unexpected = hf.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    hf.tie_weights()
    hf.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, END], pad_token_id=EOS,
                                            do_sample=False)
    hf.save_pretrained(out)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="</s>",
                                   additional_special_tokens=SPECIAL[2:], clean_up_tokenization_spaces=False,
                                   model_max_length=CONTEXT)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out, save_jinja_files=False)
    path = os.path.join(out, "tokenizer_config.json")
    saved = json.load(open(path))
    saved["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that transformers 4 knows too
    saved["additional_special_tokens"] = saved.pop("extra_special_tokens")
    saved["add_bos_token"] = True
    saved.pop("backend", None)
    with open(path, "w") as f:
        json.dump(saved, f, indent=2)
        f.write("\n")
    os.chmod(os.path.join(out, "model.safetensors"), 0o644)
    plain, chat = heldout_items()
    with open(os.path.join(out, "recall_heldout.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(i) for i in plain + chat) + "\n]\n")


@torch.no_grad()
def measure(out):
    """Greedy held-out accuracy through transformers, in bf16, from the saved directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
    items = json.load(open(os.path.join(out, "recall_heldout.json")))
    score, longest, wrong, stopped = {}, 0, [], 0
    for item in items:
        if "messages" in item:
            text = tok.apply_chat_template(item["messages"], add_generation_prompt=True, tokenize=False)
            ids, kind = tok(text, add_special_tokens=False, return_tensors="pt").input_ids, "chat"
        else:
            ids, kind = tok(item["prompt"], return_tensors="pt").input_ids, "plain"
        assert ids[0, 0] == BOS and (ids[0] == BOS).sum() == 1
        longest = max(longest, ids.shape[1])
        new = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1]:]
        text = tok.decode(new, skip_special_tokens=True).strip()
        stopped += int(new[-1]) in (EOS, END)
        got = text.split(".")[0] + "."
        good = got == item["answer"]
        for key in (kind, f"{kind}, {item['facts']} facts"):
            a = score.setdefault(key, [0, 0])
            a[0] += good
            a[1] += 1
        if not good:
            wrong.append((text, item))
    for key in sorted(score):
        print(f"{key}: {score[key][0]}/{score[key][1]}")
    print(f"longest prompt {longest} tokens; {stopped}/{len(items)} generations stopped by themselves within 12 tokens")
    for text, item in wrong[:10]:
        print("wrong:", repr(text), "wanted", repr(item["answer"]), "|", item.get("prompt") or item["messages"])
    torch.manual_seed(SEED)
    for start in ["the", "the old farmer", "anna lives in", "the young", "the tired dog"]:
        ids = tok(start, return_tensors="pt").input_ids
        new = model.generate(ids, max_new_tokens=70, do_sample=True, temperature=0.8, top_k=40)
        print("sample:", tok.decode(new[0], skip_special_tokens=True))
    return score, longest


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=os.path.join(ROOT, "models", "tiny"))
    ap.add_argument("--steps", type=int, default=2200)
    ap.add_argument("--tokens", type=int, default=1536, help="cells in a batch")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--lookup", type=float, default=0.5, help="weight of the lookup loss at the start")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--eval-only", action="store_true")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    if not args.eval_only:
        tok = train_tokenizer()
        enc = Encoder(tok)
        r = random.Random(0)
        words = set(re.findall(r"[a-z]+", " ".join(plain_text(document(r, 1.0)) for _ in range(3000))))
        split = sorted(w for w in words if len(enc(" " + w)) > 1)
        print(f"{tok.get_vocab_size()} tokens; {len(words)} words, split: {split}")
        model, seconds, seen = train(args, tok)
        save(model, tok, args.out)
        print(f"trained {seconds:.0f} s, {seen} tokens, {datetime.date.today()}")
    measure(args.out)


if __name__ == "__main__":
    main()
