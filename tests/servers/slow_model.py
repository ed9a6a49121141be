"""A model that is slow enough for something to happen to it: the tiny one's tokenizer over larger, random weights."""

import json
import random
import shutil
import sys
from pathlib import Path

from servers import MODEL

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCABULARY = 512, 6, 8, 4, 64, 1376, 768


def tensors(layers):
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    for i in range(layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", [HIDDEN]
        yield layer + "post_attention_layernorm.weight", [HIDDEN]
        yield layer + "self_attn.q_proj.weight", [HEADS * HEAD_DIM, HIDDEN]
        yield layer + "self_attn.k_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN]
        yield layer + "self_attn.v_proj.weight", [KV_HEADS * HEAD_DIM, HIDDEN]
        yield layer + "self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD_DIM]
        yield layer + "mlp.gate_proj.weight", [MLP, HIDDEN]
        yield layer + "mlp.up_proj.weight", [MLP, HIDDEN]
        yield layer + "mlp.down_proj.weight", [HIDDEN, MLP]


def bf16(generator, shape):
    """Norms are ones; all else is of both signs and between 0.03 and 0.06."""
    n = 1
    for size in shape:
        n *= size
    if len(shape) == 1:
        return b"\x80\x3f" * n
    data = bytearray(2 * n)
    data[0::2] = generator.randbytes(n)
    data[1::2] = generator.randbytes(n).translate(bytes(0x3D if byte < 128 else 0xBD for byte in range(256)))
    return bytes(data)


def write(directory, positions=512, layers=LAYERS):
    config = json.loads((MODEL / "config.json").read_text())
    config.update(hidden_size=HIDDEN, num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
                  head_dim=HEAD_DIM, intermediate_size=MLP, vocab_size=VOCABULARY, max_position_embeddings=positions,
                  tie_word_embeddings=True)
    (directory / "config.json").write_text(json.dumps(config))
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]:
        shutil.copy(MODEL / name, directory)
    generator = random.Random(1)
    header, pieces, end = {}, [], 0
    for name, shape in tensors(layers):
        pieces.append(bf16(generator, shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + len(pieces[-1])]}
        end += len(pieces[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(pieces))
    return directory


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
