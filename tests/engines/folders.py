"""Small model folders, whole or broken, made without torch: a Llama of two layers by Hugging Face's names."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

WIDTHS = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "F8_E4M3": 1}

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {}, "merges": []},
    "added_tokens": [
        {"id": 0, "content": "<|begin|>", "special": True},
        {"id": 2, "content": "<|end|>", "special": True},
        {"id": 3, "content": "<|im_end|>", "special": True},
    ],
}
TOKENIZER_CONFIG = {
    "bos_token": "<|begin|>",
    "eos_token": {"content": "<|end|>"},
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def plain(config=CONFIG, dtype="F16", *, head=True):
    """The tensors of a Llama of that config: name to (type, shape)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = config["head_dim"] * config["num_attention_heads"]
    kv_width = config["head_dim"] * config["num_key_value_heads"]
    tensors = {"model.embed_tokens.weight": (dtype, (config["vocab_size"], hidden))}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        for part, shape in (
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (width, hidden)),
            ("self_attn.k_proj", (kv_width, hidden)),
            ("self_attn.v_proj", (kv_width, hidden)),
            ("self_attn.o_proj", (hidden, width)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (inner, hidden)),
            ("mlp.up_proj", (inner, hidden)),
            ("mlp.down_proj", (hidden, inner)),
        ):
            tensors[f"{name}{part}.weight"] = (dtype, shape)
    tensors["model.norm.weight"] = (dtype, (hidden,))
    if head:
        tensors["lm_head.weight"] = (dtype, (config["vocab_size"], hidden))
    return tensors


def exl2(config=CONFIG, bits=4):
    """The same, its projections and its head as EXL2 has them, all of so many bits in groups of 32."""
    tensors = {}
    for name, (dtype, shape) in plain(config).items():
        if len(shape) == 1 or "embed_tokens" in name:
            tensors[name] = (dtype, shape)
            continue
        base, (outputs, inputs) = name.removesuffix(".weight"), shape
        groups = -(-inputs // 32)
        tensors[f"{base}.q_weight"] = ("I32", (inputs * bits // 32, outputs))
        tensors[f"{base}.q_invperm"] = ("I32", (inputs,))
        tensors[f"{base}.q_scale"] = ("I32", (groups, outputs // 8))
        tensors[f"{base}.q_scale_max"] = ("F16", (groups,))
        tensors[f"{base}.q_groups"] = ("I16", (2 * groups,))
    return tensors


def safetensors(path: Path, tensors) -> Path:
    """Write a file with these tensors, all zeros."""
    head, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * WIDTHS[dtype]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def folder(path: Path, tensors=None, **files) -> Path:
    """A whole folder at ``path``. ``files`` replace its JSON files by their stems; None leaves one out."""
    path.mkdir(parents=True, exist_ok=True)
    contents = {
        "config": CONFIG,
        "tokenizer": TOKENIZER,
        "tokenizer_config": TOKENIZER_CONFIG,
        "generation_config": {"eos_token_id": [3, 2]},
        **files,
    }
    for name, content in contents.items():
        if content is not None:
            (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    safetensors(path / "model.safetensors", plain() if tensors is None else tensors)
    return path
