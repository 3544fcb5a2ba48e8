"""The exllamav2 engine on a CPU: everything of it and of the library but the kernels, for tests without a GPU.

The model is a Llama in plain torch over the library's own paged cache layout, attending by the project's own
`paged_attention`. The page table, the prefix cache, chunked prefill, the sampler, guessing ahead and defragmentation
are the library's; its config and tokenizer read the folder.

A node uses it with NENYA_EXLLAMAV2_LOADER=tests.engines.exl2.harness. HARNESS_FAULT makes it fail: `oom:N` and `hang:N`
in the Nth step, in milliseconds `slow:N` every step, `load` while loading.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional

from engines.base import EngineError
from engines.exl2 import loading, paged_attention
from tests.engines.exl2 import stub_extension

torch.set_num_threads(1)
stub_extension.install()
os.environ["EXLLAMA_NO_SDPA"] = "1"


class Cache:
    """The library's half-precision cache: for each layer, keys and values of (1, tokens, heads, dim)."""

    def __init__(self, config, tokens):
        self.max_seq_len, self.batch_size, self.current_seq_len = tokens, 1, 0
        shape = (1, tokens, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        # As on a GPU, where memory holds whatever was there: what is read before it is written must show.
        self.key_states = [torch.full(shape, float("nan")) for _ in layers]
        self.value_states = [torch.full(shape, float("nan")) for _ in layers]

    def all_tensors(self):
        return [*self.key_states, *self.value_states]

    def copy_states(self, target, from_column, from_columns, to_column, to_columns, *rows):
        for source, goal in zip(self.all_tensors(), target.all_tensors(), strict=True):
            part = source[:, from_column : from_column + from_columns].clone()
            goal[:, to_column : to_column + to_columns] = part


class Llama:
    """What the generator calls of ExLlamaV2: a forward pass over pages."""

    def __init__(self, config):
        from safetensors.torch import load_file

        self.config = config
        self.loaded = True
        self.steps = 0
        self.calls = []
        """(rows, tokens, prefill) of each forward pass."""
        self.fault, _, number = os.environ.get("HARNESS_FAULT", "").partition(":")
        self.fault_at = int(number or 0)
        weights = load_file(Path(config.model_dir) / "model.safetensors")
        self.w = {name.removeprefix("model."): w.float() for name, w in weights.items()}
        self.w.setdefault("lm_head.weight", self.w["embed_tokens.weight"])
        dim = config.head_dim
        inverse = 1.0 / config.rotary_embedding_base ** (torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(config.max_seq_len + 8).float(), inverse)
        both = torch.cat((angles, angles), -1)
        self.cos, self.sin = both.cos(), both.sin()

    def forward_chunk(self, input_ids, attn_params=None, cache=None, preprocess_only=False, **rest):
        rows, count = input_ids.shape
        self.calls.append((rows, count, preprocess_only))
        self._misbehave()
        table, lengths = attn_params.block_index, attn_params.cache_seqlens
        at = lengths.long()[:, None] + torch.arange(count)
        cos, sin = self.cos[at][:, :, None], self.sin[at][:, :, None]
        x = functional.embedding(input_ids, self.w["embed_tokens.weight"])
        for layer in range(self.config.num_hidden_layers):
            x = self._layer(layer, x, (cos, sin), cache, (table, lengths))
        if preprocess_only:
            return {}
        x = self._norm(x, "norm.weight") @ self.w["lm_head.weight"].T
        return {"logits": functional.pad(x, (0, -x.shape[-1] % 32), value=-65504.0)}

    def _layer(self, layer, x, angles, cache, pages):
        config, name = self.config, f"layers.{layer}."
        rows, count, _ = x.shape
        y = self._norm(x, f"{name}input_layernorm.weight")
        q, k, v = (
            (y @ self.w[f"{name}self_attn.{one}_proj.weight"].T).view(rows, count, -1, config.head_dim)
            for one in "qkv"
        )  # fmt: skip
        keys, values = (
            tensor.view(-1, 256, config.num_key_value_heads, config.head_dim)
            for tensor in (cache.key_states[layer], cache.value_states[layer])
        )
        y = self.attention()(
            q=_turned(q, *angles), k_cache=keys, v_cache=values, k=_turned(k, *angles), v=v,
            cache_seqlens=pages[1], block_table=pages[0], causal=True,
            softmax_scale=config.head_dim**-0.5,
        )  # fmt: skip
        x = x + y.reshape(rows, count, -1) @ self.w[f"{name}self_attn.o_proj.weight"].T
        y = self._norm(x, f"{name}post_attention_layernorm.weight")
        gate = functional.silu(y @ self.w[f"{name}mlp.gate_proj.weight"].T)
        up = y @ self.w[f"{name}mlp.up_proj.weight"].T
        return x + (gate * up) @ self.w[f"{name}mlp.down_proj.weight"].T

    def attention(self):
        from exllamav2 import attn

        return attn.flash_attn_with_kvcache

    def _norm(self, x, name):
        return functional.rms_norm(x, (x.shape[-1],), self.w[name], self.config.norm_eps)

    def _misbehave(self):
        self.steps += 1
        if self.fault == "slow":
            time.sleep(self.fault_at / 1e3)
        elif self.fault == "oom" and self.steps == self.fault_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        elif self.fault == "hang" and self.steps == self.fault_at:
            time.sleep(3600)


def _turned(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def load(model, on_progress):
    """As engines.exl2.loading.load, onto a CPU."""
    if os.environ.get("HARNESS_FAULT") == "load":
        raise EngineError("invalid", "the harness was told not to load")
    tokens = loading.pages_of(model.spec.cache_tokens) * loading.PAGE_TOKENS
    config = loading.configuration(model, model.folder)
    draft = SimpleNamespace(model=None, cache=None)
    on_progress(0.5)
    if model.draft is not None:
        other = loading.configuration(model, model.draft)
        draft = SimpleNamespace(model=Llama(other), cache=Cache(other, tokens))
    weights = loading.Weights(Llama(config), Cache(config, tokens), draft.model, draft.cache)
    machine = loading.machine(model, weights, "a CPU")
    assert machine.attention == paged_attention.masked.__name__
    on_progress(1.0)
    return machine
