"""A Llama of any size with random weights and the starter model's tokenizer: for what a GPU does, not for what it says.

Its logits spread as a trained model's do, so that greedy answers don't hang on rounding. The tokens that end a turn
have a row of zeros in the head, and all but no probability: an answer is as long as it may be.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from safetensors.torch import save_file

from engines import starter

VOCABULARY = 1536
"""Of the starter model's tokenizer."""

SPREAD = 3.0
"""Standard deviation of the logits."""

THETA = 50_000.0
"""Not any library's default, so that one who doesn't read it is seen."""


class Shape(Struct, frozen=True):
    """A Llama's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    context_tokens: int = 8192

    @property
    def head_dim(self) -> int:
        """Of each head."""
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Weights in all, norms left out."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + 2 * VOCABULARY * self.hidden


TINY = Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, context_tokens=1024)
"""For the benchmark's own test, on a CPU."""

BILLION = Shape(hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192)
"""0.98 billion weights."""

SMALL = Shape(hidden=256, layers=4, heads=4, kv_heads=2, intermediate=512, context_tokens=2048)
"""For tests: every kernel, nothing to wait for."""


def make(
    folder: Path, shape: Shape, *, seed: int = 0, device: str = "cpu", theta_at_top: bool = True
) -> Path:
    """Write a model's folder in half precision, and return it.

    ``theta_at_top``: where other programs than transformers 5 read the rotary positions' base.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(starter.hf_path() / name, folder / name)
    for extra in starter.hf_path().glob("chat_template*"):
        shutil.copy(extra, folder / extra.name)
    own = json.loads((starter.hf_path() / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(_config(own, shape, theta_at_top=theta_at_top), indent=1), encoding="utf-8"
    )
    weights = _weights(shape, seed, device)
    weights["lm_head.weight"][own["eos_token_id"]] = 0
    save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    return folder


def _config(own: dict[str, Any], shape: Shape, *, theta_at_top: bool) -> dict[str, Any]:
    inner = {"rope_type": "default", "rope_theta": THETA}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context_tokens,
        "vocab_size": VOCABULARY,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": own.get("bos_token_id"),
        "eos_token_id": own.get("eos_token_id"),
        **({"rope_theta": THETA} if theta_at_top else {"rope_parameters": inner}),
    }


def _weights(shape: Shape, seed: int, device: str) -> dict[str, Any]:
    make = torch.Generator(device=device).manual_seed(seed)

    def random(rows: int, columns: int, scale: float = 1.0) -> Any:
        drawn = torch.randn(rows, columns, generator=make, device=device)
        return (drawn * (scale / columns**0.5)).half().cpu().contiguous()

    def ones() -> Any:
        return torch.ones(shape.hidden, dtype=torch.half)

    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = {
        "model.embed_tokens.weight": random(VOCABULARY, shape.hidden, shape.hidden**0.5),
        "model.norm.weight": ones(),
        "lm_head.weight": random(VOCABULARY, shape.hidden, SPREAD),
    }
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        weights |= {
            f"{name}input_layernorm.weight": ones(),
            f"{name}post_attention_layernorm.weight": ones(),
            f"{name}self_attn.q_proj.weight": random(queries, shape.hidden),
            f"{name}self_attn.k_proj.weight": random(keys, shape.hidden),
            f"{name}self_attn.v_proj.weight": random(keys, shape.hidden),
            f"{name}self_attn.o_proj.weight": random(shape.hidden, queries),
            f"{name}mlp.gate_proj.weight": random(shape.intermediate, shape.hidden),
            f"{name}mlp.up_proj.weight": random(shape.intermediate, shape.hidden),
            f"{name}mlp.down_proj.weight": random(shape.hidden, shape.intermediate),
        }
    return weights
